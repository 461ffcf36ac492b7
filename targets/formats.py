"""The formats of artifacts: what runs them, and which grids each one holds exactly.

GGUF stores ggml's types; a symmetric integer grid of 4, 5 or 8 bits is Q4_0, Q5_0 or Q8_0 with its
scale repeated in each block of 32 weights, and an asymmetric one of 2 to 7 bits the next type whose
levels reach both ways. ONNX has MatMulNBits (2, 4, 8 bits in groups) and
DequantizeLinear (4 and 8 bits, FP8). TensorRT parses symmetric grids only: INT4 in blocks of 64 or
128, INT8 per row, FP8 per tensor or per row, beside float16. Checkpoints are Hugging Face folders
that vLLM, transformers and TensorRT-LLM load; their head and embedding stay floats.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tightfit.errors import UsageError
from tightfit.targets.grids import FLOAT8, FLOAT_BYTES, INTEGERS, PER_CHANNEL, IntegerFacts
from tightfit.targets.schemes.ggml_types import GGML_GRIDS
from tightfit.targets.schemes.ggml_types import GgmlType as Type

_GGML_BY_BITS: Mapping[int, Type] = {4: Type.Q4_0, 5: Type.Q5_0, 8: Type.Q8_0}
"""ggml's types of one scale and evenly spaced levels; 2, 3, 6 and 7 bits have none."""
_GGML_BY_ASYMMETRIC_BITS: Mapping[int, Type] = {
    2: Type.Q4_0,
    3: Type.Q4_0,
    4: Type.Q5_0,
    5: Type.Q8_0,
    6: Type.Q8_0,
    7: Type.Q8_0,
}
"""The same for levels q - z, which lie in -(2**bits - 1) .. 2**bits - 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """A kind of artifact."""

    name: str
    """On the command line."""
    label: str
    """In a sentence."""
    runtime: str
    """What executes it, as the targets' profiles call it."""
    storable: frozenset[str]
    """Grids and float types that it holds exactly."""
    allowed: str
    """The same for people."""
    spreads: bool = False
    """Whether its runtime spreads one model over several devices."""
    is_checkpoint: bool = False
    """Whether it is a Hugging Face folder, in which only the linears of blocks are quantized."""


def _gguf_holds(facts: IntegerFacts) -> bool:
    return facts.bits in (_GGML_BY_BITS if facts.symmetric else _GGML_BY_ASYMMETRIC_BITS)


def _onnx_holds(facts: IntegerFacts) -> bool:
    return facts.bits in (4, 8) or (facts.bits == 2 and facts.group_size != PER_CHANNEL)


def _tensorrt_holds(facts: IntegerFacts) -> bool:
    grids = ((4, 64), (4, 128), (8, PER_CHANNEL))
    return facts.symmetric and (facts.bits, facts.group_size) in grids


def _checkpoint_holds(holds: Callable[[IntegerFacts], bool]) -> frozenset[str]:
    integers = frozenset(name for name, facts in INTEGERS.items() if holds(facts))
    return integers | frozenset(FLOAT_BYTES)


