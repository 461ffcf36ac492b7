"""What cannot be made whatever the scheme: a format for a target, a family in a format."""

from collections.abc import Collection

from tightfit.calib.dimensions import ModelDimensions
from tightfit.errors import UsageError
from tightfit.targets.formats import Format
from tightfit.targets.profile import Target, list_targets, load_target
from tightfit.targets.setting import Setting
from tightfit.targets.workload import Split

_BLOCKS = "fp8-e4m3-block128"
_FLOAT8_LOADED = {"fp8-e4m3-tensor": True, "fp8-e4m3-channel": False, _BLOCKS: False}
"""Whether vLLM loads experts on a grid with static scales of their inputs, or with dynamic ones."""


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


def check_loaded(setting: Setting, grids: Collection[str], *, static_inputs: bool) -> None:
    """Refuse what vLLM's loader of the format does not take, or would load as something else.

    Source: vLLM, `quantization/{moe_wna16,auto_gptq}.py`, which drop zero points of experts, and
    `compressed_tensors/` (`CompressedTensorsW8A8Fp8` and its kin for experts).
    """
    format_name, is_mixture = setting.format.name, setting.dimensions.moe is not None
    asymmetric = sorted(name for name in grids if name.endswith("-asym"))
    if format_name == "gptq" and is_mixture and asymmetric:
        raise UsageError(
            f"{asymmetric[0]} as GPTQ: vLLM loads experts without their zero points",
            allowed="symmetric grids for mixtures of experts in this format",
            hint="--format awq or compressed-tensors, or a symmetric scheme",
        )
    if format_name != "compressed-tensors":
        return
    kind = next((name for name in _FLOAT8_LOADED if name in grids), None)
    of_experts = _FLOAT8_LOADED[kind] if kind and is_mixture else None
    if static_inputs and kind == _BLOCKS:
        raise UsageError(
            f"{kind} with static scales of inputs: vLLM takes blocks with dynamic ones only",
            allowed="fp8-block128, fp8-tensor-static, fp8-channel-static",
            hint="leave -static out",
        )
    if of_experts is not None and static_inputs is not of_experts:
        raise UsageError(
            f"{kind} {'with' if static_inputs else 'without'} static scales of inputs: vLLM does "
            "not load experts so",
            allowed="for mixtures of experts fp8-channel, fp8-block128 and fp8-tensor-static",
            hint="--scheme fp8-block128 is what R1 is stored as",
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
