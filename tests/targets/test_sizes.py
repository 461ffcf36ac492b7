"""Bytes of single tensors and of whole files, by hand and as the writers place them."""

from dataclasses import replace

import pytest
from support import smollm2

from tightfit.calib.dimensions import ModelDimensions
from tightfit.calib.models import find_model
from tightfit.errors import QuantizationError
from tightfit.targets.formats import find_format
from tightfit.targets.plan import make_plan
from tightfit.targets.profile import load_target
from tightfit.targets.setting import Setting, usual_precision
from tightfit.targets.sizes import ModelSizes, model_sizes
from tightfit.targets.workload import Workload

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
DOWN = "model.layers.3.mlp.down_proj.weight"
EXPERTS = "model.layers.30.mlp.experts.*.up_proj.weight"
TIED = replace(smollm2.DIMENSIONS, n_layers=2)


def sizes_of(dimensions: ModelDimensions | str, target: str, format_: str = "gguf") -> ModelSizes:
    if isinstance(dimensions, str):
        known = find_model(dimensions)
        assert known
        dimensions = known.dimensions
    kind, machine = find_format(format_), load_target(target)
    return model_sizes(
        Setting(
            dimensions=dimensions,
            target=machine,
            format=kind,
            precision=usual_precision(kind, machine),
            workload=Workload(context_tokens=1024),
        )
    )


def test_a_gguf_takes_the_bytes_of_its_type_padded_to_32() -> None:
    sizes = sizes_of("r1-distill-qwen-7b", "rtx3060-8gb")
    down = sizes.tensor(DOWN, "Q4_K")
    assert down.data_bytes == down.file_bytes == down.resident_bytes == 3584 * 18944 // 256 * 144
    # A symmetric grid of 4 bits is Q4_0, 18 bytes for 32 weights.
    assert sizes.tensor(DOWN, "int4-g128-sym").data_bytes == 3584 * 18944 // 32 * 18
    # Vectors are F32 whatever is asked.
    assert sizes.tensor("model.norm.weight", "F16").data_bytes == 4 * 3584
    odd = sizes_of(TIED, "rtx3060-8gb").tensor("model.layers.0.self_attn.q_proj.weight", "Q8_0")
    assert odd.file_bytes == odd.data_bytes == 576 * 18 * 34


@pytest.mark.parametrize(
    ("target", "counts"),
    [("rtx3060-8gb", False), ("cpu-16gb", True), ("jetson-orin-nano-8gb", True)],
)
def test_the_token_table_stays_in_host_memory_of_a_card(target: str, counts: bool) -> None:
    sizes = sizes_of("r1-distill-qwen-7b", target)
    table = sizes.tensor(EMBEDDING, "Q8_0")
    assert table.data_bytes == 152064 * 3584 // 32 * 34
    assert table.resident_bytes == counts * table.data_bytes
    assert sizes.tensor(HEAD, "Q8_0").resident_bytes == table.data_bytes
    tied = sizes_of(TIED, target)
    assert HEAD not in tied.shapes
    assert tied.tensor(EMBEDDING, "Q8_0").resident_bytes == 49152 * 18 * 34


def test_a_width_that_does_not_divide() -> None:
    with pytest.raises(QuantizationError, match="row of 576 weights"):
        sizes_of(TIED, "cpu-16gb").tensor(EMBEDDING, "Q4_K")


def test_the_divisors_of_llama_3_are_in_the_file_only() -> None:
    sizes = sizes_of("r1-distill-llama-8b", "rtx3060-8gb")
    assert sizes.file_only == {"rope_freqs.weight": (64,)}
    storage = dict.fromkeys(sizes.shapes, "Q8_0")
    tensors = sum(sizes.tensor(name, "Q8_0").data_bytes for name in sizes.shapes)
    assert sizes.data_bytes(storage) == sizes.file_bytes(storage) == tensors + 256
    assert sizes.resident(storage)["rope_freqs.weight"] == 256
    assert sizes_of("r1-distill-qwen-7b", "rtx3060-8gb").file_only == {}


