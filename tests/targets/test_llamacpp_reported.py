"""The memory model against what llama.cpp itself reports, and against arithmetic by hand."""

import pytest
from support.llamacpp_loads import Load, Report, Use, reported

from tightfit.calib.dimensions import ModelDimensions
from tightfit.calib.models import find_model
from tightfit.errors import UsageError
from tightfit.targets.llamacpp_compute import compute_bytes, padded_context
from tightfit.targets.llamacpp_memory import (
    host_tensors,
    kv_cache_bytes,
    memory_use,
    place_weights,
)
from tightfit.targets.memory_use import MemoryUse
from tightfit.targets.profile import load_target
from tightfit.targets.workload import CacheType, Split, Workload

MIB = 1 << 20
PRINTED_MIB = 0.0051
"""llama.cpp prints two decimals."""
TINY_MIB = 0.15
"""What it plans beside the tensors that are counted: positions, indices, rows to write to."""
TOLERANCE = 0.05


def dimensions(model: str) -> ModelDimensions:
    known = find_model(model)
    assert known
    return known.dimensions


def workload(use: Use, split: str = "layer") -> Workload:
    return Workload(
        context_tokens=use.context_tokens,
        n_sequences=use.n_sequences,
        cache_type=CacheType(use.cache_type),
        split=Split(split),
    )


# xllamacpp 2026.10.11549 on the CPU, whole models with no_alloc (sparse files of `Load`): the line
# "llama_kv_cache: size" and "CPU compute buffer size", in MiB, for each of USES.
USES = (
    Use(context_tokens=2048),
    Use(context_tokens=8192),
    Use(context_tokens=32768),
    Use(context_tokens=131072),
    Use(context_tokens=8192, n_sequences=4),
    Use(context_tokens=4096, n_sequences=16),
    Use(context_tokens=8192, cache_type="q8_0"),
    Use(context_tokens=32768, n_sequences=4, cache_type="q8_0"),
)
KV_MIB = {
    "r1-distill-qwen-1.5b": (56, 224, 896, 3584, 896, 1792, 119, 1904),
    "r1-distill-qwen-7b": (112, 448, 1792, 7168, 1792, 3584, 238, 3808),
    "r1-distill-llama-8b": (256, 1024, 4096, 16384, 4096, 8192, 544, 8704),
    "r1-0528-qwen3-8b": (288, 1152, 4608, 18432, 4608, 9216, 612, 9792),
    "r1-distill-qwen-14b": (384, 1536, 6144, 24576, 6144, 12288, 816, 13056),
    "r1-distill-qwen-32b": (512, 2048, 8192, 32768, 8192, 16384, 1088, 17408),
    "r1-distill-llama-70b": (640, 2560, 10240, 40960, 10240, 20480, 1360, 21760),
    "r1": (137.25, 549, 2196, 8784, 2196, 4392, 291.66, 4666.5),
}
COMPUTE_MIB = {
    "r1-distill-qwen-1.5b": (313.77, 319.77, 343.77, 439.77, 319.77, 315.77, 319.85, 343.85),
    "r1-distill-qwen-7b": (334.02, 340.02, 371.02, 460.02, 340.02, 336.02, 340.10, 371.10),
    "r1-distill-llama-8b": (292.52, 298.52, 330.52, 418.52, 298.52, 294.52, 298.60, 330.60),
    "r1-0528-qwen3-8b": (338.77, 352.77, 376.77, 464.77, 352.77, 340.77, 352.85, 376.85),
    "r1-distill-qwen-14b": (349.02, 365.02, 389.02, 475.02, 365.02, 351.02, 365.10, 389.10),
    "r1-distill-qwen-32b": (349.02, 355.02, 379.02, 475.02, 355.02, 351.02, 355.10, 379.10),
    "r1-distill-llama-70b": (332.52, 338.52, 378.52, 458.52, 338.52, 334.52, 338.60, 378.60),
    "r1": (408.02, 414.02, 438.02, 534.02, 414.02, 410.02, 414.02, 438.02),
}


