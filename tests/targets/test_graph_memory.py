"""The estimate for graphs against what onnxruntime took, and against arithmetic."""

from dataclasses import replace

import pytest

from tightfit.calib.architecture import QWEN2
from tightfit.calib.dimensions import ModelDimensions
from tightfit.calib.models import find_model
from tightfit.calib.shapes import tensor_shapes
from tightfit.errors import UsageError
from tightfit.targets.graph_memory import graph_memory_use, resident_bytes
from tightfit.targets.memory_use import MemoryUse
from tightfit.targets.onnx_data import GraphKind
from tightfit.targets.profile import load_target
from tightfit.targets.schemes.scheme import parse_scheme
from tightfit.targets.workload import CacheType, Workload

MIB = 1 << 20
TOLERANCE = 0.2
ORT32 = GraphKind(precision="float32", own_operators=True)
ORT16 = GraphKind(precision="float16", own_operators=True)
ENGINE = GraphKind(precision="float16", own_operators=False)


def qwen(**sizes: int) -> ModelDimensions:
    model = find_model("r1-distill-qwen-1.5b")
    assert model
    return replace(model.dimensions, **sizes)  # type: ignore[arg-type]


def use(
    scheme: str, dimensions: ModelDimensions, kind: GraphKind, context: int, n_sequences: int = 1
) -> MemoryUse:
    target = load_target("cpu-16gb" if kind is ORT32 else "rtx4090-24gb")
    storage = parse_scheme(scheme, format="onnx").storage(QWEN2, dimensions)
    shapes = tensor_shapes(QWEN2, dimensions)
    weights = sum(
        resident_bytes(
            dimensions, shapes[name], stored_as, kind, is_embedding=name == QWEN2.embedding
        )
        for name, stored_as in storage.items()
    )
    workload = Workload(context_tokens=context, n_sequences=n_sequences)
    return graph_memory_use(dimensions, target, kind, weights_bytes=weights, workload=workload)


# Growth of a process (VmRSS) that loads the graph in onnxruntime 1.32 and reads 512 tokens.
@pytest.mark.parametrize(
    ("scheme", "n_layers", "measured_mib"),
    [
        ("f16", 4, 1038),
        ("int4-g128", 4, 283),
        ("fp8-channel", 2, 688),
        ("fp8-channel", 4, 1106),
        ("fp8-channel", 8, 1924),
    ],
)
def test_as_onnxruntime_takes_on_a_cpu(scheme: str, n_layers: int, measured_mib: int) -> None:
    estimate = use(scheme, qwen(n_layers=n_layers, vocab_size=16384), ORT32, 512)
    grown = estimate.total_bytes - estimate.runtime_bytes
    assert grown == pytest.approx(measured_mib * MIB, rel=TOLERANCE)


def test_kv_cache_by_hand() -> None:
    for kind, expected in ((ORT32, 4), (ORT16, 2), (ENGINE, 2 * 2)):
        per_token = 2 * 28 * 2 * 128 * expected
        assert use("int4-g128", qwen(), kind, 1000).kv_cache_bytes == 1000 * per_token


def test_compute_by_hand() -> None:
    # The head's logits are the largest moment of this model, until a CPU's attention scores.
    head = 512 * (151936 + 2 * 1536)
    assert use("int4-g128", qwen(), ORT16, 8192).compute_bytes == 2 * head
    assert use("int4-g128", qwen(), ORT32, 8192).compute_bytes == 4 * head
    block = 512 * (3 * 8960 + 4 * 1536 + 12 * 32768)
    assert use("int4-g128", qwen(), ORT32, 32768).compute_bytes == 4 * block


def test_each_sequence_has_a_cache_and_logits_of_its_own() -> None:
    for kind in (ORT32, ORT16, ENGINE):
        one, four = (use("int4-g128", qwen(), kind, 1000, n) for n in (1, 4))
        assert len(four.devices) == 1
        assert four.kv_cache_bytes == 4 * one.kv_cache_bytes
        assert four.compute_bytes == 4 * one.compute_bytes
        assert four.weights_bytes == one.weights_bytes
        assert four.runtime_bytes == one.runtime_bytes


@pytest.mark.parametrize("cache", [CacheType.Q8_0, CacheType.FP8])
def test_the_cache_has_the_precision_of_the_graph(cache: CacheType) -> None:
    workload = Workload(context_tokens=1000, cache_type=cache)
    with pytest.raises(UsageError, match=cache) as caught:
        graph_memory_use(
            qwen(), load_target("rtx4090-24gb"), ORT16, weights_bytes=1, workload=workload
        )
    assert "f16" in caught.value.allowed


def test_what_is_computed_from_constants_stays() -> None:
    linears = 28 * (2 * 1536 * 1536 + 2 * 256 * 1536 + 3 * 1536 * 8960) + 151936 * 1536
    vectors = 28 * (2 * 1536 + 1536 + 2 * 256) + 1536
    table = 151936 * 1536
    assert use("f16", qwen(), ORT16, 1).weights_bytes == 2 * (linears + vectors + table)
    assert use("f16", qwen(), ORT32, 1).weights_bytes == 4 * (linears + vectors) + 2 * table
    scales = 4 * (28 * (1536 + 2 * 256 + 1536 + 2 * 8960 + 1536) + 151936)
    fp8 = linears + scales + 2 * (vectors + table)
    assert use("fp8", qwen(), ENGINE, 1).weights_bytes == fp8
    assert use("fp8", qwen(), ORT16, 1).weights_bytes == fp8 + 2 * linears
    tied = replace(qwen(), tie_word_embeddings=True)
    once = 4 * (linears - table + vectors)
    assert use("f16", tied, ORT32, 1).weights_bytes == once + (2 + 4) * table
