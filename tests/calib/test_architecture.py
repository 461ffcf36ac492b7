"""Names against gguf-py's own tables, and the tables' inputs and folds against the shapes."""

import math

import gguf
import pytest

from tightfit.calib.architecture import (
    ARCHITECTURES,
    DEEPSEEK_V3,
    architecture_of,
)
from tightfit.calib.dimensions import ModelDimensions
from tightfit.calib.family import Architecture, BlockKind, FoldKind
from tightfit.calib.models import MODELS
from tightfit.calib.shapes import tensor_shapes
from tightfit.errors import CheckpointError

FAMILY = {model.dimensions.model_type: model.dimensions for model in MODELS.values()}
KINDS = [
    pytest.param(family, kind, id=f"{family.model_type}-{name}")
    for family in ARCHITECTURES.values()
    for name, kind in family.blocks.items()
]
OTHER_LAYOUTS = {
    # kv_b in one piece, as before llama.cpp's latent cache; what old or other families have.
    *("ATTN_KV_B", "ATTN_K", "ATTN_V", "ATTN_ROT_EMBD", "ROPE_FREQS"),
}


def gguf_py_arch(family: Architecture) -> gguf.MODEL_ARCH:
    return next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == family.gguf_arch)


@pytest.mark.parametrize(("family", "kind"), KINDS)
def test_names_are_those_that_gguf_py_gives_the_checkpoints(
    family: Architecture, kind: BlockKind
) -> None:
    names = gguf.get_tensor_name_map(gguf_py_arch(family), 64)
    for parameter, gguf_name in kind.gguf_names.items():
        # llama.cpp's converter merges experts under this name, and renames the correction.
        merged = parameter.replace(".experts.*.", ".experts.")
        merged = merged.replace("e_score_correction_bias", "e_score_correction.bias")
        theirs = names.get_name(f"model.layers.3.{merged}", try_suffixes=(".weight", ".bias"))
        assert theirs == f"blk.3.{gguf_name}"


def test_deepseek_v3_has_every_tensor_that_gguf_py_lists() -> None:
    arch = gguf.MODEL_ARCH.DEEPSEEK2
    theirs = {gguf.TENSOR_NAMES[tensor] for tensor in gguf.MODEL_TENSORS[arch]}
    theirs -= {gguf.TENSOR_NAMES[gguf.MODEL_TENSOR[name]] for name in OTHER_LAYOUTS}
    inside = {name for kind in DEEPSEEK_V3.blocks.values() for name in kind.gguf_names.values()}
    ours = {f"blk.{{bid}}.{name.rsplit('.', 1)[0]}" for name in inside}
    assert ours | {"token_embd", "output_norm", "output"} == theirs


def test_the_blocks_of_r1() -> None:
    dimensions = FAMILY["deepseek_v3"]
    kinds = [DEEPSEEK_V3.block_kind(layer, dimensions) for layer in range(61)]
    assert all("mlp.gate_proj.weight" in kind.gguf_names for kind in kinds[:3])
    assert all("mlp.gate.weight" in kind.gguf_names for kind in kinds[3:])
    names = DEEPSEEK_V3.gguf_names(dimensions)
    assert names["model.layers.3.mlp.experts.*.down_proj.weight"] == "blk.3.ffn_down_exps.weight"
    assert names["model.layers.60.self_attn.v_b_proj.weight"] == "blk.60.attn_v_b.weight"
    assert len(set(names.values())) == len(names)


@pytest.mark.parametrize("dimensions", FAMILY.values(), ids=FAMILY.keys())
def test_widths_of_inputs_and_folds_agree(dimensions: ModelDimensions) -> None:
    """What reads an input has its width as columns; what absorbs a scale has it as rows."""
    family = architecture_of(dimensions.model_type)
    shapes = tensor_shapes(family, dimensions)
    n_groups = dimensions.n_heads // dimensions.n_kv_heads
    for layer in range(dimensions.n_layers):
        for source in family.block_kind(layer, dimensions).inputs:
            readers = [
                shapes[family.tensor(layer, f"{path}.weight")]
                for path in (*source.linears, *source.scaled_columns)
            ]
            (width,) = {shape[-1] for shape in readers}
            for path in source.scaled_rows:
                assert shapes[family.tensor(layer, f"{path}.weight")][-2] == width
            if source.fold_kind is None:
                continue
            absorbing = shapes[family.tensor(layer, f"{source.fold_into}.weight")]
            if source.fold_kind is FoldKind.NORM:
                assert absorbing == (width,)
            elif "*" in source.fold_into:
                assert absorbing[-2] == width
            else:
                shared = n_groups if source.fold_kind is FoldKind.GROUPED_VALUE else 1
                assert math.prod(absorbing[:-1]) * shared == width


@pytest.mark.parametrize(("family", "kind"), KINDS)
def test_every_matrix_is_a_linear_or_routes(family: Architecture, kind: BlockKind) -> None:
    weights = {f"{path}.weight" for path in kind.linears}
    assert len(weights) == len(kind.linears), "a linear reads one input"
    norms = {name for name in kind.gguf_names if "norm" in name}
    biases = {name for name in kind.gguf_names if name.endswith(".bias")}
    assert weights | norms | biases | kind.routing == set(kind.gguf_names)


def test_names_of_the_mtp_layer_are_those_of_gguf_py() -> None:
    """GLM's converter has the same layer, of the same names, after its last one."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GLM4_MOE, 62)
    dimensions = FAMILY["deepseek_v3"]
    ours = DEEPSEEK_V3.mtp_gguf_names(dimensions)
    for parameter in DEEPSEEK_V3.mtp_names:
        name = f"model.layers.61.{parameter}"
        assert ours.pop(name) == names.get_name(name, try_suffixes=(".weight",))
    inside = DEEPSEEK_V3.block_kind(61, dimensions).gguf_names
    assert set(ours.values()) == {f"blk.61.{name}" for name in inside.values()}
    assert not DEEPSEEK_V3.mtp_gguf_names(dimensions).keys() & DEEPSEEK_V3.gguf_names(dimensions)
    assert not ARCHITECTURES["qwen2"].mtp_gguf_names(FAMILY["qwen2"])


def test_an_unknown_family_is_refused() -> None:
    assert architecture_of("deepseek_v3") is DEEPSEEK_V3
    with pytest.raises(CheckpointError, match="'mamba' is not a family") as caught:
        architecture_of("mamba")
    assert caught.value.allowed == "families: qwen2, qwen3, llama, deepseek_v3"
