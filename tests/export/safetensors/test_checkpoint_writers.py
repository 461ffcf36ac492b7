"""Quantized matrices as checkpoints store them, read by the packages that own the formats."""

import json
from pathlib import Path

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from safetensors.torch import load_file
from support.full_disk import full_disk
from support.quiet_gptqmodel import import_gptqmodel
from torch import Tensor

from tightfit.errors import ArtifactError, QuantizationError, UsageError
from tightfit.export.safetensors.file import write_checkpoint
from tightfit.export.safetensors.formats import checkpoint_configs, checkpoint_pieces
from tightfit.export.safetensors.words import pack_words
from tightfit.export.weights import FloatWeight, QuantizedWeight, Weight
from tightfit.quant.algorithms.rtn import rtn
from tightfit.quant.registry import get_grid
from tightfit.quant.tensor import QuantizedTensor

NAME = "model.layers.0.mlp.up_proj.weight"
MODULE = NAME.removesuffix(".weight")
SHAPE = (64, 256)
INTEGERS = [
    f"int{bits}-{group}-{sign}"
    for bits in (2, 3, 4, 8)
    for group in ("g32", "g128", "channel")
    for sign in ("sym", "asym")
]


def quantized(grid: str, *, seed: int = 0, order: bool = False) -> QuantizedTensor:
    generator = torch.Generator().manual_seed(seed)
    w_OI = torch.randn(SHAPE, generator=generator) * 0.02
    tensor = rtn(w_OI, get_grid(grid))
    if not order:
        return tensor
    group_I = torch.arange(SHAPE[1]) // get_grid(grid).span
    shuffled = group_I[torch.randperm(SHAPE[1], generator=generator)].to(torch.int32)
    return QuantizedTensor(
        grid=grid,
        shape=SHAPE,
        codes_OI=tensor.codes_OI,
        params=tensor.params,
        group_index_I=shuffled,
    )


def weights_of(tensor: QuantizedTensor, input_scale: float | None = None) -> dict[str, Weight]:
    head = torch.randn(8, SHAPE[1])
    return {
        NAME: QuantizedWeight(
            shape=SHAPE,
            grid=tensor.grid,
            load=lambda: tensor,
            group_index_I=tensor.group_index_I,
            input_scale=input_scale,
        ),
        "model.norm.weight": FloatWeight(
            shape=(SHAPE[1],), dtype=torch.float16, load=lambda: torch.ones(SHAPE[1])
        ),
        "lm_head.weight": FloatWeight(shape=(8, SHAPE[1]), dtype=torch.float16, load=lambda: head),
    }


def written(folder: Path, format_: str, tensor: QuantizedTensor) -> dict[str, Tensor]:
    (file,) = write_checkpoint(folder, checkpoint_pieces(format_, weights_of(tensor)))
    return load_file(file)