_TABLE = (
    Format(
        name="gguf",
        label="GGUF",
        runtime="llama.cpp",
        storable=frozenset(FLOAT_BYTES)
        | frozenset(GGML_GRIDS)
        | frozenset(name for name, facts in INTEGERS.items() if _gguf_holds(facts)),
        allowed=f"{', '.join(GGML_GRIDS)}, int{{4,5,8}}-{{g32,g64,g128,channel}}-sym, "
        "int{2..7}-{g32,g64,g128,channel}-asym, F32, F16, BF16",
        spreads=True,
    ),
    Format(
        name="onnx",
        label="ONNX",
        runtime="onnxruntime",
        storable=frozenset(FLOAT_BYTES)
        | frozenset(FLOAT8)
        | frozenset(name for name, facts in INTEGERS.items() if _onnx_holds(facts)),
        allowed="int{2,4,8}-{g32,g64,g128}-{sym,asym}, int{4,8}-channel-{sym,asym}, "
        "fp8-e4m3-{tensor,channel,block128}, F32, F16, BF16",
    ),
    Format(
        name="tensorrt",
        label="TensorRT",
        runtime="tensorrt-rtx",
        storable=frozenset({"F16", "fp8-e4m3-tensor", "fp8-e4m3-channel"})
        | frozenset(name for name, facts in INTEGERS.items() if _tensorrt_holds(facts)),
        allowed="int4-{g64,g128}-sym, int8-channel-sym, fp8-e4m3-{tensor,channel}, F16",
    ),
    Format(
        name="gptq",
        label="GPTQ",
        runtime="vllm",
        storable=_checkpoint_holds(lambda facts: facts.bits in (2, 3, 4, 8)),
        allowed="int{2,3,4,8}-{g32,g64,g128,channel}-{sym,asym}; head and embedding as floats",
        spreads=True,
        is_checkpoint=True,
    ),
    Format(
        name="awq",
        label="AWQ",
        runtime="vllm",
        storable=_checkpoint_holds(lambda facts: facts.bits == 4 and facts.group_size > 0),
        allowed="int4-{g32,g64,g128}-{sym,asym}; head and embedding as floats",
        spreads=True,
        is_checkpoint=True,
    ),
    Format(
        name="compressed-tensors",
        label="compressed-tensors",
        runtime="vllm",
        storable=_checkpoint_holds(lambda facts: facts.bits in (4, 8)) | frozenset(FLOAT8),
        allowed="int{4,8}-{g32,g64,g128,channel}-{sym,asym}, "
        "fp8-e4m3-{tensor,channel,block128}; head and embedding as floats",
        spreads=True,
        is_checkpoint=True,
    ),
    Format(
        name="modelopt",
        label="ModelOpt",
        runtime="tensorrt-llm",
        storable=_checkpoint_holds(lambda facts: facts.name == "int4-g128-sym")
        | {"fp8-e4m3-tensor"},
        allowed="int4-g128-sym, fp8-e4m3-tensor; head and embedding as floats",
        spreads=True,
        is_checkpoint=True,
    ),
)

FORMATS: Mapping[str, Format] = {format_.name: format_ for format_ in _TABLE}
"""By name, in the order in which they are written."""
CHECKPOINT_FORMATS = tuple(format_.name for format_ in _TABLE if format_.is_checkpoint)
DEFAULT_FORMAT = "gguf"


def find_format(name: str) -> Format:
    """The format of that name; raises `UsageError` when there is none."""
    if name not in FORMATS:
        raise UsageError(
            f"there is no format named {name!r}",
            allowed="formats: " + ", ".join(FORMATS),
            hint=f"--format {DEFAULT_FORMAT} is for llama.cpp",
        )
    return FORMATS[name]


def check_storable(format_name: str, grid: str) -> None:
    """Raise `UsageError` when the format cannot hold the numbers of a grid (or float type)."""
    kind = find_format(format_name)
    if grid in kind.storable:
        return
    others = [other.name for other in FORMATS.values() if grid in other.storable]
    raise UsageError(
        f"{kind.label} cannot hold the numbers of the grid {grid}",
        allowed=f"{kind.label} holds exactly: {kind.allowed}",
        hint=f"formats that hold {grid}: {', '.join(others)}"
        if others
        else f"no format that tightfit writes holds {grid}: choose another grid",
    )


def executed_as(format_name: str, grid: str) -> str:
    """The name under which the format's runtime meets the grid: ggml's type in a GGUF."""
    return ggml_type(grid).name if format_name == "gguf" else grid


def ggml_type(stored_as: str) -> Type:
    """The ggml type that holds a grid (or float type) in a GGUF; the grid must be storable."""
    check_storable("gguf", stored_as)
    if facts := INTEGERS.get(stored_as):
        return (_GGML_BY_BITS if facts.symmetric else _GGML_BY_ASYMMETRIC_BITS)[facts.bits]
    return Type[stored_as]
