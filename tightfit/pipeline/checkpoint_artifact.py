"""Weights to a Hugging Face checkpoint (GPTQ, AWQ, compressed-tensors, ModelOpt), read back.

The only checkpoint of an export lies at the root of its folder, so that vLLM and transformers load
the folder, and the repository it is published to, by name. Several lie each in a folder of their
own, with copies of the tokenizer.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tightfit.calib.checkpoint import COMPANIONS, Checkpoint
from tightfit.calib.config import CONFIG_NAME
from tightfit.calib.json_file import read_json
from tightfit.export.manifest import Artifact, TensorRecord
from tightfit.export.safetensors.file import write_checkpoint
from tightfit.export.safetensors.formats import checkpoint_configs, checkpoint_pieces
from tightfit.export.safetensors.readback import read_weights
from tightfit.export.weights import FloatWeight, Weight
from tightfit.pipeline.checkpoint_layout import stored_weights
from tightfit.pipeline.exactness import check_exact
from tightfit.pipeline.mtp_weights import mtp_weights
from tightfit.pipeline.requests import ExportRequest
from tightfit.pipeline.work import Work
from tightfit.targets.formats import CHECKPOINT_FORMATS
from tightfit.targets.plan import Plan

_SECTION = "quantization_config"
_LEFT_OUT = (_SECTION, "compression_config", "auto_map")
_DTYPES = ("dtype", "torch_dtype")
"""Keys of config.json for the type of the floats: of transformers 5, and of everything older."""
_MTP_LAYERS = "num_nextn_predict_layers"


def checkpoint_folder(request: ExportRequest, format_name: str) -> Path:
    """Where the checkpoint of a format goes."""
    asked = [name for name in request.formats if name in CHECKPOINT_FORMATS]
    return request.output if asked == [format_name] else request.output / format_name


def checkpoint_paths_in_way(
    request: ExportRequest, _checkpoint: Checkpoint, plan: Plan
) -> list[Path]:
    """Weights that already lie where the export will write."""
    folder = checkpoint_folder(request, plan.format)
    return sorted(folder.glob("*.safetensors")) if folder.is_dir() else []


def write_checkpoint_artifact(work: Work) -> Artifact:
    """Write the folder, read it back, record it."""
    folder = checkpoint_folder(work.request, work.plan.format)
    weights = stored_weights(work.weights, work.checkpoint.dimensions)
    dtype = _float_dtype(list(weights.values()))
    if work.request.keep_mtp:
        weights |= stored_weights(mtp_weights(work.checkpoint), work.checkpoint.dimensions)
    scales = {name: _kv_scale(scale) for name, scale in work.kv_scales.items()}
    pieces = checkpoint_pieces(work.plan.format, weights | scales)
    shown = f"the {work.plan.format} checkpoint"
    work.reporter.stage(f"Writing {shown}")
    folder.mkdir(exist_ok=True)
    with work.reporter.progress(len(pieces), "tensors") as progress:
        files = write_checkpoint(
            folder,
            pieces,
            texts=_configs(work, weights | scales, dtype),
            overwrite=True,
            progress=lambda _name, _done, _total: progress.advance(1),
        )
    if folder == work.request.output:  # its config.json belongs to all artifacts of the folder
        files = tuple(file for file in files if file.name != CONFIG_NAME)
    else:
        files += _copied_companions(work.checkpoint, folder)
    work.reporter.stage(f"Reading {shown} back, bit for bit")
    with work.reporter.progress(len(weights), "tensors") as progress:
        hashes = check_exact(
            shown,
            read_weights(folder),
            {name: weight.rows for name, weight in weights.items()},
            lambda: progress.advance(1),
        )
    return work.record(
        files=files,
        tensors=[_record(name, weight, hashes[name], work) for name, weight in weights.items()],
        hashes=hashes,
        stored_bytes=sum(spec.nbytes for piece in pieces for spec in piece.specs),
    )


def _kv_scale(scale: float) -> FloatWeight:
    return FloatWeight(shape=(1,), dtype=torch.float32, load=lambda: torch.tensor([scale]))


def _configs(work: Work, weights: Mapping[str, Weight], dtype: torch.dtype) -> dict[str, str]:
    """The configurations by file name, config.json among them."""
    config = _config(
        read_json(work.checkpoint.path / CONFIG_NAME), dtype, keeps_mtp=work.request.keep_mtp
    )
    texts = {}
    for name, section in checkpoint_configs(work.plan.format, weights).items():
        document = config | {_SECTION: section} if name == CONFIG_NAME else section
        texts[name] = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    return texts


def _copied_companions(checkpoint: Checkpoint, folder: Path) -> tuple[Path, ...]:
    """Copies of the tokenizer and its like."""
    small = [name for name in COMPANIONS if name != CONFIG_NAME]
    present = [name for name in small if (checkpoint.path / name).is_file()]
    for name in present:
        shutil.copyfile(checkpoint.path / name, folder / name)
    return tuple(folder / name for name in present)


def _config(config: dict[str, Any], dtype: torch.dtype, *, keeps_mtp: bool) -> dict[str, Any]:
    """The model's config.json without its own quantization, with the type of the floats here.

    And without the programs that it names: they are not carried over, and never run.
    """
    plain = {key: value for key, value in config.items() if key not in _LEFT_OUT}
    for key in _DTYPES:
        if key in plain or key == _DTYPES[1]:
            plain[key] = str(dtype).removeprefix("torch.")
    if plain.get(_MTP_LAYERS) and not keeps_mtp:
        plain[_MTP_LAYERS] = 0
    return plain


def _float_dtype(weights: Sequence[Weight]) -> torch.dtype:
    """What a runtime shall compute in: the type of most floats; routers are float32 everywhere."""
    halves = [weight.dtype for weight in weights if isinstance(weight, FloatWeight)]
    return max((torch.float16, torch.bfloat16, torch.float32), key=halves.count)


def _record(name: str, weight: Weight, sha256: str, work: Work) -> TensorRecord:
    stored_as = (
        str(weight.dtype).removeprefix("torch.") if isinstance(weight, FloatWeight) else weight.grid
    )
    return TensorRecord(
        name=name,
        grid=stored_as,
        shape=tuple(weight.shape),
        sha256=sha256,
        relative_error=work.relative_errors.get(name),
    )
