"""Artifacts on the Hugging Face Hub: downloaded at one commit, and checked against their manifest.

The Hub lists size and SHA-256 of every large file, so a file that is not the manifest's is told
before any of it is downloaded. Nothing but `tightfit.json` and what it lists is downloaded, never a
pickle. The manifest comes from the same repository as the files: it shows that they are those that
were exported, not who exported them.
"""

import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tightfit.calib.tensor_index import PICKLES
from tightfit.errors import ArtifactError
from tightfit.export.manifest import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    FileRecord,
    Manifest,
    hash_file,
    read_manifest,
)
from tightfit.reporter import Reporter
from tightfit.verify.run import run_verify

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile

HUB_PREFIX = "hub:"
_REPO = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_UNAUTHORIZED, _FORBIDDEN = 401, 403  # HTTP


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """An artifact as it lies on the Hub, and the copy of it that is verified."""

    repo: str
    commit: str
    folder: Path
    not_listed: tuple[str, ...]
    """Files of the repository that the manifest does not know: nothing is said of them."""


def verify_published(
    repo: str, revision: str | None, cache: Path, reporter: Reporter, *, on_gpu: bool = False
) -> tuple[Published, Manifest]:
    """Download an artifact below `cache` and verify it as `run_verify` does, with its errors.

    A file that is already there from the same commit is not downloaded again. The outcome goes into
    the copy's manifest. Raises `ArtifactError` also when the Hub does not give the artifact.
    """
    published = download_artifact(repo, revision, cache, reporter)
    try:
        return published, run_verify(published.folder, reporter, on_gpu=on_gpu)
    except ArtifactError:
        _drop_damaged(published.folder)
        raise


def download_artifact(
    repo: str, revision: str | None, cache: Path, reporter: Reporter
) -> Published:
    """The files of an artifact in a folder of `cache`; raises `ArtifactError`."""
    from huggingface_hub import hf_hub_download, snapshot_download

    if not _REPO.fullmatch(repo):
        raise ArtifactError(
            f"{HUB_PREFIX}{repo} names no repository",
            allowed=f"{HUB_PREFIX}OWNER/NAME",
            hint="a local folder is given without the prefix",
        )
    with _failures_told(repo, revision):
        reporter.stage(f"Looking at {repo} on the Hub")
        commit, held = _list_files(repo, revision)
        _check_has_manifest(repo, held)
        folder = cache / "published" / repo.replace("/", "--") / commit
        folder.mkdir(parents=True, exist_ok=True)
        # As a copy: verifying writes its outcome into it.
        pristine = hf_hub_download(repo, MANIFEST_NAME, revision=commit)
        shutil.copyfile(pristine, folder / MANIFEST_NAME)
        files = read_manifest(folder).files
        for record in files:
            _check_listed(repo, record, held)
        reporter.stage(f"Downloading {len(files)} files of commit {commit}")
        # Real files: onnxruntime refuses the links that the Hub's cache is made of.
        snapshot_download(
            repo,
            revision=commit,
            allow_patterns=[_literal(record.name) for record in files],
            local_dir=folder,
        )
    known = {MANIFEST_NAME, *(record.name for record in files)}
    return Published(
        repo=repo, commit=commit, folder=folder, not_listed=tuple(sorted(held.keys() - known))
    )


