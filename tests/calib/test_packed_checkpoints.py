"""Quantized checkpoints by the names of their weights, against a packer that writes bit strings."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.checkpoints import make_checkpoint, rewrite_tensors
from support.deepseek_v3 import make_deepseek_v3
from support.packed_checkpoints import Form, draw, pack, section, to_packed

from tightfit.calib.checkpoint import Checkpoint, open_checkpoint
from tightfit.calib.validate import validate

FORMS = [
    *(
        Form(name=name, bits=bits, group_size=size, symmetric=size == 32, act_order=bits == 3)
        for name in ("gptq", "gptq_v2")
        for bits, size in ((2, 64), (3, 32), (3, 64), (4, 32), (4, 128), (8, 32), (8, 0))
    ),
    Form(name="gptq", act_order=True, symmetric=False, scale_dtype=torch.bfloat16),
    Form(name="gptq", group_size=0, act_order=True),
    Form(name="awq", symmetric=False),
    Form(name="awq", group_size=128, symmetric=True, scale_dtype=torch.bfloat16),
    Form(name="awq", group_size=0, symmetric=False),
    *(
        Form(name="pack-quantized", bits=bits, group_size=size, symmetric=symmetric)
        for bits in (4, 8)
        for size, symmetric in ((32, True), (128, False), (0, False))
    ),
    Form(name="pack-quantized", act_order=True, scale_dtype=torch.float32),
    Form(name="int-quantized", bits=8, group_size=0, scale_dtype=torch.bfloat16),
    Form(name="int-quantized", bits=8, group_size=64, symmetric=False),
    Form(name="modelopt", group_size=128, scale_dtype=torch.float32),
    Form(name="modelopt", group_size=64, scale_dtype=torch.bfloat16),
]
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small, and every width is another: 128, 64, 192."""
    root = tmp_path_factory.mktemp("plain")
    config = {"num_hidden_layers": 1, "intermediate_size": 192 * 2, "num_key_value_heads": 2}
    return make_checkpoint(root / "llama", "llama", hidden=128, **config)


def opened(folder: Path) -> Checkpoint:
    checkpoint = open_checkpoint(folder)
    validate(checkpoint, checkpoint.architecture)
    return checkpoint


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f"{f.name}-{f.grid}-{f.act_order}")
def test_weights_have_the_numbers_that_were_packed(plain: Path, tmp_path: Path, form: Form) -> None:
    drawn = to_packed(plain, tmp_path / "packed", form)
    floats = load_file(plain / "model.safetensors")
    checkpoint = opened(tmp_path / "packed")
    assert set(checkpoint.names()) == set(floats)
    assert len(checkpoint.names()) == len(floats)
    for name, before in floats.items():
        assert checkpoint.shape(name) == before.shape
        if name not in drawn:
            assert checkpoint.stored_grid(name) is None
            assert checkpoint.load_integer(name) is None
            assert checkpoint.load(name).equal(before)
            continue
        loaded = checkpoint.load(name)
        assert loaded.dtype == torch.float32
        assert loaded.equal(drawn[name].values())
        assert checkpoint.stored_grid(name) == form.grid
        assert not checkpoint.stored_dtype(name).is_floating_point
        stored = checkpoint.load_integer(name)
        assert stored is not None
        assert (stored.bits, stored.group_size) == (form.bits, form.group_size)
        assert stored.symmetric == form.symmetric
        assert stored.codes_OI.dtype == stored.zero_OG.dtype == torch.uint8
        assert stored.codes_OI.long().equal(drawn[name].codes_OI)
        assert stored.zero_OG.long().equal(drawn[name].zero_OG)
        assert stored.scale_OG.equal(drawn[name].scale_OG)
        assert stored.scale_OG.dtype == form.scale_dtype
        is_ordered = form.act_order and len(set(drawn[name].group_I.tolist())) > 1
        assert (stored.group_index_I is not None) == is_ordered
        if stored.group_index_I is not None:
            assert stored.group_index_I.dtype == torch.int32
            assert stored.group_index_I.long().equal(drawn[name].group_I)
    assert checkpoint.load_float8(Q_PROJ) is None


def test_groups_in_turn_are_no_act_order_whatever_the_config_says(
    plain: Path, tmp_path: Path
) -> None:
    form = Form(name="gptq")
    to_packed(plain, tmp_path / "packed", form)
    edit_section(tmp_path / "packed", desc_act=True)
    stored = opened(tmp_path / "packed").load_integer(Q_PROJ)
    assert stored is not None
    assert stored.group_index_I is None


def test_group_indices_may_be_left_out_without_an_act_order(plain: Path, tmp_path: Path) -> None:
    drawn = to_packed(plain, tmp_path / "packed", Form(name="gptq"))
    tensors = load_file(tmp_path / "packed" / "model.safetensors")
    left = {name: value for name, value in tensors.items() if not name.endswith(".g_idx")}
    rewrite_tensors(tmp_path / "packed", left)
    assert opened(tmp_path / "packed").load(Q_PROJ).equal(drawn[Q_PROJ].values())


