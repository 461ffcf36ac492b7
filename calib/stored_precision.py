"""How a checkpoint's weights are stored, from `quantization_config` of its config.json.

Read: no quantization; `quant_method` fp8 (DeepSeek's own, and per-tensor or per-channel scales);
compressed-tensors with 8-bit floating-point weights. Everything else is already quantized: a
second rounding would be measured against the first, not against the model.
"""

from tightfit.calib.config import ModelConfig
from tightfit.calib.float8_blocks import STRATEGIES, Float8Scheme, Strategy
from tightfit.errors import CheckpointError

_FLOAT8_FORMATS = ("float-quantized", "naive-quantized")
_FLOAT8_BITS = 8


def read_precision(config: ModelConfig) -> Float8Scheme | None:
    """The FP8 scheme of a checkpoint, None for a plain one; raises `CheckpointError`."""
    section = config.section("quantization_config") or config.section("compression_config")
    if section is None:
        return None
    method = section.text("quant_method", "without a quant_method")
    if method == "fp8":
        return _read_fp8(section)
    if method == "compressed-tensors":
        return _read_compressed_tensors(section)
    raise already_quantized(section.origin, method)


def already_quantized(origin: str, method: str) -> CheckpointError:
    """The refusal of a checkpoint whose weights are rounded in a way that is not read here."""
    return CheckpointError(
        f"{origin}: the checkpoint is already quantized ({method})",
        allowed="BF16, F16, F32, and FP8 E4M3 with its scales (fp8, compressed-tensors)",
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


def _read_compressed_tensors(section: ModelConfig) -> Float8Scheme:
    form = section.text("format", "without a format")
    for key in ("transform_config", "sparsity_config"):
        extra = section.section(key)
        if extra is not None and extra.values and extra.values.get("format") != "dense":
            raise already_quantized(section.origin, f"compressed-tensors, with {key}")
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
