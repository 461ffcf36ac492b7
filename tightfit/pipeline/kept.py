"""A checkpoint that is quantized already, into another format with the same numbers.

Nothing is rounded a second time and nothing is calibrated: codes, scales and zero points are taken
over, and floats keep their type wherever the format's runtime computes in it.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch

from tightfit.calib.checkpoint import Checkpoint
from tightfit.calib.logical import is_heads, stored_names
from tightfit.calib.shapes import tensor_shapes
from tightfit.errors import UsageError
from tightfit.pipeline.checks import ACT_ORDER_FORMATS
from tightfit.pipeline.requests import ExportRequest
from tightfit.targets.allocation.prior import prior_sensitivity
from tightfit.targets.candidates import check_executed, evaluate
from tightfit.targets.formats import CHECKPOINT_FORMATS
from tightfit.targets.grids import FLOAT_BYTES, INTEGERS, short_name
from tightfit.targets.mix import AUTO
from tightfit.targets.plan import Plan, make_plan
from tightfit.targets.profile import Target
from tightfit.targets.sizes import model_sizes

STORED = "stored"
"""The scheme that keeps what the checkpoint stores."""
_HALVES = {torch.float16: "F16", torch.bfloat16: "BF16"}
_FLOAT_HEADS = frozenset(CHECKPOINT_FORMATS) - {"compressed-tensors"}
_HINT = "give the model that it was made from: see `tightfit models`"


def check_kept(request: ExportRequest, checkpoint: Checkpoint) -> None:
    """Raise `UsageError` for options that would round a quantized checkpoint again."""
    given = {
        f"--scheme {request.scheme}": request.scheme not in (AUTO, STORED),
        request.budget.text: not request.budget.is_room,
        f"--head {request.head}": request.head is not None,
        f"--embedding {request.embedding}": request.embedding is not None,
    }
    for option, is_given in given.items():
        if is_given:
            raise UsageError(
                f"{option} would round {checkpoint.source.id} again: it is quantized already",
                allowed=f"--scheme {STORED}, which keeps its numbers, or none at all",
                hint=_HINT,
            )


def kept_plan(
    request: ExportRequest, checkpoint: Checkpoint, target: Target, format_name: str
) -> Plan:
    """What the checkpoint stores, as a plan for the format.

    Raises `UsageError` where the format cannot hold it, or the target cannot execute it.
    """
    grids = _stored_grids(checkpoint)
    used = sorted({grid for grid in grids.values() if grid is not None})
    if len(used) != 1 or used[0] not in INTEGERS:
        raise UsageError(
            f"{checkpoint.source.id} is stored as {' and '.join(used)}",
            allowed="a quantized checkpoint whose matrices are all on one integer grid",
            hint=_HINT,
        )
    _check_order(checkpoint, grids, format_name)
    _check_head(checkpoint, grids, format_name)
    plan = make_plan(
        checkpoint.dimensions,
        target,
        model=checkpoint.source.id,
        scheme=short_name(used[0]),
        context_tokens=request.context_tokens,
        n_sequences=request.n_sequences,
        cache_type=request.cache_type,
        split=request.split,
        format=format_name,
        head="f16",
        embedding="f16",
        precision=request.onnx_precision if format_name == "onnx" else None,
    )
    storage = {name: grid or _float_storage(checkpoint, name, plan) for name, grid in grids.items()}
    check_executed(plan.setting, STORED, storage)
    prior = prior_sensitivity(plan.setting.architecture, checkpoint.dimensions)
    chosen = evaluate(model_sizes(plan.setting), plan.chosen.scheme, storage, prior)
    others = [other for other in plan.candidates if other.scheme != chosen.scheme]
    return replace(
        plan,
        chosen=chosen,
        candidates=tuple(sorted((*others, chosen), key=lambda item: -item.file_bytes)),
        storage=storage,
        reason=f"the checkpoint is on {used[0]} already: its numbers are kept, none is rounded "
        "again",
    )


def _stored_grids(checkpoint: Checkpoint) -> dict[str, str | None]:
    """Grid of every logical tensor as the checkpoint stores it; None: a float.

    Raises `UsageError` where the experts of a layer differ, or heads cannot be taken apart.
    """
    dimensions = checkpoint.dimensions
    found: dict[str, str | None] = {}
    for name in tensor_shapes(checkpoint.architecture, dimensions):
        held = {checkpoint.stored_grid(stored) for stored in stored_names(name, dimensions)}
        if len(held) > 1:
            raise UsageError(
                f"{name}: the experts are not stored alike",
                allowed="routed experts of a layer on one grid",
                hint=_HINT,
            )
        (found[name],) = held
        if is_heads(name) and found[name] is not None:
            raise UsageError(
                f"{name} is on {found[name]} together with its other half",
                allowed="latent attention whose kv_b_proj is a float: its halves are stored apart "
                "elsewhere, and one of them transposed",
                hint=_HINT,
            )
    return found


def _check_order(checkpoint: Checkpoint, grids: Mapping[str, str | None], format_name: str) -> None:
    assert checkpoint.packed is not None
    if format_name in ACT_ORDER_FORMATS or not checkpoint.packed.act_order:
        return
    for name in (name for name, grid in grids.items() if grid):
        for stored in stored_names(name, checkpoint.dimensions):
            held = checkpoint.load_integer(stored)
            if held is not None and held.group_index_I is not None:
                raise UsageError(
                    f"{checkpoint.source.id}: {stored} has an act-order, which {format_name} "
                    "cannot store",
                    allowed=f"formats that can: {', '.join(ACT_ORDER_FORMATS)}",
                    hint=f"--format {ACT_ORDER_FORMATS[0]}, or a checkpoint without desc_act",
                )


def _check_head(checkpoint: Checkpoint, grids: Mapping[str, str | None], format_name: str) -> None:
    """Of the checkpoint formats compressed-tensors alone has a place for a quantized head."""
    head = grids.get(checkpoint.architecture.head)
    if head is not None and format_name in _FLOAT_HEADS:
        raise UsageError(
            f"{checkpoint.source.id} has its output head on {head}, and {format_name} keeps heads "
            "as floats",
            allowed="--format compressed-tensors, gguf, onnx or tensorrt keep it as it is",
            hint=_HINT,
        )


def _float_storage(checkpoint: Checkpoint, name: str, plan: Plan) -> str:
    """The type of a float tensor: its own, unless a float16 graph computes with it."""
    planned = plan.storage[name]
    if plan.precision == "float16" or planned == "F32":
        return planned if planned in FLOAT_BYTES else "F16"
    own = _HALVES.get(checkpoint.stored_dtype(name), "F32")
    is_vector = len(checkpoint.shape(name)) == 1
    return "F32" if is_vector and plan.format in ("gguf", "onnx") else own
