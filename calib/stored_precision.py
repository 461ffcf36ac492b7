"""How a checkpoint's weights are stored, from `quantization_config` of its config.json.

Read: no quantization; `quant_method` fp8 (DeepSeek's own, and per-tensor or per-channel scales);
compressed-tensors with 8-bit floating-point weights or integers; ModelOpt's FP8 and INT4; GPTQ;
AWQ. Everything else is refused: what cannot be read cannot keep its numbers either.
"""

from tightfit.calib.config import ModelConfig
from tightfit.calib.float8_blocks import STRATEGIES, Float8Scheme, Strategy
from tightfit.calib.packed.awq import read_awq
from tightfit.calib.packed.compressed_tensors import INTEGER_FORMATS, read_integers
from tightfit.calib.packed.gptq import read_gptq
from tightfit.calib.packed.modelopt import read_modelopt
from tightfit.calib.packed.scheme import PackedScheme
from tightfit.errors import CheckpointError

_FLOAT8_FORMATS = ("float-quantized", "naive-quantized")
_FLOAT8_BITS = 8


Precision = Float8Scheme | PackedScheme


def read_precision(config: ModelConfig, modelopt: ModelConfig | None = None) -> Precision | None:
    """The scheme of a checkpoint, None for a plain one; raises `CheckpointError`.

    `modelopt` is what hf_quant_config.json says; config.json comes first.
    """
    section = config.section("quantization_config") or config.section("compression_config")
    if section is None:
        return None if modelopt is None else read_modelopt(modelopt)
    method = section.text("quant_method", "without a quant_method")
    match method:
        case "fp8":
            return _read_fp8(section)
        case "compressed-tensors":
            return _read_compressed_tensors(section)
        case "gptq":
            return read_gptq(section)
        case "awq":
            return read_awq(section)
        case "modelopt":
            said = dict(modelopt.values) if modelopt else {}
            return read_modelopt(
                ModelConfig(origin=section.origin, values=said | dict(section.values))
            )
    raise already_quantized(section.origin, method)


def already_quantized(origin: str, method: str) -> CheckpointError:
    """The refusal of a checkpoint whose weights are rounded in a way that is not read here."""
    return CheckpointError(
        f"{origin}: the checkpoint is already quantized ({method})",
        allowed="BF16, F16, F32; FP8 E4M3 with its scales (fp8, compressed-tensors, modelopt); "
        "integers of gptq, awq, compressed-tensors and modelopt, declared in config.json",
        hint="give the model that it was made from: see `tightfit models`",
    )


def _read_fp8(section: ModelConfig) -> Float8Scheme:
    if section.text("fmt", "e4m3") not in ("e4m3", "float8_e4m3fn"):
        raise already_quantized(section.origin, f"fp8, {section.text('fmt')}")
    if section.values.get("weight_scale_semantics") == "inverse":
        # gptqmodel divides by what it calls weight_scale_inv; DeepSeek multiplies.
        raise already_quantized(section.origin, "fp8 of gptqmodel, with reciprocal scales")
    block = _read_block(section, "weight_block_size")
    if block is None:
        return Float8Scheme(suffix="_scale", strategies=frozenset({"tensor", "channel"}))
    return Float8Scheme(suffix="_scale_inv", strategies=frozenset({"block"}), block=block)


def _read_compressed_tensors(section: ModelConfig) -> Precision:
    form = section.text("format", "without a format")
    for key in ("transform_config", "sparsity_config"):
        extra = section.section(key)
        if extra is not None and extra.values and extra.values.get("format") != "dense":
            raise already_quantized(section.origin, f"compressed-tensors, with {key}")
    if form in INTEGER_FORMATS:
        return read_integers(section, form)
    groups = section.section("config_groups")
    if form not in _FLOAT8_FORMATS or groups is None:
        raise already_quantized(section.origin, f"compressed-tensors, {form}")
    strategies: set[Strategy] = set()
    block = None
    for name in groups.values:
        group = groups.section(name)
        weights = group.section("weights") if group else None
        if weights is None:
            continue
        bits, kind = weights.integer("num_bits"), weights.text("type")
        if (bits, kind) != (_FLOAT8_BITS, "float"):
            raise already_quantized(section.origin, f"compressed-tensors, {bits}-bit {kind}")
        strategy = weights.text("strategy")
        match strategy:
            case "tensor" | "channel" | "block":
                strategies.add(strategy)
            case _:
                raise CheckpointError(
                    f"{weights.origin}: 'strategy' is {strategy!r}",
                    allowed="allowed: " + ", ".join(STRATEGIES),
                    hint="give the model that it was made from: see `tightfit models`",
                )
        if strategy == "block":
            block = _read_block(weights, "block_structure")
    if "block" in strategies and block is None:
        raise CheckpointError(
            f"{section.origin}: 'block_structure' is missing", hint="download config.json again"
        )
    return Float8Scheme(suffix="_scale", strategies=frozenset(strategies), block=block)


def _read_block(section: ModelConfig, key: str) -> tuple[int, int] | None:
    match section.values.get(key):
        case None:
            return None
        case [int(rows), int(columns)] if rows > 0 and columns > 0:
            return rows, columns
        case other:
            raise CheckpointError(
                f"{section.origin}: {key!r} is {other!r}",
                allowed="allowed: rows and columns, e.g. [128, 128]",
                hint="config.json is damaged or was edited by hand: download it again",
            )