@pytest.mark.parametrize("model", KV_MIB)
def test_whole_models_as_llama_cpp_reported_them(model: str) -> None:
    target = load_target("cpu-64gb")
    cases = zip(USES, KV_MIB[model], COMPUTE_MIB[model], strict=True)
    for use, kv_mib, compute_mib in cases:
        cached = kv_cache_bytes(dimensions(model), workload(use))
        (compute,) = compute_bytes(dimensions(model), workload(use), target, 1)
        assert cached / MIB == pytest.approx(kv_mib, abs=PRINTED_MIB)
        assert compute / MIB == pytest.approx(compute_mib, abs=TINY_MIB)


# Loads of this build, here and now. Weights and caches of few layers are really allocated; whole
# models are only planned.
SMALL_USES = (
    Use(context_tokens=256),
    Use(context_tokens=3000),
    Use(context_tokens=16384),
    Use(context_tokens=2048, n_sequences=4),
    Use(context_tokens=5000, n_sequences=4, cache_type="q8_0"),
)
SMALL_R1 = {"n_layers": 4, "vocab_size": 2048, "hidden_size": 512} | {
    "intermediate_size": 1024,
    "n_heads": 16,
    "n_kv_heads": 16,
}
ON_CPU = (
    Load(
        model="r1-distill-qwen-1.5b",
        uses=SMALL_USES,
        sizes={"n_layers": 3, "vocab_size": 4096},
        allocated=True,
    ),
    Load(
        model="r1-distill-qwen-1.5b",
        uses=SMALL_USES,
        sizes={"n_layers": 1, "vocab_size": 32768, "tie_word_embeddings": True},
        scheme="q6_k",
        allocated=True,
    ),
    Load(
        model="r1-distill-llama-8b",
        uses=SMALL_USES,
        sizes={"n_layers": 1, "vocab_size": 65536},
        scheme="q3_k_m",
        allocated=True,
    ),
    Load(
        model="r1-0528-qwen3-8b",
        uses=SMALL_USES,
        sizes={"n_layers": 2, "vocab_size": 8192},
        allocated=True,
    ),
    Load(model="r1", uses=SMALL_USES[1:], sizes=SMALL_R1, n_experts=32, allocated=True),
)
SPLIT_SIZES = {"n_layers": 7, "vocab_size": 4096}
ON_DEVICES = tuple(
    Load(model=model, uses=SMALL_USES[-2:], sizes=sizes, n_devices=n, split=split, allocated=True)
    for model, sizes, n, split in (
        ("r1-distill-qwen-1.5b", SPLIT_SIZES, 1, "layer"),
        ("r1-distill-qwen-1.5b", SPLIT_SIZES, 3, "layer"),
        ("r1-distill-qwen-1.5b", SPLIT_SIZES | {"tie_word_embeddings": 1}, 2, "layer"),
        ("r1-distill-llama-8b", {"n_layers": 1, "vocab_size": 4096}, 2, "tensor"),
        ("r1-0528-qwen3-8b", {"n_layers": 1, "vocab_size": 4096}, 4, "tensor"),
    )
)
PLANNED_USES = (USES[1], USES[3], USES[7])
ONE_GPU = tuple(
    Load(model=model, uses=PLANNED_USES, n_devices=1)
    for model in ("r1-distill-qwen-1.5b", "r1-0528-qwen3-8b", "r1-distill-qwen-32b", "r1")
)
LAYER_SPLITS = tuple(
    Load(model=model, uses=PLANNED_USES, n_devices=n)
    for model, n in (
        ("r1-distill-llama-70b", 2),
        ("r1-distill-qwen-14b", 2),
        ("r1-distill-qwen-32b", 4),
        ("r1", 8),
    )
)
TENSOR_SPLITS = tuple(
    Load(model=model, uses=PLANNED_USES, n_devices=n, split="tensor")
    for model, n in (("r1-distill-llama-70b", 2), ("r1-distill-qwen-32b", 4))
)
TARGETS = {0: "cpu-64gb", 1: "a100-80gb"}
SEVERAL = "a100x16-80gb"
SHARED_BY_ALL = "Meta()"
"""Where llama.cpp reports what each device of a tensor split holds."""


@pytest.fixture(scope="module")
def reports() -> dict[int, Report]:
    """By the identity of the load."""
    loads = (*ON_CPU, *ON_DEVICES, *ONE_GPU, *LAYER_SPLITS, *TENSOR_SPLITS)
    return {id(load): report for load, report in zip(loads, reported(loads), strict=True)}


def devices_of(load: Load) -> list[str]:
    if load.split == "tensor":
        return [SHARED_BY_ALL] * load.n_devices
    return [f"GPU{number}" for number in range(load.n_devices)] or ["CPU"]