def _list_files(repo: str, revision: str | None) -> tuple[str, Mapping[str, "RepoFile"]]:
    """The commit of a revision and its files by name."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    api = HfApi()
    commit = api.model_info(repo, revision=revision).sha or ""
    if not _COMMIT.fullmatch(commit):
        raise ArtifactError(
            f"{repo}: the Hub names no commit", hint="check HF_ENDPOINT, and try again later"
        )
    tree = api.list_repo_tree(repo, revision=commit, recursive=True)
    return commit, {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}


def _check_has_manifest(repo: str, held: Mapping[str, "RepoFile"]) -> None:
    manifest = held.get(MANIFEST_NAME)
    if manifest is None:
        raise ArtifactError(
            f"{repo} holds no {MANIFEST_NAME}",
            allowed="artifacts that `tightfit publish` uploaded",
            hint="it was published by another tool: there is nothing that its files could be "
            "compared with",
        )
    if manifest.size > MAX_MANIFEST_BYTES:
        raise ArtifactError(
            f"{repo}: {MANIFEST_NAME} has {manifest.size} bytes",
            allowed=f"at most {MAX_MANIFEST_BYTES}",
            hint="do not use this artifact unless you trust its author",
        )


def _check_listed(repo: str, record: FileRecord, held: Mapping[str, "RepoFile"]) -> None:
    """Hold a record against what the Hub says of its file."""
    if record.name.endswith(PICKLES):
        raise ArtifactError(
            f"{repo}: {MANIFEST_NAME} lists {record.name}, which can hold a pickle",
            allowed="files that tightfit writes; a pickle can run any code",
            hint="do not use this artifact unless you trust its author",
        )
    file = held.get(record.name)
    if file is None:
        raise ArtifactError(
            f"{repo} lacks {record.name}, which its {MANIFEST_NAME} lists",
            hint="publishing it was not finished: its author can run `tightfit publish` again",
        )
    sha256 = file.lfs.sha256 if file.lfs else record.sha256
    if (file.size, sha256) != (record.size_bytes, record.sha256):
        raise ArtifactError(
            f"{repo}: {record.name} is not the file that was exported: it has {file.size} bytes "
            f"and SHA-256 {sha256 if file.lfs else 'unknown'}",
            allowed=f"{record.size_bytes} bytes with SHA-256 {record.sha256}",
            hint="it was replaced after the export, and was not downloaded; try another --revision",
        )


def _literal(name: str) -> str:
    """A pattern that only this name matches."""
    return re.sub(r"([*?[])", r"[\1]", name)


def _drop_damaged(folder: Path) -> None:
    """Delete the copies that are not what was exported, so that they are downloaded again."""
    for record in read_manifest(folder).files:
        path = folder / record.name
        if path.is_file() and hash_file(path, folder) != record:
            path.unlink()


@contextmanager
def _failures_told(repo: str, revision: str | None) -> Iterator[None]:
    """What the Hub's client raises, as `ArtifactError`s that say what to do."""
    from huggingface_hub import errors

    at = f" at revision {revision!r}" if revision else ""
    try:
        yield
    except errors.GatedRepoError as error:
        raise ArtifactError(
            f"{repo} is gated and this account has no access",
            hint=f"accept its terms at https://huggingface.co/{repo} and set HF_TOKEN",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ArtifactError(
            f"{repo}: there is no revision {revision!r}",
            allowed="a branch, a tag or a commit hash of the repository",
            hint=f"see https://huggingface.co/{repo}/commits/main",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ArtifactError(
            f"{repo}: there is no such model repository on the Hub, or it is private",
            hint="check the spelling; for a private one set HF_TOKEN to a token that may read it",
        ) from error
    except errors.HFValidationError as error:
        raise ArtifactError(
            f"{repo}: not a Hub id ({error})", hint=f"give {HUB_PREFIX}OWNER/NAME"
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        raise ArtifactError(
            f"{repo}{at}: the Hub answered with HTTP {status}",
            hint="set HF_TOKEN to a token that may read it; a stale one is refused even for what "
            "is public: unset it"
            if status in (_UNAUTHORIZED, _FORBIDDEN)
            else "try again later: what was downloaded is kept",
        ) from error
    # The HTTP library's own error; which library that is differs between versions of the Hub's.
    # An answer that is none, such as a proxy's page, is a ValueError and its kin.
    except (errors.HTTPError, OSError, ValueError, LookupError) as error:  # type: ignore[attr-defined]
        raise ArtifactError(
            f"{repo}{at}: the Hub cannot be reached, or the download broke off: {error}",
            hint="check the connection, HF_ENDPOINT, HF_HUB_OFFLINE and the free space, and run "
            "the command again: what was downloaded is kept",
        ) from error
