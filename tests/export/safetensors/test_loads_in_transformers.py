"""Small models as written here, run by transformers, against the same model with our numbers.

Shape legend: T tokens, O output rows, I input columns.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.checkpoints import make_checkpoint
from support.quiet_gptqmodel import import_gptqmodel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

from tightfit.export.safetensors.file import write_checkpoint
from tightfit.export.safetensors.formats import checkpoint_configs, checkpoint_pieces
from tightfit.export.weights import FloatWeight, QuantizedWeight, Weight
from tightfit.quant.algorithms.rtn import rtn
from tightfit.quant.registry import get_grid

pytestmark = pytest.mark.slow

IDS = torch.arange(3, 43)[None]
SPARED = "model.layers.1.mlp.up_proj.weight"
INPUT_SCALE = 0.02
E4M3_MAX = 448.0
HALF_ROUNDING = 1e-3
"""Relative difference of logits where a kernel rounds the weights to float16 once more."""
INPUT_ROUNDING = 2e-3
"""The same where inputs are rounded to FP8: sums in another order move a few over a border."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """A checkpoint, and the model that it must be."""

    folder: Path
    values: dict[str, Tensor]
    reference: nn.Module


Write = Callable[..., Written]


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("qwen2") / "model", "qwen2")


@pytest.fixture
def write(qwen2: Path, tmp_path: Path) -> Write:
    def make(
        format_: str,
        grid: str,
        *,
        order: bool = False,
        spared: str = "",
        input_scale: float | None = None,
    ) -> Written:
        weights: dict[str, Weight] = {}
        for name, tensor in load_file(qwen2 / "model.safetensors").items():
            if name.endswith("_proj.weight") and name != spared:
                weights[name] = quantized(tensor.float(), grid, order, input_scale)
            else:
                weights[name] = as_float(tensor.half())
        folder = tmp_path / "written"
        shutil.copytree(qwen2, folder, ignore=shutil.ignore_patterns("*.safetensors"))
        write_checkpoint(folder, checkpoint_pieces(format_, weights), max_shard_bytes=500_000)
        config = json.loads((qwen2 / "config.json").read_text())
        section = checkpoint_configs(format_, weights)["config.json"]
        document = config | {"quantization_config": section}
        (folder / "config.json").write_text(json.dumps(document))
        values = {name: weight.values() for name, weight in weights.items()}
        reference = AutoModelForCausalLM.from_pretrained(qwen2, dtype=torch.float32).eval()
        reference.load_state_dict(values)
        return Written(folder=folder, values=values, reference=reference)

    return make


def quantized(w_OI: Tensor, grid: str, order: bool, input_scale: float | None) -> QuantizedWeight:
    tensor = rtn(w_OI, get_grid(grid))
    if order:
        group_I = torch.arange(w_OI.shape[1], dtype=torch.int32) // get_grid(grid).span
        shuffled = torch.randperm(len(group_I), generator=torch.Generator().manual_seed(0))
        tensor = replace(tensor, group_index_I=group_I[shuffled])
    return QuantizedWeight(
        shape=tensor.shape,
        grid=grid,
        load=lambda: tensor,
        group_index_I=tensor.group_index_I,
        input_scale=input_scale,
    )


def as_float(tensor: Tensor) -> FloatWeight:
    return FloatWeight(shape=tuple(tensor.shape), dtype=tensor.dtype, load=lambda: tensor)


def loaded(written: Written, **options: Any) -> nn.Module:
    model, info = AutoModelForCausalLM.from_pretrained(
        written.folder, dtype=torch.float32, output_loading_info=True, **options
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return model.eval()


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(IDS).logits.float()


def difference(model: nn.Module, written: Written) -> float:
    expected = logits(written.reference)
    return float((logits(model) - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    ("format_", "grid", "options"),
    [
        ("gptq", "int4-g128-sym", {"order": True}),
        ("gptq", "int4-g32-asym", {}),
        ("gptq", "int4-g32-sym", {"spared": SPARED}),
        ("gptq", "int3-g32-sym", {}),
        ("gptq", "int8-channel-sym", {}),
        ("awq", "int4-g32-asym", {}),
        ("awq", "int4-g128-sym", {"spared": SPARED}),
    ],
)
def test_through_gptqmodel(format_: str, grid: str, options: dict[str, Any], write: Write) -> None:
    import_gptqmodel()
    written = write(format_, grid, **options)
    model = loaded(written)
    spared = model.get_submodule(SPARED.removesuffix(".weight"))
    assert isinstance(spared, nn.Linear) == ("spared" in options)
    assert difference(model, written) < HALF_ROUNDING


@pytest.mark.parametrize("spared", ["", SPARED])
@pytest.mark.parametrize("grid", ["int4-g32-sym", "int4-channel-sym", "int8-g128-sym"])
def test_compressed_tensors(grid: str, spared: str, write: Write) -> None:
    written = write("compressed-tensors", grid, spared=spared)
    assert torch.equal(logits(loaded(written)), logits(written.reference))


@pytest.mark.parametrize("grid", ["int4-g32-asym", "int8-channel-asym"])
def test_asymmetric_compressed_tensors(grid: str, write: Write) -> None:
    # Packed zero points load only so: else transformers expects them unpacked, and refuses.
    written = write("compressed-tensors", grid)
    held = loaded(written, quantization_config=CompressedTensorsConfig(dequantize=True))
    for name, values in held.state_dict().items():
        # It multiplies in the type of the scales.
        assert torch.equal(values, written.values[name].half().float()), name


@pytest.mark.parametrize(
    ("grid", "input_scale"),
    [
        ("fp8-e4m3-tensor", INPUT_SCALE),
        ("fp8-e4m3-tensor", None),
        ("fp8-e4m3-channel", INPUT_SCALE),
        ("fp8-e4m3-channel", None),
        ("fp8-e4m3-block128", None),
    ],
)
def test_fp8_rounds_inputs_as_config_says(
    grid: str, input_scale: float | None, write: Write
) -> None:
    written = write("compressed-tensors", grid, input_scale=input_scale)
    model = loaded(written)
    assert difference(model, written) > 10 * INPUT_ROUNDING, "inputs are not rounded at all"
    width = 128 if grid.endswith("block128") else None
    for name, module in written.reference.named_modules():
        if name.endswith("_proj"):
            module.register_forward_pre_hook(
                lambda _module, inputs: (rounded_input(inputs[0], input_scale, width),)
            )
    assert difference(model, written) < INPUT_ROUNDING


def rounded_input(x_TI: Tensor, scale: float | None, width: int | None) -> Tensor:
    """To E4M3: with one scale for all, or one per token, or per token and `width` channels."""
    groups = x_TI.unflatten(-1, (-1, width or x_TI.shape[-1]))
    scales = groups.abs().amax(-1, keepdim=True) / E4M3_MAX if scale is None else scale
    levels = (groups / scales).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).float()
    return (levels * scales).flatten(-2)
