"""From what a user typed to a folder: the embedded model, a local folder, or a download."""

import re
from dataclasses import dataclass
from pathlib import Path

from tightfit.calib.hub import download_snapshot
from tightfit.calib.models import MODELS, find_model
from tightfit.errors import CheckpointError, UsageError

EMBEDDED_NAME = "tiny-r1"
_EMBEDDED_FOLDER = Path(__file__).parent / "embedded" / EMBEDDED_NAME
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSource:
    """Where a model lies and what it is called."""

    path: Path
    """Its folder."""
    id: str
    """Hub id, `tiny-r1`, or the folder's name."""
    revision: str | None = None
    """Commit hash on the Hub; None for a folder that did not come from there."""


def locate_model(model: str | None, *, revision: str | None = None) -> ModelSource:
    """The folder of a local path, a Hub id, a registered short name; None: the embedded model.

    What exists or begins with `.`, `/` or `~` is a path and never reaches the Hub.
    Raises `CheckpointError`, and `UsageError` for a revision of what has none.
    """
    known = find_model(model) if model else None
    path = Path(model).expanduser() if model else _EMBEDDED_FOLDER
    if model and (path.exists() or model[0] in "./~"):
        _refuse_revision(model, revision)
        return _local(path)
    if model is None or model == EMBEDDED_NAME:
        _refuse_revision(EMBEDDED_NAME, revision)
        return ModelSource(path=_EMBEDDED_FOLDER, id=EMBEDDED_NAME)
    hub_id = known.id if known else model
    if not _HUB_ID.fullmatch(hub_id):
        raise CheckpointError(
            f"{model!r} is neither a folder nor a model that tightfit knows",
            allowed="a folder, a Hub id (owner/name), "
            f"{EMBEDDED_NAME}, or one of: " + ", ".join(known.name for known in MODELS.values()),
            hint="see `tightfit models`; a path may begin with ./ to be taken as one",
        )
    folder, commit = download_snapshot(hub_id, revision)
    return ModelSource(path=folder, id=hub_id, revision=commit)


def model_id(model: str | None) -> str:
    """The `ModelSource.id` that `locate_model` would give, without looking for the model."""
    known = find_model(model) if model else None
    if model is None or known:
        return known.id if known else EMBEDDED_NAME
    path = Path(model).expanduser()
    return path.resolve().name if path.exists() or model[0] in "./~" else model


def _local(path: Path) -> ModelSource:
    if not path.is_dir():
        what = "is a file" if path.exists() else "no such folder"
        raise CheckpointError(
            f"{path}: {what}",
            allowed="a model is a folder with config.json, *.safetensors and the tokenizer",
            hint="give the folder" if path.exists() else "check the path",
        )
    return ModelSource(path=path, id=path.resolve().name)


def _refuse_revision(model: str, revision: str | None) -> None:
    if revision is not None:
        raise UsageError(
            f"--revision {revision} with {model!r}, which is not on the Hub",
            allowed="a revision goes with a Hub id",
            hint="leave --revision out",
        )