@pytest.mark.parametrize("form", [Form(name="gptq"), Form(name="modelopt", group_size=64)])
def test_experts_one_by_one_are_a_stack(tmp_path: Path, form: Form) -> None:
    plain = make_deepseek_v3(
        tmp_path / "plain",
        mtp=True,
        num_hidden_layers=2,
        n_routed_experts=8,
        kv_lora_rank=64,
        moe_intermediate_size=64,
        qk_nope_head_dim=32,
        v_head_dim=32,
    )
    drawn = to_packed(plain, tmp_path / "packed", form)
    checkpoint = opened(tmp_path / "packed")
    assert set(checkpoint.names()) == set(load_file(plain / "model.safetensors"))
    stack = "model.layers.1.mlp.experts.*.up_proj.weight"
    experts = [drawn[stack.replace("*", str(number))].values() for number in range(8)]
    assert checkpoint.shape(stack) == (8, *experts[0].shape)
    assert checkpoint.load(stack).equal(torch.stack(experts))
    assert checkpoint.load_integer(stack) is None
    assert checkpoint.stored_grid(stack.replace("*", "3")) == form.grid
    assert checkpoint.is_packed(stack.replace("*", "3"))
    assert checkpoint.stored_grid("model.layers.1.mlp.gate.weight") is None
    assert checkpoint.mtp_names()


def test_a_packed_head_is_one_more_matrix(plain: Path, tmp_path: Path) -> None:
    form = Form(name="awq", symmetric=False)
    folder = tmp_path / "packed"
    to_packed(plain, folder, form)
    head = draw((512, 128), form, seed=99)
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    tensors |= {f"lm_head{suffix}": part for suffix, part in pack(head, form).items()}
    rewrite_tensors(folder, tensors)
    checkpoint = opened(folder)
    assert checkpoint.load("lm_head.weight").equal(head.values())


def test_modelopt_says_what_it_is_beside_config_json(plain: Path, tmp_path: Path) -> None:
    form = Form(name="modelopt", group_size=64)
    folder = tmp_path / "packed"
    drawn = to_packed(plain, folder, form)
    config = json.loads((folder / "config.json").read_text())
    said = config.pop("quantization_config")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "hf_quant_config.json").write_text(
        json.dumps({"producer": {"name": "modelopt"}, "quantization": said})
    )
    checkpoint = opened(folder)
    assert checkpoint.load(Q_PROJ).equal(drawn[Q_PROJ].values())
    assert folder / "hf_quant_config.json" in checkpoint.files
    # Some versions leave the group size out of config.json.
    less = {key: value for key, value in said.items() if key != "group_size"}
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": less}))
    assert opened(folder).stored_grid(Q_PROJ) == form.grid


def test_modelopt_fp8_has_one_scale_a_matrix(plain: Path, tmp_path: Path) -> None:
    folder = tmp_path / "fp8"
    to_packed(plain, folder, Form(name="modelopt", group_size=64))
    tensors = load_file(plain / "model.safetensors")
    values = tensors[Q_PROJ].float()
    stem = Q_PROJ.removesuffix(".weight")
    tensors[Q_PROJ] = (values * 100).to(torch.float8_e4m3fn)
    tensors[f"{stem}.weight_scale"] = torch.tensor(0.01)
    tensors[f"{stem}.input_scale"] = torch.tensor(0.5)
    tensors["model.layers.0.self_attn.k_proj.k_scale"] = torch.tensor(0.5)
    rewrite_tensors(folder, tensors)
    edit_section(folder, quant_algo="FP8")
    checkpoint = opened(folder)
    assert checkpoint.stored_grid(Q_PROJ) == "fp8-e4m3-tensor"
    assert checkpoint.packed is None
    expected = tensors[Q_PROJ].float() * torch.tensor(0.01)
    assert checkpoint.load(Q_PROJ).equal(expected)


def test_several_groups_of_modules_on_one_grid_are_one_scheme(plain: Path, tmp_path: Path) -> None:
    form = Form(name="pack-quantized")
    drawn = to_packed(plain, tmp_path / "packed", form)
    group = section(form)["config_groups"]["group_0"]
    groups = {
        "group_0": group | {"targets": ["re:.*self_attn.*"], "format": "pack-quantized"},
        "group_1": group | {"targets": ["re:.*mlp.*"]},
        "kv": {"targets": ["LlamaAttention"], "weights": None},
    }
    edit_section(tmp_path / "packed", config_groups=groups)
    assert opened(tmp_path / "packed").load(Q_PROJ).equal(drawn[Q_PROJ].values())


def edit_section(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] |= values
    path.write_text(json.dumps(config))