def values(tensor: QuantizedTensor) -> Tensor:
    return get_grid(tensor.grid).dequantize(tensor)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_words_hold_the_codes_bit_by_bit(bits: int) -> None:
    codes_NX = torch.randint(0, 1 << bits, (64, 5), dtype=torch.uint8)
    words_WX = pack_words(codes_NX, bits)
    assert words_WX.shape == (64 * bits // 32, 5)
    for column in range(5):
        text = "".join(f"{word & 0xFFFFFFFF:032b}"[::-1] for word in words_WX[:, column].tolist())
        found = [int(text[at : at + bits][::-1], 2) for at in range(0, len(text), bits)]
        assert found == codes_NX[:, column].tolist()


@pytest.mark.parametrize("order", [False, True])
@pytest.mark.parametrize("grid", INTEGERS)
def test_gptqmodel_reads_gptq(grid: str, order: bool, tmp_path: Path) -> None:
    if order and "channel" in grid:
        pytest.skip("one group has no order")
    import_gptqmodel()
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.utils.model import convert_gptq_v1_to_v2_format_module

    tensor = quantized(grid, order=order)
    stored = written(tmp_path, "gptq", tensor)
    bits = int(grid[3])
    module = TorchLinear(
        bits=bits,
        group_size=get_grid(grid).span or -1,
        sym=grid.endswith("-sym"),
        desc_act=order,
        in_features=SHAPE[1],
        out_features=SHAPE[0],
        bias=False,
        register_buffers=True,
    )
    module.load_state_dict(
        {part: stored[f"{MODULE}.{part}"] for part in ("qweight", "qzeros", "scales", "g_idx")},
        strict=False,
    )
    convert_gptq_v1_to_v2_format_module(module, bits=bits, pack_dtype=torch.int32)
    module.post_init()
    scale_I = stored[f"{MODULE}.scales"].float()
    assert torch.equal(scale_I.T, tensor.params["scale"].float())
    # Its own product of float16 scales and levels, rounded once.
    expected = values(tensor).half()
    assert torch.equal(module.dequantize_weight().T.half(), expected)


@pytest.mark.parametrize("grid", ["int4-g32-asym", "int4-g128-asym", "int4-g128-sym"])
def test_gptqmodel_reads_awq(grid: str, tmp_path: Path) -> None:
    import_gptqmodel()
    from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm

    tensor = quantized(grid)
    stored = written(tmp_path, "awq", tensor)
    parts = [stored[f"{MODULE}.{part}"] for part in ("qweight", "qzeros", "scales")]
    found = dequantize_gemm(*parts, 4, get_grid(grid).span)
    assert torch.equal(found.T.half(), values(tensor).half())


@pytest.mark.parametrize("grid", [name for name in INTEGERS if name[3] in "48"])
def test_compressed_tensors_reads_integers(grid: str, tmp_path: Path) -> None:
    tensor = quantized(grid)
    stored = written(tmp_path, "compressed-tensors", tensor)
    bits = int(grid[3])
    shape = torch.Size(stored[f"{MODULE}.weight_shape"])
    levels_OI = unpack_from_int32(stored[f"{MODULE}.weight_packed"], bits, shape).float()
    scale_OG = stored[f"{MODULE}.weight_scale"].float()
    zero_OG = torch.zeros_like(scale_OG)
    if grid.endswith("asym"):
        packed = stored[f"{MODULE}.weight_zero_point"]
        zeros = unpack_from_int32(packed, bits, scale_OG.shape, packed_dim=0)
        zero_OG = zeros.float()
    width = SHAPE[1] // scale_OG.shape[1]
    scale_OI, zero_OI = (part.repeat_interleave(width, dim=1) for part in (scale_OG, zero_OG))
    assert torch.equal(scale_OI * (levels_OI - zero_OI), values(tensor))


@pytest.mark.parametrize("format_", ["compressed-tensors", "modelopt"])
@pytest.mark.parametrize("grid", ["fp8-e4m3-tensor", "fp8-e4m3-channel", "fp8-e4m3-block128"])
def test_fp8(grid: str, format_: str, tmp_path: Path) -> None:
    if format_ == "modelopt" and grid != "fp8-e4m3-tensor":
        pytest.skip("ModelOpt's FP8 has one scale per tensor")
    tensor = quantized(grid)
    pieces = checkpoint_pieces(format_, weights_of(tensor, input_scale=0.25))
    stored = load_file(write_checkpoint(tmp_path, pieces)[0])
    scale = stored[f"{MODULE}.weight_scale"]
    blocks = scale.reshape(1, -1) if scale.ndim < 2 else scale
    rows, columns = (-(-size // n) for size, n in zip(SHAPE, blocks.shape, strict=True))
    wide = blocks.repeat_interleave(rows, 0)[: SHAPE[0]].repeat_interleave(columns, 1)
    assert torch.equal(stored[NAME].float() * wide[:, : SHAPE[1]], values(tensor))
    assert float(stored[f"{MODULE}.input_scale"]) == 0.25


def test_modelopt_packs_two_rows_in_a_byte(tmp_path: Path) -> None:
    tensor = quantized("int4-g128-sym")
    stored = written(tmp_path, "modelopt", tensor)
    scale_OG = stored[f"{MODULE}.weight_scale"].float()
    for row, column in ((0, 0), (1, 0), (6, 130), (63, 255)):
        byte = int(stored[NAME][row // 2, column])
        nibble = (byte >> 4 * (row % 2)) & 0xF
        level = nibble - 16 if nibble > 7 else nibble
        expected = float(values(tensor)[row, column])
        assert float(scale_OG[row, column // 128]) * level == expected
    # Without it TensorRT-LLM loads no linear that it does not fuse with others.
    assert torch.equal(stored[f"{MODULE}.pre_quant_scale"], torch.ones(SHAPE[1]).half())
    hf_quant = checkpoint_configs("modelopt", weights_of(tensor))["hf_quant_config.json"]
    assert hf_quant["quantization"]["quant_algo"] == "W4A16_AWQ"
    assert hf_quant["quantization"]["exclude_modules"] == ["lm_head"]


def test_configs_name_what_stays_a_float() -> None:
    weights = weights_of(quantized("int4-g128-asym"))
    section = checkpoint_configs("compressed-tensors", weights)["config.json"]
    assert section["ignore"] == ["lm_head"]
    assert section["config_groups"]["group_0"]["weights"]["symmetric"] is False
    section = checkpoint_configs("awq", weights)["config.json"]
    assert section["modules_to_not_convert"] == ["lm_head"]


def test_a_kv_cache_in_fp8_is_said(tmp_path: Path) -> None:
    scale = FloatWeight(shape=(1,), dtype=torch.float32, load=lambda: torch.tensor([0.5]))
    weights = weights_of(quantized("fp8-e4m3-tensor"), input_scale=0.25)
    weights["model.layers.0.self_attn.k_scale"] = scale
    section = checkpoint_configs("compressed-tensors", weights)["config.json"]
    assert section["kv_cache_scheme"]["type"] == "float"
    configs = checkpoint_configs("modelopt", weights)
    assert configs["hf_quant_config.json"]["quantization"]["kv_cache_quant_algo"] == "FP8"
    file = write_checkpoint(tmp_path, checkpoint_pieces("modelopt", weights))[0]
    assert "model.layers.0.self_attn.k_proj.k_scale" in load_file(file)


def test_a_zero_point_of_zero_is_refused_in_gptq(tmp_path: Path) -> None:
    w_OI = torch.rand(SHAPE) + 1
    tensor = rtn(w_OI, get_grid("int4-g128-asym"))
    with pytest.raises(QuantizationError, match="zero points are 0"):
        written(tmp_path, "gptq", tensor)
    assert not list(tmp_path.iterdir())


def test_what_a_format_lacks_is_refused() -> None:
    with pytest.raises(UsageError):
        checkpoint_pieces("awq", weights_of(quantized("int8-g128-sym")))
    ordered = quantized("int4-g128-sym", order=True)
    with pytest.raises(UsageError, match="an act-order cannot be stored as awq"):
        checkpoint_pieces("awq", weights_of(ordered))
    with pytest.raises(QuantizationError, match="no static scale"):
        checkpoint_pieces("modelopt", weights_of(quantized("fp8-e4m3-tensor")))


def test_several_files_and_an_index(tmp_path: Path) -> None:
    pieces = checkpoint_pieces("gptq", weights_of(quantized("int4-g32-asym")))
    for name in ("one", "many"):
        (tmp_path / name).mkdir()
    whole = load_file(write_checkpoint(tmp_path / "one", pieces)[0])
    index, *shards = write_checkpoint(tmp_path / "many", pieces, max_shard_bytes=1000)
    assert index.name == "model.safetensors.index.json"
    assert [shard.name for shard in shards] == [
        f"model-{number:05d}-of-00003.safetensors" for number in (1, 2, 3)
    ]
    found = json.loads(index.read_text())
    assert found["metadata"]["total_size"] == sum(of.nbytes for of in whole.values())
    joined: dict[str, Tensor] = {}
    for shard in shards:
        held = load_file(shard)
        assert all(found["weight_map"][name] == shard.name for name in held)
        joined |= held
    assert joined.keys() == whole.keys()
    assert all(torch.equal(joined[name], whole[name]) for name in whole)
    assert len({found["weight_map"][f"{MODULE}.{part}"] for part in ("qweight", "g_idx")}) == 1


def test_a_result_is_replaced_only_when_asked(tmp_path: Path) -> None:
    pieces = checkpoint_pieces("gptq", weights_of(quantized("int4-g32-sym")))
    write_checkpoint(tmp_path, pieces, max_shard_bytes=1000)
    with pytest.raises(ArtifactError, match="exists already"):
        write_checkpoint(tmp_path, pieces)
    write_checkpoint(tmp_path, pieces, overwrite=True)
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    pieces = checkpoint_pieces("gptq", weights_of(quantized("int4-g32-sym")))
    with full_disk(4096), pytest.raises(ArtifactError, match=r"full|cannot be written"):
        write_checkpoint(tmp_path, pieces)
    assert not list(tmp_path.iterdir())
