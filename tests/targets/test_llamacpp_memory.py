"""Memory of a GGUF over several devices where parts are uneven, and what has no such split.

`test_llamacpp_reported` holds the whole model against what llama.cpp reports.
"""

from dataclasses import replace
from time import perf_counter

import pytest
from support.llamacpp_loads import Load, Use, reported

from tightfit.calib.models import find_model
from tightfit.targets.llamacpp_memory import MAX_SPLIT_DEVICES, memory_use, place_weights
from tightfit.targets.profile import load_target
from tightfit.targets.workload import Split, Workload

MIB = 1 << 20
PRINTED_MIB = 0.0051
"""llama.cpp prints two decimals."""


def test_heads_that_do_not_divide_rotate_over_the_layers() -> None:
    # 28 layers of two key-value heads on three devices and on sixteen; a thin MLP for a small file.
    sizes = {"n_layers": 28, "vocab_size": 4096, "intermediate_size": 1024}
    loads = [
        Load(
            model="r1-distill-qwen-1.5b",
            uses=(Use(context_tokens=1024),),
            sizes=sizes,
            scheme="q4_0",
            n_devices=n_devices,
            split="tensor",
            allocated=True,
        )
        for n_devices in (3, 16)
    ]
    target = load_target("a100x16-80gb")
    workload = Workload(context_tokens=1024, split=Split.TENSOR)
    for load, report in zip(loads, reported(loads), strict=True):
        tensors = load.tensor_bytes
        del tensors["token_embd.weight"]  # on the host
        placed = place_weights(tensors, 28, load.n_devices, Split.TENSOR)
        fullest = memory_use(load.dimensions, placed, target, workload).devices[0]
        there = report.cached_there[0]["Meta()"]
        assert fullest.kv_cache_bytes / MIB == pytest.approx(there, abs=PRINTED_MIB)
        # 1024 columns are four super-blocks: on sixteen devices parts are less even.
        assert fullest.weights_bytes / MIB == pytest.approx(report.model["Meta()"], rel=0.05)


def test_llama_cpp_splits_no_latents_by_tensors() -> None:
    (report,) = reported(
        [Load(model="r1", uses=(), sizes={"n_layers": 4}, n_devices=2, split="tensor")]
    )
    assert report.model == {}  # it refuses the file: so does `memory_use`


def test_a_layer_split_has_at_most_fifteen_devices() -> None:
    use = Use(context_tokens=256)
    at_most = Load(model="r1-0528-qwen3-8b", uses=(use,), n_devices=MAX_SPLIT_DEVICES)
    (report,) = reported([at_most])
    assert len(report.compute[0]) == MAX_SPLIT_DEVICES + 1  # and the host
    with pytest.raises(AssertionError, match="GGML_SCHED_MAX_BACKENDS"):
        reported([replace(at_most, n_devices=MAX_SPLIT_DEVICES + 1)])


@pytest.mark.parametrize(("n_devices", "limit_s"), [(1, 0.5e-3), (16, 5e-3)])
def test_fast_enough_for_a_bisection_over_the_context(n_devices: int, limit_s: float) -> None:
    model, target = find_model("r1"), load_target("a100x16-80gb")
    assert model
    n_calls = 100
    started = perf_counter()
    for _ in range(n_calls):
        memory_use(model.dimensions, (0,) * n_devices, target, Workload(context_tokens=8192))
    # A tenth of that and less on an idle machine.
    assert (perf_counter() - started) / n_calls < limit_s
