"""Every way in which a packed checkpoint can be wrong has its own sentence."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.checkpoints import make_checkpoint, rewrite_tensors
from support.packed_checkpoints import Form, section, to_packed
from torch import Tensor

from tightfit.calib.checkpoint import Checkpoint, open_checkpoint
from tightfit.calib.validate import validate
from tightfit.errors import CheckpointError

Q = "model.layers.0.self_attn.q_proj"
FORMS = {
    "gptq": Form(name="gptq"),
    "gptq asym": Form(name="gptq", symmetric=False),
    "act-order": Form(name="gptq", act_order=True),
    "gptq_v2": Form(name="gptq_v2"),
    "awq": Form(name="awq", symmetric=False),
    "packed": Form(name="pack-quantized"),
    "packed asym": Form(name="pack-quantized", symmetric=False),
    "packed ordered": Form(name="pack-quantized", act_order=True),
    "int8": Form(name="int-quantized", bits=8, symmetric=False),
    "modelopt": Form(name="modelopt", group_size=64),
}
Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("originals")
    config = {"num_hidden_layers": 1, "intermediate_size": 192}
    plain = make_checkpoint(root / "plain", "llama", hidden=128, **config)
    tied = make_checkpoint(root / "plain tied", "llama", hidden=128, tie=True, **config)
    wide = make_checkpoint(root / "plain wide", "llama", hidden=192, **config)
    for name, form in FORMS.items():
        to_packed(plain, root / name, form)
    to_packed(tied, root / "tied", Form(name="gptq"))
    to_packed(wide, root / "wide", Form(name="gptq", group_size=64))
    return {name: root / name for name in (*FORMS, "tied", "wide")} | {"plain": plain}


def edit_config(folder: Path, edit: Callable[[dict], object]) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    edit(config)
    path.write_text(json.dumps(config))


def said(**values: object) -> Damage:
    """Another `quantization_config`."""
    return lambda folder: edit_config(
        folder, lambda config: config["quantization_config"].update(values)
    )


def said_of_weights(**values: object) -> Damage:
    """Another scheme of the only group of modules."""

    def edit(config: dict) -> None:
        config["quantization_config"]["config_groups"]["group_0"]["weights"] |= values

    return lambda folder: edit_config(folder, edit)


def stored(edit: Callable[[dict[str, Tensor]], object]) -> Damage:
    """Other tensors."""

    def damage(folder: Path) -> None:
        tensors = {n: t.clone() for n, t in load_file(folder / "model.safetensors").items()}
        edit(tensors)
        rewrite_tensors(folder, tensors)

    return damage


def part(suffix: str, change: Callable[[Tensor], Tensor]) -> Damage:
    """Another value of one part of the query projection."""
    name = Q + suffix
    return stored(lambda tensors: tensors.update({name: change(tensors[name]).contiguous()}))


def gone(suffix: str) -> Damage:
    return stored(lambda tensors: tensors.pop(Q + suffix))


def more(**tensors: Tensor) -> Damage:
    return stored(lambda held: held.update({Q + "." + name: t for name, t in tensors.items()}))


def cut(part_XY: Tensor) -> Tensor:
    return part_XY[:-1]


def two_schemes(folder: Path) -> None:
    one = section(Form(name="pack-quantized"))["config_groups"]["group_0"]
    other = section(Form(name="pack-quantized", group_size=64))["config_groups"]["group_0"]
    said(config_groups={"group_0": one, "group_1": other})(folder)


def another_format_inside(folder: Path) -> None:
    group = section(Form(name="pack-quantized"))["config_groups"]["group_0"]
    said(config_groups={"group_0": group | {"format": "nvfp4-pack-quantized"}})(folder)


def declared(**values: object) -> Damage:
    """A scheme for a checkpoint of floats."""
    return lambda folder: edit_config(folder, lambda config: config.update(values))


CASES: Mapping[str, tuple[str, Damage, str]] = {
    # What config.json says.
    "bits": ("gptq", said(bits=5), "'bits' is 5 (allowed: 2, 3, 4, 8)"),
    "no bits": ("gptq", said(bits=None), "'bits' is missing"),
    "group size": ("gptq", said(group_size=96), "'group_size' is 96 (allowed: 32, 64, 128, or -1"),
    "no group size": ("gptq", said(group_size=None), "'group_size' is None"),
    "overrides": ("gptq", said(dynamic={"+:.*k_proj": {"bits": 8}}), "'dynamic' is"),
    "marlin": ("gptq", said(checkpoint_format="marlin"), "'checkpoint_format' is 'marlin'"),
    "marlin flag": ("gptq", said(is_marlin_format=True), "'is_marlin_format' is True"),
    "words": ("gptq", said(pack_dtype="int64"), "'pack_dtype' is 'int64'"),
    "sym no flag": ("gptq", said(sym="yes"), "'sym' is 'yes'"),
    "gemv": ("awq", said(version="gemv"), "'version' is 'gemv' (allowed: gemm)"),
    "awq bits": ("awq", said(bits=8), "'bits' is 8 (allowed: 4)"),
    "awq overrides": ("awq", said(dynamic={"+:.*": {}}), "'dynamic' is '+:.*'"),
    "rotated": ("gptq", said(rotation="hadamard"), "'rotation' is 'hadamard'"),
    "two forms": (
        "gptq",
        said(format="gptq", checkpoint_format="gptq_v2"),
        "(allowed: the same as checkpoint_format)",
    ),
    "another awq": ("awq", said(checkpoint_format="gemv_fast"), "'checkpoint_format' is 'gemv"),
    "int2": ("packed", said_of_weights(num_bits=2), "'num_bits' is 2 (allowed: 4, 8)"),
    "int4 in bytes": ("int8", said_of_weights(num_bits=4), "'num_bits' is 4 (allowed: 8)"),
    "float": ("packed", said_of_weights(type="float"), "'type' is 'float' (allowed: int)"),
    "strategy": ("packed", said_of_weights(strategy="block"), "'strategy' is 'block'"),
    "mixed schemes": ("packed", two_schemes, "group_0 int4-g32-sym, group_1 int4-g64-sym"),
    "mixed formats": ("packed", another_format_inside, "'format' is 'nvfp4-pack-quantized'"),
    "no groups": ("packed", said(config_groups={}), "'config_groups' is ''"),
    "algorithm": ("modelopt", said(quant_algo="NVFP4"), "'quant_algo' is 'NVFP4' (allowed: W4A16"),
    "no algorithm": ("modelopt", said(quant_algo=None), "'quant_algo' is missing"),
    "zero points": ("modelopt", said(has_zero_point=True), "'has_zero_point' is True"),
    # What config.json says against what headers say.
    "other bits": ("gptq", said(bits=8), ".qweight' has the shape (16, 128) ((32, 128) for"),
    "other group": ("gptq", said(group_size=64), ".qzeros' has the shape (4, 16) ((2, 16) for"),
    "other awq group": ("awq", said(group_size=128), ".qzeros' has the shape (4, "),
    "other packed group": (
        "packed",
        said_of_weights(group_size=64),
        ".weight_scale' has the shape (128, 4) ((128, 2) for",
    ),
    "other modelopt group": (
        "modelopt",
        said(group_size=128),
        ".weight_scale' has the shape (128, 2) ((128, 1) for",
    ),
    "another method": ("awq", said(quant_method="gptq"), ".qweight' has the shape"),
    "compressed, said gptq": (
        "packed",
        said(quant_method="gptq", format="gptq", bits=4, group_size=32),
        "already quantized (compressed-tensors, packed)",
    ),
    "width": ("wide", said(group_size=128), "it has 192 columns (a multiple of 128 columns)"),
    "rows": (
        "gptq",
        lambda f: edit_config(f, lambda c: c.update(intermediate_size=196)),
        "it has 196 rows (a multiple of 8 rows)",
    ),
    "nothing is packed": (
        "plain",
        declared(quantization_config=section(Form(name="gptq"))),
        "promises int4-g32-sym, and no tensor is stored so",
    ),
    "nothing is packed in bytes": (
        "plain",
        declared(quantization_config=section(Form(name="modelopt"))),
        "promises int4-g32-sym, and no tensor is stored so",
    ),
    "undeclared": (
        "gptq",
        lambda f: edit_config(f, lambda c: c.pop("quantization_config")),
        "already quantized (GPTQ or AWQ)",
    ),
    "undeclared bytes": (
        "int8",
        lambda f: edit_config(f, lambda c: c.pop("quantization_config")),
        "stored as torch.int8",
    ),
    # Parts.
    "no codes": ("gptq", gone(".qweight"), "is there, and its codes are not"),
    "no packed codes": ("packed", gone(".weight_packed"), "is there, and its codes are not"),
    "float codes": ("modelopt", part(".weight", lambda t: t.half()), "and its codes are not"),
    "no zeros": ("gptq", gone(".qzeros"), f"'{Q}.qzeros' is missing"),
    "no scales": ("awq", gone(".scales"), f"'{Q}.scales' is missing"),
    "no packed scales": ("packed", gone(".weight_scale"), f"'{Q}.weight_scale' is missing"),
    "no shape": ("packed", gone(".weight_shape"), f"'{Q}.weight_shape' is missing"),
    "no zero points": ("packed asym", gone(".weight_zero_point"), "zero_point' is missing"),
    "no order": ("act-order", gone(".g_idx"), f"'{Q}.g_idx' is missing"),
    "no packed order": ("packed ordered", gone(".weight_g_idx"), "weight_g_idx' is missing"),
    "no int8 scales": ("int8", gone(".weight_scale"), "weight_scale' is missing"),
    "no int8 zero points": ("int8", gone(".weight_zero_point"), "weight_zero_point' is missing"),
    "no modelopt scales": ("modelopt", gone(".weight_scale"), "weight_scale' is missing"),
    "codes cut": ("gptq", part(".qweight", cut), "has the shape (15, 128)"),
    "zeros cut": ("gptq", part(".qzeros", cut), "has the shape (3, 16)"),
    "order cut": ("act-order", part(".g_idx", cut), "has the shape (127,)"),
    "awq codes cut": ("awq", part(".qweight", cut), "has the shape (127, 16)"),
    "shape cut": ("packed", part(".weight_shape", cut), "has the shape (1,)"),
    "pairs cut": ("modelopt", part(".weight", cut), "has the shape (63, 128)"),
    "flat codes": ("gptq", part(".qweight", torch.flatten), "has the shape (2048,)"),
    "long codes": ("gptq", part(".qweight", Tensor.long), "stored as torch.int64"),
    "whole scales": ("gptq", part(".scales", Tensor.int), "stored as torch.int32"),
    "double scales": ("awq", part(".scales", Tensor.double), "stored as torch.float64"),
    "loose zero points": (
        "packed asym",
        part(".weight_zero_point", lambda _: torch.zeros(128, 4, dtype=torch.int8)),
        "weight_zero_point' has the shape (128, 4)",
    ),
    "twice": ("gptq", more(weight=torch.zeros(128, 128)), "is there twice"),
    "left": ("gptq", more(wscale=torch.ones(1)), "that no part of a llama model"),
    "pre-scaled inputs of another format": (
        "gptq",
        more(pre_quant_scale=torch.ones(128)),
        "ModelOpt, with inputs that are scaled",
    ),
    "packed norm": (
        "gptq",
        stored(
            lambda t: t.update(
                {
                    "model.norm.qweight": torch.zeros(16, 128, dtype=torch.int32),
                    "model.norm.weight_": t.pop("model.norm.weight"),
                }
            )
        ),
        "is packed, and config.json promises (128,)",
    ),
    "tied head": (
        "tied",
        stored(
            lambda t: t.update(
                {f"lm_head.{s}": t[f"{Q}.{s}"].clone() for s in ("qweight", "qzeros", "scales")}
            )
        ),
        "ties 'lm_head.weight' to the embedding, and it is packed by itself",
    ),
}


def opened(folder: Path) -> Checkpoint:
    checkpoint = open_checkpoint(folder)
    validate(checkpoint, checkpoint.architecture)
    return checkpoint


@pytest.mark.parametrize("case", CASES)
def test_refused_with_its_own_sentence(
    case: str, originals: dict[str, Path], tmp_path: Path
) -> None:
    original, damage, sentence = CASES[case]
    folder = tmp_path / "model"
    shutil.copytree(originals[original], folder)
    damage(folder)
    with pytest.raises(CheckpointError) as caught:
        opened(folder)
    assert caught.value.hint
    assert sentence in f"{caught.value.problem} ({caught.value.allowed})"


def set_first(value: int) -> Callable[[Tensor], Tensor]:
    def change(part_X: Tensor) -> Tensor:
        part_X.view(-1)[0] = value
        return part_X

    return change


LOADED: Mapping[str, tuple[str, Damage, str, str]] = {
    "pre-scaled inputs": (
        "modelopt",
        more(pre_quant_scale=torch.full((128,), 2.0)),
        "its input is multiplied by pre_quant_scale",
        "give the model",
    ),
    "asymmetric after all": (
        "gptq",
        part(".qzeros", set_first(0x77777776)),
        "says that it is symmetric, and 1 of 512 zero points are not 8",
        '"sym": false',
    ),
    "said symmetric": ("awq", said(zero_point=False), "are not 8", '"zero_point": true'),
    "symmetric with zero points": (
        "packed asym",
        said_of_weights(symmetric=True),
        "are not 8",
        '"symmetric": false',
    ),
    "said version 2": ("gptq", said(checkpoint_format="gptq_v2"), "512 of 512", '"sym": false'),
    "said version 1": ("gptq_v2", said(checkpoint_format="gptq"), "512 of 512", '"sym": false'),
    "a zero point of 0": (
        "gptq asym",
        part(".qzeros", set_first(0x0000000F)),
        "1 of 512 zero points are stored as 15",
        "gptq_v2",
    ),
    "order denied": ("act-order", said(desc_act=False), "reorders its columns", "desc_act"),
    "packed order denied": (
        "packed ordered",
        said_of_weights(actorder="weight"),
        "reorders its columns",
        "actorder",
    ),
    "group out of range": (
        "act-order",
        part(".g_idx", set_first(99)),
        "not every one of its 4 groups has 32 columns",
        "damaged",
    ),
    "negative group": (
        "act-order",
        part(".g_idx", set_first(-1)),
        "not every one of its 4 groups",
        "damaged",
    ),
    "another shape": (
        "packed",
        part(".weight_shape", set_first(64)),
        "weight_shape says (64, 128)",
        "damaged",
    ),
}


@pytest.mark.parametrize("case", LOADED)
def test_refused_when_loaded(case: str, originals: dict[str, Path], tmp_path: Path) -> None:
    original, damage, sentence, hint = LOADED[case]
    folder = tmp_path / "model"
    shutil.copytree(originals[original], folder)
    damage(folder)
    checkpoint = opened(folder)
    for load in (checkpoint.load, checkpoint.load_integer):
        with pytest.raises(CheckpointError) as caught:
            load(f"{Q}.weight")
        assert caught.value.problem.startswith(f"{Q}.weight: ")
        assert sentence in caught.value.problem
        assert hint in caught.value.hint
