"""What compressed-tensors and gptqmodel packed, read by us, against their own dequantization."""

from typing import Any

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
from support.packed_checkpoints import Drawn, Form, draw
from support.quiet_gptqmodel import import_gptqmodel
from torch import Tensor, nn

from tightfit.calib.config import ModelConfig
from tightfit.calib.packed.scheme import PackedScheme
from tightfit.calib.stored_precision import read_precision

SHAPE = (96, 256)


def scheme_of(section: dict[str, Any]) -> PackedScheme:
    scheme = read_precision(ModelConfig(origin="c", values={"quantization_config": section}))
    assert isinstance(scheme, PackedScheme)
    return scheme


@pytest.mark.parametrize("group_size", [0, 32, 128])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    ("form", "bits"), [("pack-quantized", 4), ("pack-quantized", 8), ("int-quantized", 8)]
)
def test_compressed_tensors(bits: int, group_size: int, symmetric: bool, form: str) -> None:
    drawn = draw(
        SHAPE,
        Form(
            name=form,
            bits=bits,
            group_size=group_size,
            symmetric=symmetric,
            scale_dtype=torch.float32,
        ),
    )
    args = QuantizationArgs(
        num_bits=bits,
        type="int",
        strategy="group" if group_size else "channel",
        group_size=group_size or None,
        symmetric=symmetric,
    )
    theirs = QuantizationScheme(targets=["Linear"], weights=args, format=form)
    half = 1 << (bits - 1)
    state = {
        "weight": drawn.values(),
        "weight_scale": drawn.scale_OG,
        "weight_zero_point": (drawn.zero_OG - half).to(torch.int8),
    }
    compressor = BaseCompressor.get_value_from_registry(form)
    packed = compressor.compress(state, theirs)
    config = QuantizationConfig(config_groups={"group_0": theirs}, format=form)
    scheme = scheme_of(config.model_dump(mode="json"))
    stored = scheme.unpack("w", {f".{name}": part for name, part in packed.items()})
    assert stored.dequantize().equal(compressor.decompress(packed, theirs)["weight"])
    assert stored.dequantize().equal(drawn.values())
    for suffix, part in scheme.parts(SHAPE).items():
        if part.required:
            held = packed[suffix.removeprefix(".")]
            assert (held.shape, held.dtype in part.dtypes) == (part.shape, True)


def linear_of(drawn: Drawn) -> nn.Linear:
    linear = nn.Linear(SHAPE[1], SHAPE[0], bias=False)
    linear.weight.data = drawn.values()
    return linear


def buffers(module: nn.Module) -> dict[str, Tensor]:
    return {f".{name}": buffer for name, buffer in module.state_dict().items()}


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
@pytest.mark.parametrize(
    ("symmetric", "act_order", "group_size"),
    [(True, True, 32), (False, False, 128), (False, True, 64), (True, False, -1)],
)
def test_gptqmodel_gptq(
    bits: int, version: str, symmetric: bool, act_order: bool, group_size: int
) -> None:
    gptqmodel = import_gptqmodel()
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module

    form = Form(
        name=version,
        bits=bits,
        group_size=max(group_size, 0),
        symmetric=symmetric,
        act_order=act_order,
    )
    drawn = draw(SHAPE, form)
    module = TorchLinear(
        bits=bits,
        group_size=group_size,
        sym=symmetric,
        desc_act=act_order,
        in_features=SHAPE[1],
        out_features=SHAPE[0],
    )
    module.pack(
        linear_of(drawn), drawn.scale_OG.float(), drawn.zero_OG, drawn.group_I.to(torch.int32)
    )
    module.scales = module.scales.float()  # so that their product is exact
    expected = module.dequantize_weight().T
    config = gptqmodel.QuantizeConfig(
        bits=bits, group_size=group_size, sym=symmetric, desc_act=act_order, format=version
    )
    if version == "gptq":
        convert_gptq_v2_to_v1_format_module(module, config)
    scheme = scheme_of(config.to_dict())
    stored = scheme.unpack("w", buffers(module))
    assert stored.dequantize().equal(expected)
    assert stored.dequantize().equal(drawn.values())
    assert scheme.grid == form.grid
    assert {s: part.shape for s, part in scheme.parts(SHAPE).items()} == {
        suffix: tuple(buffer.shape) for suffix, buffer in buffers(module).items()
    }


@pytest.mark.parametrize(("symmetric", "group_size"), [(True, 32), (False, 128)])
def test_gptqmodel_awq(symmetric: bool, group_size: int) -> None:
    gptqmodel = import_gptqmodel()
    from gptqmodel.nn_modules.qlinear.torch_awq import AwqTorchLinear
    from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm

    form = Form(name="awq", group_size=group_size, symmetric=symmetric)
    drawn = draw(SHAPE, form)
    module = AwqTorchLinear(
        bits=4,
        group_size=group_size,
        sym=symmetric,
        desc_act=False,
        in_features=SHAPE[1],
        out_features=SHAPE[0],
    )
    module.pack(linear_of(drawn), drawn.scale_OG, drawn.zero_OG)
    parts = buffers(module)
    expected = dequantize_gemm(
        parts[".qweight"], parts[".qzeros"], parts[".scales"].float(), 4, group_size
    )
    config = gptqmodel.QuantizeConfig(
        bits=4, group_size=group_size, sym=symmetric, quant_method="awq", format="gemm"
    )
    scheme = scheme_of(config.to_dict())
    stored = scheme.unpack("w", parts)
    assert stored.dequantize().equal(expected.T)
    assert stored.dequantize().equal(drawn.values())
    assert scheme.grid == form.grid
    assert {suffix: part.shape for suffix, part in scheme.parts(SHAPE).items()} == {
        suffix: tuple(buffer.shape) for suffix, buffer in parts.items()
    }