def predicted(load: Load, use: Use) -> MemoryUse:
    target = load_target(TARGETS.get(load.n_devices, SEVERAL))
    on_host = host_tensors(load.tensor_bytes, target)
    tensors = {name: size for name, size in load.tensor_bytes.items() if name not in on_host}
    split = Split(load.split)
    weights = place_weights(tensors, load.dimensions.n_layers, max(1, load.n_devices), split)
    return memory_use(load.dimensions, weights, target, workload(use, load.split))


@pytest.mark.parametrize("load", ON_CPU, ids=lambda load: load.model)
def test_real_loads_on_the_cpu(load: Load, reports: dict[int, Report]) -> None:
    report = reports[id(load)]
    for use, there, compute in zip(load.uses, report.cached_there, report.compute, strict=True):
        (ours,) = predicted(load, use).devices
        total_mib = report.model["CPU"] + there["CPU"] + compute["CPU"]
        assert ours.weights_bytes / MIB == pytest.approx(report.model["CPU"], abs=PRINTED_MIB)
        assert ours.kv_cache_bytes / MIB == pytest.approx(there["CPU"], abs=PRINTED_MIB)
        assert ours.compute_bytes / MIB == pytest.approx(compute["CPU"], rel=TOLERANCE)
        total_bytes = ours.total_bytes - ours.runtime_bytes
        assert total_bytes / MIB == pytest.approx(total_mib, rel=TOLERANCE)


@pytest.mark.parametrize("load", ON_DEVICES, ids=lambda load: f"{load.split}-{load.n_devices}")
def test_what_lies_on_which_device(load: Load, reports: dict[int, Report]) -> None:
    report = reports[id(load)]
    # A tensor split cuts at whole heads and super-blocks.
    weights_mib = TOLERANCE * report.model[SHARED_BY_ALL] if load.split == "tensor" else PRINTED_MIB
    for use, there in zip(load.uses, report.cached_there, strict=True):
        for name, ours in zip(devices_of(load), predicted(load, use).devices, strict=True):
            assert ours.weights_bytes / MIB == pytest.approx(report.model[name], abs=weights_mib)
            assert ours.kv_cache_bytes / MIB == pytest.approx(there[name], abs=PRINTED_MIB)


@pytest.mark.parametrize("load", [*ONE_GPU, *TENSOR_SPLITS], ids=lambda load: load.model)
def test_compute_buffer_of_a_gpu(load: Load, reports: dict[int, Report]) -> None:
    for use, compute in zip(load.uses, reports[id(load)].compute, strict=True):
        for name, ours in zip(devices_of(load), predicted(load, use).devices, strict=True):
            assert ours.compute_bytes / MIB == pytest.approx(compute[name], abs=TINY_MIB)


@pytest.mark.parametrize("load", LAYER_SPLITS, ids=lambda load: f"{load.model}-{load.n_devices}")
def test_compute_buffers_of_a_layer_split(load: Load, reports: dict[int, Report]) -> None:
    for use, compute in zip(load.uses, reports[id(load)].compute, strict=True):
        for name, ours in zip(devices_of(load), predicted(load, use).devices, strict=True):
            assert ours.compute_bytes / MIB == pytest.approx(compute[name], rel=TOLERANCE)


@pytest.mark.parametrize("load", ONE_GPU, ids=lambda load: load.model)
def test_unified_memory_holds_the_hosts_buffer_too(load: Load, reports: dict[int, Report]) -> None:
    jetson = load_target("jetson-agx-orin-64gb")
    for use, compute in zip(load.uses, reports[id(load)].compute, strict=True):
        (ours,) = compute_bytes(load.dimensions, workload(use), jetson, 1)
        assert ours / MIB == pytest.approx(compute["GPU0"] + compute["CPU"], abs=2 * TINY_MIB)


