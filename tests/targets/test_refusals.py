"""What cannot be made whatever the scheme: refused with the reason and what works."""

import pytest

from tightfit.calib.models import MODELS, find_model
from tightfit.errors import DoesNotFitError, UsageError
from tightfit.targets.formats import FORMATS, find_format
from tightfit.targets.plan import make_plan
from tightfit.targets.profile import list_targets, load_target
from tightfit.targets.refusals import check_family, check_format
from tightfit.targets.workload import Split


@pytest.mark.parametrize("target", list_targets())
def test_a_format_is_refused_where_its_runtime_is_not(target: str) -> None:
    machine = load_target(target)
    for kind in FORMATS.values():
        if kind.runtime in machine.runtimes:
            check_format(kind, machine)
            continue
        with pytest.raises(UsageError) as caught:
            check_format(kind, machine)
        assert f"{kind.label} cannot be made for {target}: " in caught.value.problem
        assert machine.notes.get(kind.name, "") in caught.value.problem
        assert caught.value.allowed.startswith(f"runtimes of {target}: llama.cpp")
        offered = caught.value.hint.removeprefix(f"targets for {kind.label}: ").split(", ")
        assert "rtx4090-24gb" in offered
        for name in offered:
            check_format(kind, load_target(name))


def test_an_engine_for_a_machine_without_a_card() -> None:
    with pytest.raises(UsageError, match="runs on NVIDIA's GPUs only"):
        check_format(find_format("tensorrt"), load_target("cpu-16gb"))
    with pytest.raises(UsageError, match="tightfit build-engine"):
        check_format(find_format("tensorrt"), load_target("jetson-agx-orin-64gb"))
    with pytest.raises(UsageError, match="TensorRT-LLM"):
        check_format(find_format("tensorrt"), load_target("h100x8-80gb"))


@pytest.mark.parametrize("model", [model.name for model in MODELS.values()])
def test_a_mixture_of_experts_needs_a_runtime_of_several_devices(model: str) -> None:
    known = find_model(model)
    assert known
    for kind in FORMATS.values():
        if known.dimensions.moe is None or kind.name not in ("onnx", "tensorrt"):
            check_family(kind, known.dimensions)
            continue
        with pytest.raises(UsageError, match=f"no {kind.label} is made of a deepseek_v3") as caught:
            check_family(kind, known.dimensions)
        assert "distilled checkpoints" in caught.value.allowed
        assert "--format gguf" in caught.value.hint
        assert "--format compressed-tensors" in caught.value.hint


@pytest.mark.parametrize(
    ("format_", "target", "reason"),
    [
        ("onnx", "a100x8-80gb", "keeps a graph on one device"),
        ("tensorrt", "a100-80gb", "no mixture-of-experts operator"),
    ],
)
@pytest.mark.parametrize("scheme", ["auto", "gptq-int4-g128"])
def test_a_plan_says_so(format_: str, target: str, reason: str, scheme: str) -> None:
    known = find_model("r1")
    assert known
    with pytest.raises(UsageError, match=reason):
        make_plan(known.dimensions, load_target(target), model="r1", format=format_, scheme=scheme)


@pytest.mark.parametrize(
    ("model", "format_", "scheme", "reason"),
    [
        ("r1", "gptq", "int4-g128-asym", "without their zero points"),
        ("r1-distill-qwen-7b", "compressed-tensors", "fp8-block128-static", "takes blocks with"),
        ("r1", "compressed-tensors", "fp8-tensor", "does not load experts so"),
        ("r1", "compressed-tensors", "fp8-channel-static", "does not load experts so"),
    ],
)
def test_what_vllm_does_not_load(model: str, format_: str, scheme: str, reason: str) -> None:
    known = find_model(model)
    assert known
    with pytest.raises(UsageError, match=reason):
        make_plan(
            known.dimensions,
            load_target("h100x8-80gb"),
            model=model,
            format=format_,
            scheme=scheme,
        )


def test_an_unknown_format() -> None:
    with pytest.raises(UsageError, match="no format named 'exl2'") as caught:
        find_format("exl2")
    formats = "gguf, onnx, tensorrt, gptq, awq, compressed-tensors, modelopt"
    assert caught.value.allowed == f"formats: {formats}"


@pytest.mark.parametrize(
    ("target", "format_"), [("rtx3060-8gb", "gguf"), ("a100x8-80gb", "onnx"), ("cpu-64gb", "gguf")]
)
def test_a_tensor_split_of_one_device(target: str, format_: str) -> None:
    known = find_model("r1-distill-qwen-7b")
    assert known
    with pytest.raises(UsageError, match="nothing to split") as caught:
        make_plan(
            known.dimensions,
            load_target(target),
            model=known.name,
            format=format_,
            split=Split.TENSOR,
        )
    assert caught.value.hint == "leave --split out"


def test_what_does_not_fit_with_a_tensor_split_still_gets_its_ways_out() -> None:
    """R1, tried as another model, has no tensor split: that is not this model's error."""
    known = find_model("r1-distill-llama-70b")
    assert known
    with pytest.raises(DoesNotFitError, match="does not fit rtx3090x2"):
        make_plan(
            known.dimensions,
            load_target("rtx3090x2"),
            model=known.name,
            context_tokens=131072,
            split=Split.TENSOR,
        )
