"""What cannot be made whatever the scheme: a format for a target, a family in a format."""

from tightfit.calib.dimensions import ModelDimensions
from tightfit.errors import UsageError
from tightfit.targets.formats import Format
from tightfit.targets.profile import Target, list_targets, load_target
from tightfit.targets.setting import Setting
from tightfit.targets.workload import Split


def check_format(kind: Format, target: Target) -> None:
    """Refuse a format whose runtime the target's profile does not list."""
    if kind.runtime in target.runtimes:
        return
    able = [name for name in list_targets() if kind.runtime in load_target(name).runtimes]
    reason = (
        f"{kind.runtime} runs on NVIDIA's GPUs only"
        if kind.name == "tensorrt" and target.kind == "cpu"
        else f"{kind.runtime} is not among its runtimes"
    )
    note = target.notes.get(kind.name)
    raise UsageError(
        f"{kind.label} cannot be made for {target.name}: {reason}" + (f". {note}" if note else ""),
        allowed=f"runtimes of {target.name}: {', '.join(target.runtimes)}",
        hint=f"targets for {kind.label}: {', '.join(able)}",
    )


def check_family(kind: Format, dimensions: ModelDimensions) -> None:
    """Refuse a mixture of experts where the format's runtime keeps a model on one device."""
    if dimensions.moe is None or kind.spreads:
        return
    reason = (
        "TensorRT for RTX has no mixture-of-experts operator and would compute all experts for "
        "every token"
        if kind.name == "tensorrt"
        else f"{kind.runtime} keeps a graph on one device, and no device holds its weights even at "
        "2 bits"
    )
    raise UsageError(
        f"no {kind.label} is made of a {dimensions.model_type}: {reason}",
        allowed=f"{kind.label} of the distilled checkpoints (Qwen2, Qwen3, Llama)",
        hint="--format gguf is made of it, and checkpoints for vLLM and TensorRT-LLM: "
        "--format compressed-tensors",
    )


def check_split(setting: Setting) -> None:
    """Refuse a tensor split where the runtime uses one device."""
    if setting.workload.split is not Split.TENSOR or setting.n_devices > 1:
        return
    target, kind = setting.target, setting.format
    reason = (
        f"{kind.runtime} keeps a graph on one device"
        if target.device_count > 1
        else f"{target.name} has one device"
    )
    raise UsageError(
        f"--split tensor has nothing to split: {reason}",
        allowed="--split tensor for a GGUF on a target of several devices",
        hint="leave --split out",
    )
