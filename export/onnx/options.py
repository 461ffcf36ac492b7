"""What an ONNX file is made for."""

from dataclasses import dataclass
from enum import StrEnum

import onnx_ir as ir


class Dialect(StrEnum):
    """Which operators a graph is made of."""

    ORT = "ort"
    """onnxruntime's own (com.microsoft): MatMulNBits, GroupQueryAttention, QMoE."""
    STANDARD = "standard"
    """Operators of the ONNX standard only, in the form that TensorRT parses."""


class Precision(StrEnum):
    """What the graph computes in; KV cache and logits have the same type."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"

    @property
    def data_type(self) -> ir.DataType:
        """As ONNX calls it."""
        return ir.DataType.FLOAT if self is Precision.FLOAT32 else ir.DataType.FLOAT16


@dataclass(frozen=True, kw_only=True, slots=True)
class OnnxOptions:
    """One graph of the two dialects and two precisions."""

    dialect: Dialect = Dialect.ORT
    precision: Precision = Precision.FLOAT32
