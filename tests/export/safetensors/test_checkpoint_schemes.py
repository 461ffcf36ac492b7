"""What config.json says of the weights: enough for the formats' own packages to read them."""

from pathlib import Path

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig
from safetensors.torch import load_file, save
from torch import Tensor

from tightfit.errors import QuantizationError
from tightfit.export.safetensors.file import write_checkpoint
from tightfit.export.safetensors.formats import checkpoint_configs, checkpoint_pieces
from tightfit.export.weights import FloatWeight, QuantizedWeight, Weight
from tightfit.quant.algorithms.rtn import rtn
from tightfit.quant.registry import get_grid
from tightfit.quant.tensor import QuantizedTensor

NAME = "model.layers.0.mlp.up_proj.weight"
INTEGERS = [
    f"int{bits}-{group}-{sign}"
    for bits in (4, 8)
    for group in ("g32", "g64", "g128", "channel")
    for sign in ("sym", "asym")
]
PARTIAL_BLOCKS = (200, 300)


def quantized(grid: str, shape: tuple[int, int]) -> QuantizedTensor:
    return rtn(torch.randn(shape, generator=torch.Generator().manual_seed(0)), get_grid(grid))


def as_weight(tensor: QuantizedTensor, input_scale: float | None = None) -> QuantizedWeight:
    return QuantizedWeight(
        shape=tensor.shape, grid=tensor.grid, load=lambda: tensor, input_scale=input_scale
    )


def as_float(*shape: int) -> FloatWeight:
    return FloatWeight(shape=shape, dtype=torch.float16, load=lambda: torch.ones(shape))


@pytest.mark.parametrize(
    ("grid", "shape", "input_scale"),
    [
        *[(grid, (64, 256), None) for grid in INTEGERS],
        ("fp8-e4m3-tensor", PARTIAL_BLOCKS, 0.5),
        ("fp8-e4m3-tensor", PARTIAL_BLOCKS, None),
        ("fp8-e4m3-channel", PARTIAL_BLOCKS, 0.5),
        ("fp8-e4m3-channel", PARTIAL_BLOCKS, None),
        ("fp8-e4m3-block128", PARTIAL_BLOCKS, None),
    ],
)
def test_compressed_tensors_decompresses(
    grid: str, shape: tuple[int, int], input_scale: float | None, tmp_path: Path
) -> None:
    tensor = quantized(grid, shape)
    weights: dict[str, Weight] = {NAME: as_weight(tensor, input_scale)}
    stored = load_file(
        write_checkpoint(tmp_path, checkpoint_pieces("compressed-tensors", weights))[0]
    )
    section = checkpoint_configs("compressed-tensors", weights)["config.json"]
    scheme = QuantizationConfig.model_validate(section).config_groups["group_0"]
    state = {name.rpartition(".")[2]: part for name, part in stored.items()}
    # It multiplies in the type of the scale.
    state["weight_scale"] = state["weight_scale"].float()
    compressor = BaseCompressor.get_value_from_registry(scheme.format)
    found = compressor.decompress(state, scheme)["weight"]
    assert torch.equal(found, get_grid(grid).dequantize(tensor))


def test_gptq_names_its_linears_where_one_stays_a_float() -> None:
    def listed(spared: str) -> list[str] | None:
        tensor = quantized("int4-g32-sym", (64, 64))
        names = [
            f"model.layers.{layer}.{part}_proj.weight"
            for layer in (0, 11)
            for part in ("self_attn.kv_b", "mlp.up", "mlp.experts.0.up")
        ]
        weights: dict[str, Weight] = {
            name: as_float(64, 64) if spared and spared in name else as_weight(tensor)
            for name in names
        }
        weights |= {"lm_head.weight": as_float(8, 64), "model.norm.weight": as_float(64)}
        section = checkpoint_configs("gptq", weights)["config.json"]
        return section.get("modules_in_block_to_quantize")

    assert listed("") is None
    assert listed("kv_b") == [["mlp.up_proj", "mlp.experts.0.up_proj"]]
    assert listed("11.mlp.up") == [
        [
            "model.layers.0.self_attn.kv_b_proj",
            "model.layers.0.mlp.up_proj",
            "model.layers.0.mlp.experts.0.up_proj",
            "model.layers.11.self_attn.kv_b_proj",
            "model.layers.11.mlp.experts.0.up_proj",
        ]
    ]


@pytest.mark.parametrize(
    ("format_", "grid", "shape"),
    [
        ("gptq", "int4-g32-sym", (60, 64)),
        ("gptq", "int3-g32-sym", (40, 64)),
        ("gptq", "int4-channel-sym", (64, 60)),
        ("awq", "int4-g32-sym", (60, 64)),
        ("compressed-tensors", "int4-channel-sym", (64, 60)),
        ("compressed-tensors", "int8-g32-asym", (62, 64)),
        ("modelopt", "int4-g128-sym", (63, 128)),
    ],
)
def test_a_shape_that_does_not_pack_is_refused(
    format_: str, grid: str, shape: tuple[int, int]
) -> None:
    with pytest.raises(QuantizationError, match=NAME) as caught:
        checkpoint_pieces(format_, {NAME: as_weight(quantized(grid, shape))})
    assert caught.value.allowed
    assert caught.value.hint


def test_the_file_is_what_the_reference_implementation_writes(tmp_path: Path) -> None:
    weights: dict[str, Weight] = {
        NAME: as_weight(quantized("fp8-e4m3-tensor", (64, 64)), input_scale=0.5),
        "model.norm.weight": as_float(64),
        "a.weight": as_float(64),
    }
    file = write_checkpoint(tmp_path, checkpoint_pieces("compressed-tensors", weights))[0]
    tensors: dict[str, Tensor] = load_file(file)
    assert file.read_bytes() == save(tensors, metadata={"format": "pt"})