def test_a_token_reads_eight_experts_and_one_row() -> None:
    sizes = sizes_of("r1", "cpu-64gb")
    assert sizes.read_bytes({EXPERTS: "Q4_K"}) == 8 * 2048 * 7168 // 256 * 144
    assert sizes.read_bytes({EMBEDDING: "Q8_0"}) == 7168 // 32 * 34
    assert sizes.read_bytes({HEAD: "Q6_K"}) == 129280 * 7168 // 256 * 210
    tied = sizes_of(TIED, "cpu-64gb")
    assert tied.read_bytes({EMBEDDING: "Q8_0"}) == 49152 * 18 * 34


def test_devices_of_a_layer_split() -> None:
    """61 blocks and the head on eight cards: 8 or 7 blocks each, 5 and the head on the last."""
    sizes = sizes_of("r1", "a100x8-80gb")
    devices = [sizes.device_of(f"model.layers.{n}.self_attn.o_proj.weight") for n in range(61)]
    # Block i goes where i / 62 of the way through eight devices is.
    assert devices == [int(8 * layer / 62) for layer in range(61)]
    assert [devices.count(device) for device in range(8)] == [8, 8, 8, 7, 8, 8, 8, 6]
    assert sizes.device_of(HEAD) == 7
    assert sizes.device_of("model.norm.weight") == 7


@pytest.mark.parametrize(
    ("format_", "stored_as", "stored", "more"),
    [
        # 4-bit codes, and a float16 scale for 128 of them
        ("onnx", "int4-g128-sym", 3584 * 18944 // 2 + 3584 * 148 * 2, 0),
        # 8 bits with a scale per row, which onnxruntime dequantizes whole
        ("onnx", "int8-channel-sym", 3584 * 18944 + 3584 * 2, 3584 * 18944 * 2),
        # TensorRT dequantizes inside its kernels
        ("tensorrt", "int8-channel-sym", 3584 * 18944 + 3584 * 2, 0),
    ],
)
def test_a_graph_by_hand(format_: str, stored_as: str, stored: int, more: int) -> None:
    tensor = sizes_of("r1-distill-qwen-7b", "rtx4090-24gb", format_).tensor(DOWN, stored_as)
    assert tensor.data_bytes == stored
    assert tensor.resident_bytes == stored + more
    # Codes on a page of 4096, scales of a MiB and more, too; nothing before them is known.
    assert stored <= tensor.file_bytes < stored + 2 * 4096


def test_a_graphs_file_is_never_longer_than_its_padding_allows() -> None:
    sizes = sizes_of("r1-distill-qwen-7b", "rtx4090-24gb", "onnx")
    storage = {
        name: "F16" if len(shape) == 1 or name == EMBEDDING else "int4-g64-sym"
        for name, shape in sizes.shapes.items()
    }
    exact = sizes.file_bytes(storage)
    assert sizes.data_bytes(storage) <= exact <= sizes.padded_bytes(storage)
    assert sizes.padded_bytes(storage) - exact < 4096 * 2 * len(storage)


@pytest.mark.parametrize(
    ("scheme", "format_", "context"),
    [("int8-channel", "onnx", 8192), ("f16", "tensorrt", 131072)],
)
def test_the_speed_bound_of_a_graph_counts_what_is_stored(
    scheme: str, format_: str, context: int
) -> None:
    """Not what the runtime computes from it, nor the copy of the cache that a step writes."""
    known = find_model("r1-distill-qwen-7b")
    assert known
    made = make_plan(
        known.dimensions,
        load_target("a100-80gb"),
        model=known.name,
        format=format_,
        scheme=scheme,
        context_tokens=context,
    )
    cache = 2 * 28 * 4 * 128 * 2 * context
    table = 152064 * 3584 * 2  # float16 with either scheme, and one row of it is read
    bytes_read = made.chosen.file_bytes - table + cache
    assert made.chosen.max_tokens_per_s == pytest.approx(1935e9 / bytes_read, rel=1e-3)
