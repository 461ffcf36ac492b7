"""Which moment of llama.cpp's graph is the largest: each rule where it begins and ends."""

import pytest
from support.llamacpp_loads import Load, Report, Use, reported

from tightfit.targets.llamacpp_compute import compute_bytes
from tightfit.targets.profile import load_target
from tightfit.targets.workload import Workload

MIB = 1 << 20
SMALL_INPUTS_MIB = 0.05
"""Token ids, positions and the like, which are not counted."""
FEW_HEADS = {"n_layers": 5, "vocab_size": 512, "n_heads": 4, "n_kv_heads": 4}


def at(*contexts: int) -> tuple[Use, ...]:
    return tuple(Use(context_tokens=context) for context in contexts)


def small_r1(uses: tuple[Use, ...], **sizes: int) -> Load:
    return Load(model="r1", uses=uses, sizes=FEW_HEADS | sizes, n_experts=32)


SHALLOW = {"n_layers": 3}
LOADS = {
    # intermediate 18944, hidden 3584: a hidden-wide tensor more from 23552 to 68607 tokens.
    "the mask's place": Load(
        model="r1-distill-qwen-7b", uses=at(23296, 23552, 68352, 68608), sizes=SHALLOW
    ),
    "the mask's place, on a GPU": Load(
        model="r1-distill-qwen-7b", uses=at(23296, 23552, 68608), sizes=SHALLOW, n_devices=1
    ),
    # 57344 logits against half of the context less a tensor of 4096: 122880 tokens.
    "logits in the mask's place": Load(
        model="r1-0528-qwen3-8b",
        uses=at(114688, 122624, 122880, 131072),
        sizes=SHALLOW | {"vocab_size": 57344},
    ),
    # 65536 logits against half of the context and two tensors of 4096: 114688 tokens.
    "logits in the mask's place, on a GPU": Load(
        model="r1-distill-llama-8b",
        uses=at(114432, 114688),
        sizes=SHALLOW | {"vocab_size": 65536},
        n_devices=1,
    ),
    "short contexts": Load(model="r1-distill-qwen-1.5b", uses=at(256, 300, 512), sizes=SHALLOW),
    "an MLP": Load(model="r1-0528-qwen3-8b", uses=at(2048), sizes=SHALLOW | {"vocab_size": 512}),
    "experts": small_r1(at(2048, 32768)),
    "experts, on a GPU": Load(
        model="r1", uses=at(2048), sizes=FEW_HEADS, n_experts=32, n_devices=1
    ),
    "what experts return fits": small_r1(at(2048), hidden_size=4096, intermediate_size=1024),
    "what experts return does not": small_r1(at(2048), hidden_size=5120, intermediate_size=1024),
    "only dense layers": small_r1(at(2048), n_layers=3),
    "latents": small_r1(at(2048), n_heads=64, n_kv_heads=64),
}


@pytest.fixture(scope="module")
def reports() -> dict[str, Report]:
    return dict(zip(LOADS, reported(list(LOADS.values())), strict=True))


@pytest.mark.parametrize("case", LOADS)
def test_as_llama_cpp_reports_now(case: str, reports: dict[str, Report]) -> None:
    load = LOADS[case]
    name, target = ("GPU0", "rtx4090-24gb") if load.n_devices else ("CPU", "cpu-64gb")
    for use, there in zip(load.uses, reports[case].compute, strict=True):
        workload = Workload(context_tokens=use.context_tokens)
        (ours,) = compute_bytes(load.dimensions, workload, load_target(target), 1)
        assert ours / MIB == pytest.approx(there[name], abs=SMALL_INPUTS_MIB), use


def test_by_hand() -> None:
    # R1 on a CPU: 128 heads whose queries are 192 wide, then 576 twice; five tensors of 7168; the
    # mask of 4096 tokens.
    load = Load(model="r1", uses=())
    workload = Workload(context_tokens=4000)
    expected = 4 * 512 * (128 * (192 + 2 * 576) + 5 * 7168) + 2 * 512 * 4096
    assert compute_bytes(load.dimensions, workload, load_target("cpu-64gb"), 1) == (expected,)
    # The same on two GPUs: all inputs four times; the first gets what the host embedded.
    block = 128 * (192 + 2 * 576)
    first = 4 * 512 * (block + 16 * 7168 + 128 * 64) + 4 * 2 * 512 * 4096
    last = 4 * 512 * (block + 11 * 7168) + 4 * 2 * 512 * 4096
    pair = compute_bytes(load.dimensions, workload, load_target("a100x2-80gb"), 2)
    assert pair == (first, last)
