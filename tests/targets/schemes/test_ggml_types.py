import gguf
import numpy as np
import pytest

from tightfit.errors import QuantizationError
from tightfit.targets.schemes.ggml_types import (
    BLOCKS,
    fitting_type,
    row_bytes,
    stored_bytes,
    tensor_bytes,
)
from tightfit.targets.schemes.ggml_types import GgmlType as Type


@pytest.mark.parametrize("kind", [Type.F32, Type.F16, Type.BF16, Type.Q8_0, Type.Q4_0, Type.Q5_1])
def test_bytes_are_those_of_the_gguf_packages_quantizer(kind: Type) -> None:
    values = np.random.default_rng(0).standard_normal((6, 96), dtype=np.float32)
    assert tensor_bytes(kind, values.shape) == gguf.quants.quantize(values, kind).nbytes


@pytest.mark.parametrize("kind", Type)
def test_numbers_and_blocks_are_those_of_the_gguf_package(kind: Type) -> None:
    theirs = gguf.GGMLQuantizationType(kind)
    assert theirs.name == kind.name
    assert gguf.GGML_QUANT_SIZES[theirs] == BLOCKS[kind]


def test_super_blocks_by_hand() -> None:
    # Q4_K: 256 weights in 2+2 (scale, min) + 12 (sub-block scales) + 128 bytes.
    assert row_bytes(Type.Q4_K, 512) == 2 * 144
    assert tensor_bytes(Type.Q6_K, (8, 3, 256)) == 24 * 210


def test_files_pad_every_tensor() -> None:
    assert stored_bytes([(Type.Q8_0, (1, 32)), (Type.F32, (8,))]) == 64 + 32


def test_widths_that_do_not_divide() -> None:
    assert fitting_type(Type.Q4_K, 512) is Type.Q4_K
    assert fitting_type(Type.Q4_K, 576) is Type.Q5_0
    assert fitting_type(Type.IQ4_XS, 576) is Type.IQ4_NL
    assert fitting_type(Type.Q6_K, 100) is Type.F16
    with pytest.raises(QuantizationError, match="row of 100"):
        fitting_type(Type.Q8_0, 100)