def test_cache_by_hand() -> None:
    # 32 layers, keys and values, 8 heads of 128 numbers of 2 bytes: 128 KiB a token, 1 GiB in all.
    llama = dimensions("r1-distill-llama-8b")
    assert kv_cache_bytes(llama, Workload(context_tokens=8192)) == 1 << 30
    # 61 layers, a latent of 512 numbers and 64 rotary ones, and no values.
    r1 = dimensions("r1")
    assert kv_cache_bytes(r1, Workload(context_tokens=1024)) == 1024 * 61 * (512 + 64) * 2
    q8_0 = Workload(context_tokens=1024, n_sequences=3, cache_type=CacheType.Q8_0)
    assert kv_cache_bytes(llama, q8_0) == 3 * 1024 * 32 * 2 * 8 * 128 * 34 // 32
    assert kv_cache_bytes(r1, q8_0) == 3 * 1024 * 61 * 576 * 34 // 32


@pytest.mark.parametrize(("asked", "given"), [(1, 256), (256, 256), (257, 512), (8192, 8192)])
def test_each_context_is_padded(asked: int, given: int) -> None:
    assert padded_context(asked) == given
    use = Workload(context_tokens=asked, n_sequences=5)
    assert kv_cache_bytes(dimensions("r1-distill-llama-8b"), use) == 5 * given * (128 << 10)


def test_no_fp8_cache() -> None:
    fp8 = Workload(context_tokens=8192, cache_type=CacheType.FP8)
    with pytest.raises(UsageError) as caught:
        kv_cache_bytes(dimensions("r1"), fp8)
    assert "fp8" in caught.value.problem
    assert "f16 or q8_0" in caught.value.allowed


@pytest.mark.parametrize(
    ("model", "n_devices", "layers"),
    [
        ("r1-distill-llama-70b", 2, (41, 39)),
        ("r1-distill-llama-70b", 4, (21, 20, 20, 19)),
        ("r1", 8, (8, 8, 8, 7, 8, 8, 8, 6)),
    ],
)
def test_layers_of_a_split(model: str, n_devices: int, layers: tuple[int, ...]) -> None:
    use = Workload(context_tokens=4096)
    n_layers = dimensions(model).n_layers
    split = memory_use(dimensions(model), (0,) * n_devices, load_target(SEVERAL), use)
    layer_bytes = kv_cache_bytes(dimensions(model), use) // n_layers
    cached = tuple(device.kv_cache_bytes for device in split.devices)
    assert cached == tuple(count * layer_bytes for count in layers)
    tensors = {f"blk.{layer}.ffn_up.weight": 1 for layer in range(n_layers)}
    tensors |= {"token_embd.weight": 0, "rope_freqs.weight": 100, "output.weight": 10_000}
    placed = place_weights(tensors, n_layers, n_devices, Split.LAYER)
    ends = (100, *[0] * (n_devices - 2), 10_000)
    assert placed == tuple(count + end for count, end in zip(layers, ends, strict=True))


def test_parts_of_a_tensor_split() -> None:
    tensors = {"blk.0.attn_q.weight": 9, "blk.0.attn_q.bias": 5, "blk.0.attn_norm.weight": 3}
    assert place_weights(tensors, 1, 1, Split.TENSOR) == (17,)
    assert place_weights(tensors, 1, 2, Split.TENSOR) == (5 + 5 + 3,) * 2
    qwen = dimensions("r1-distill-qwen-7b")
    use = Workload(context_tokens=4096, split=Split.TENSOR)
    # 28 layers of 4 heads; a head is on one device.
    for n_devices, heads in ((1, 112), (2, 56), (3, 38), (4, 28), (8, 14)):
        split = memory_use(qwen, (0,) * n_devices, load_target(SEVERAL), use)
        head_bytes = 2 * 128 * 2 * 4096
        assert {device.kv_cache_bytes for device in split.devices} == {heads * head_bytes}


def test_latents_cannot_be_split_by_tensors() -> None:
    use = Workload(context_tokens=4096, split=Split.TENSOR)
    with pytest.raises(UsageError, match="latent attention") as caught:
        memory_use(dimensions("r1"), (0, 0), load_target(SEVERAL), use)
    assert "--split layer" in caught.value.allowed


def test_what_stays_in_host_memory() -> None:
    table, head = "token_embd.weight", "output.weight"
    for target, stays in (
        ("rtx4090-24gb", {table}),
        ("a100x8-80gb", {table}),
        ("jetson-orin-nano-8gb", set()),
        ("cpu-16gb", set()),
    ):
        assert host_tensors([table, "blk.0.ffn_up.weight", head], load_target(target)) == stays
        # A tied table is also the head, which lies on the device.
        assert not host_tensors([table, "blk.0.ffn_up.weight"], load_target(target))
