"""Downloads from the Hugging Face Hub, with its failures told as what the user can do.

`huggingface_hub` honours HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE, resumes, and falls
back to its cache without a connection.
"""

import re
from pathlib import Path

from tightfit.calib.architecture import architecture_of
from tightfit.calib.config import CONFIG_NAME, read_config
from tightfit.calib.dimensions import dimensions_of
from tightfit.errors import CheckpointError

# Weights, configuration and tokenizer at the top level; never a pickle, which can run any code.
_WANTED = ["*.json", "*.safetensors", "*.jinja", "*.model", "merges.txt", "LICENSE*"]
# Second copies of the weights in other layouts (Meta's, Mistral's), figures, inference code.
_UNWANTED = ["*/*", "consolidated*"]
_UNAUTHORIZED, _FORBIDDEN = 401, 403  # HTTP
_COMMIT = re.compile(r"[0-9a-f]{40}")


def download_snapshot(hub_id: str, revision: str | None) -> tuple[Path, str]:
    """The folder of a snapshot and the commit that `revision` (None: main) stands for.

    config.json comes first, so that a model that could not be used is refused before its weights
    are downloaded. Raises `CheckpointError`.
    """
    folder = _fetch(hub_id, revision, [CONFIG_NAME])
    assert _COMMIT.fullmatch(folder.name), "a snapshot's folder is named by its commit"
    if (folder / CONFIG_NAME).is_file():
        _check_usable(folder)
    # By its commit: the branch may move between the two.
    folder = _fetch(hub_id, folder.name, _WANTED)
    if not any(folder.glob("*.safetensors")):
        raise _no_safetensors(hub_id, folder.name)
    return folder, folder.name


def resolve_commit(hub_id: str, revision: str | None) -> str:
    """The commit that a branch, a tag or a short hash stands for; raises `CheckpointError`."""
    return _fetch(hub_id, revision, [CONFIG_NAME]).name


def _check_usable(folder: Path) -> None:
    """Refuse what config.json alone tells: an unknown family, a rounded model, odd sizes."""
    # Here, because it loads torch, which `tightfit plan` does without.
    from tightfit.calib.stored_precision import read_precision

    config = read_config(folder)
    architecture_of(config.text("model_type"))
    dimensions_of(config)
    read_precision(config)


def _fetch(hub_id: str, revision: str | None, patterns: list[str]) -> Path:
    """The folder of a snapshot that holds the files of these patterns."""
    from huggingface_hub import errors, snapshot_download

    at = f" at revision {revision!r}" if revision else ""
    try:
        return Path(
            snapshot_download(
                hub_id, revision=revision, allow_patterns=patterns, ignore_patterns=_UNWANTED
            )
        )
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{hub_id}: the model is gated and this account has no access",
            hint=f"accept its terms at https://huggingface.co/{hub_id} and set HF_TOKEN",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(
            f"{hub_id}: there is no revision {revision!r}",
            allowed="a branch, a tag or a commit hash of the repository",
            hint=f"see https://huggingface.co/{hub_id}/commits/main",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise _not_found(hub_id) from error
    except errors.HFValidationError as error:
        raise CheckpointError(
            f"{hub_id}: not a Hub id ({error})", hint="give owner/name: see `tightfit models`"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise _unreachable(hub_id, at) from error
    except errors.HfHubHTTPError as error:
        raise _refused(hub_id, at, error.response.status_code) from error
    # The HTTP library's own error; which library that is differs between versions of the Hub's.
    except (errors.HTTPError, OSError) as error:  # type: ignore[attr-defined]
        raise CheckpointError(
            f"{hub_id}{at}: the download failed: {error}",
            hint="run the command again: it resumes; check the free space under HF_HOME",
        ) from error


def _not_found(hub_id: str) -> CheckpointError:
    return CheckpointError(
        f"{hub_id}: there is no such model on the Hub, or it is private",
        allowed="see `tightfit models` for the ids of the R1 family",
        hint="check the spelling; for a private model set HF_TOKEN. A local folder that does "
        "not exist is looked for on the Hub: begin its path with ./",
    )


def _unreachable(hub_id: str, at: str) -> CheckpointError:
    return CheckpointError(
        f"{hub_id}{at}: not (or not wholly) in the local cache, and the Hub cannot be reached",
        allowed="without a connection only what was downloaded before can be used",
        hint="check the connection, HF_ENDPOINT and HF_HUB_OFFLINE, or give a local folder",
    )


def _refused(hub_id: str, at: str, status: int) -> CheckpointError:
    if status in (_UNAUTHORIZED, _FORBIDDEN):
        return CheckpointError(
            f"{hub_id}{at}: the Hub refuses access (HTTP {status})",
            hint="set HF_TOKEN to a token that may read it; a stale token is refused even for "
            "public models: unset it",
        )
    return CheckpointError(
        f"{hub_id}{at}: the Hub answered with HTTP {status}", hint="try again later"
    )


def _no_safetensors(hub_id: str, commit: str) -> CheckpointError:
    from huggingface_hub import HfApi, errors

    # Here, because it reads dtypes and so loads torch, which `tightfit plan` does without.
    from tightfit.calib.tensor_index import PICKLES, shorten

    try:
        held = HfApi().list_repo_files(hub_id, revision=commit)
    except (errors.HTTPError, OSError):  # type: ignore[attr-defined]
        # Without a connection the cache gives what it has, here less than the weights.
        return _unreachable(hub_id, "")
    pickles = [name for name in held if name.endswith(PICKLES)]
    if pickles:
        return CheckpointError(
            f"{hub_id}: its weights are pickles: {shorten(pickles)}",
            allowed="only *.safetensors is downloaded: a pickle can run any code",
            hint="look for a safetensors version among its revisions (refs/pr/...) and give it by "
            "--revision",
        )
    return CheckpointError(
        f"{hub_id}: holds no *.safetensors",
        hint="a repository of GGUF files or of an adapter is not a checkpoint: see "
        "`tightfit models`",
    )
