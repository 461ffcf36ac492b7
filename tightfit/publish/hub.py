"""A repository on the Hugging Face Hub: what is there, and what is put there.

Everything becomes visible in one commit. Large files are sent before it, one by one, by
`preupload_lfs_files`, which asks the server what it has already (LFS) or sends only the chunks that
it lacks (Xet), so that an interrupted upload continues. `upload_folder` of huggingface_hub 2.4 and
`upload_large_folder` of 1.x resume as well, but commit in several parts: a repository would show
half an artifact.

Each call is one step with a name. `state` says at any time what the repository shows; a failure
repeats it.
"""

import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tightfit import __version__
from tightfit.errors import PublishError
from tightfit.export.manifest import MANIFEST_NAME
from tightfit.publish.changes import Changes, RemoteFile, is_same, listed_files
from tightfit.publish.contents import PublishedFile
from tightfit.publish.failures import explain, is_definite, leaks, sentence
from tightfit.publish.secrets import mask
from tightfit.reporter import Reporter
from tightfit.targets.memory_use import size_text

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, ModelInfo

LARGE_BYTES: Final = 10 << 20
"""From here on a file is sent by itself, before the commit: what a rerun should not send again."""
_NOT_FOUND: Final = 404
_STDERR: Final = 2
SHORT_COMMIT: Final = 12
"""Characters of a commit that are shown."""


class HubRepository:
    """One branch of one repository, for one publication."""

    def __init__(self, repo: str, branch: str, reporter: Reporter) -> None:
        """Raises `PublishError` when there is no token; asks nothing of the Hub."""
        from huggingface_hub import HfApi, get_token

        self.repo = repo
        self.branch = branch
        self.owner = repo.partition("/")[0]
        self.state = "nothing was changed on the Hub"
        self._reporter = reporter
        self._token: str | None = None
        with self._step("reading the token"):
            self._token = get_token()
        if self._token is None:
            raise PublishError(
                f"there is no token to publish {repo} with",
                allowed=f"a token with write access to {self.owner}",
                hint="log in with `hf auth login`, or set HF_TOKEN; --dry-run needs none",
            )
        self._api = HfApi(library_name="tightfit", library_version=__version__)

    @property
    def url(self) -> str:
        """The page of the repository."""
        return f"{self._api.endpoint}/{self.repo}"

    def open(self, *, private: bool) -> bool:
        """Find the repository, or create it; returns whether it is private."""
        found = self._info()
        if found is None:
            self._reporter.stage(f"Creating {self.repo} ({'private' if private else 'public'})")
            missing = self.state
            self.state = f"whether {self.repo} was created is not known: the same command looks"
            with self._step(f"creating {self.repo}", refused=missing):
                self._api.create_repo(self.repo, private=private, exist_ok=True)
            self.state = f"{self.repo} exists, without this artifact"
            found = self._info()
        if found is None:
            raise PublishError(
                f"{self.repo} was created and cannot be found",
                allowed=sentence(self.state),
                hint="run the same command again",
            )
        self.state = f"no file in {self.repo} was changed"
        return bool(found.private)

    def head(self) -> str | None:
        """The commit that the branch shows; the branch is made where there is none.

        None in a repository without a commit.
        """
        with self._step(f"listing the branches of {self.repo}"):
            refs = self._api.list_repo_refs(self.repo)
        heads = {ref.name: ref.target_commit for ref in refs.branches}
        if self.branch in heads or not heads:
            return heads.get(self.branch)
        if self.branch in {ref.name for ref in refs.tags}:
            raise PublishError(
                f"--revision {self.branch} is a tag of {self.repo}",
                allowed=f"a branch: {', '.join(heads)}, or a new one",
                hint="a tag stays with its commit: choose another name",
            )
        with self._step(f"creating the branch {self.branch} of {self.repo}"):
            self._api.create_branch(self.repo, branch=self.branch, exist_ok=True)
            refs = self._api.list_repo_refs(self.repo)
            made = {ref.name: ref.target_commit for ref in refs.branches}
            if self.branch not in made:
                raise ValueError("the branch was created and cannot be found")
        return made[self.branch]

    def tags(self) -> dict[str, str]:
        """Commits by tag."""
        with self._step(f"listing the tags of {self.repo}"):
            refs = self._api.list_repo_refs(self.repo)
        return {ref.name: ref.target_commit for ref in refs.tags}

    def tree(self, commit: str) -> dict[str, RemoteFile]:
        """All files of a commit by path."""
        from huggingface_hub.hf_api import RepoFile

        with self._step(f"listing the files of {self.repo}"):
            entries = list(self._api.list_repo_tree(self.repo, revision=commit, recursive=True))
        return {
            entry.path: RemoteFile(
                size_bytes=entry.size,
                blob_id=entry.blob_id,
                sha256=entry.lfs.sha256 if entry.lfs else None,
            )
            for entry in entries
            if isinstance(entry, RepoFile)
        }

    def published_before(self, commit: str) -> frozenset[str]:
        """What the manifest in a commit lists, itself included."""
        with (
            self._step(f"reading {MANIFEST_NAME} of {self.repo}"),
            tempfile.TemporaryDirectory() as folder,
        ):
            path = self._api.hf_hub_download(
                self.repo, MANIFEST_NAME, revision=commit, local_dir=folder
            )
            content = Path(path).read_bytes()
        try:
            return listed_files(content) | {MANIFEST_NAME}
        except ValueError as error:
            self._reporter.warning(
                f"the {MANIFEST_NAME} in {self.repo} is damaged ({error}): files of the artifact "
                "before are not known and stay"
            )
            return frozenset({MANIFEST_NAME})

    def commit(self, changes: Changes, *, message: str, parent: str | None) -> str:
        """Send what is not there and commit everything at once; returns the commit."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        additions = [
            CommitOperationAdd(
                path_in_repo=file.path,
                path_or_fileobj=file.source if isinstance(file.source, bytes) else str(file.source),
            )
            for file in changes.sent
        ]
        self._upload(changes.sent, additions)
        n_deleted = len(changes.deleted)
        deleting = f", {n_deleted} deleted" if n_deleted else ""
        self._reporter.stage(f"Committing to {self.branch}: {len(additions)} files{deleting}")
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            *additions,
            *(CommitOperationDelete(path, is_folder=False) for path in changes.deleted),
        ]
        refused = self.state
        self.state = (
            "whether the commit was made is not known: the same command looks, and does the rest"
        )
        with self._step(f"committing to {self.branch} of {self.repo}", refused=refused):
            made = self._api.create_commit(
                self.repo,
                operations,
                commit_message=message,
                revision=self.branch,
                parent_commit=parent,
            )
        self.state = f"the commit {made.oid[:SHORT_COMMIT]} is made, and not compared"
        return str(made.oid)

    def check(self, commit: str, files: Sequence[PublishedFile]) -> None:
        """Raise `PublishError` unless the commit holds exactly this content."""
        there = self.tree(commit)
        wrong = [
            f"{file.path} is missing" if file.path not in there else f"{file.path} differs"
            for file in files
            if not is_same(file, there.get(file.path))
        ]
        if wrong:
            raise PublishError(
                "\n  ".join(
                    [f"{self.repo} does not hold what was sent ({commit[:SHORT_COMMIT]}):", *wrong]
                ),
                allowed="The commit is made and is not the artifact: do not use it",
                hint="look for a .gitignore in the repository, or for somebody else's commit; then "
                "run the same command again",
            )
        self.state = (
            f"the files are published, whole and compared (commit {commit[:SHORT_COMMIT]}); what "
            "comes after them is not done"
        )

    def tag(self, name: str, commit: str) -> None:
        """Give a commit a tag that does not exist."""
        with self._step(f"tagging {self.repo} as {name}"):
            self._api.create_tag(self.repo, tag=name, revision=commit)

    def collect(self, collection: str, *, is_slug: bool, private: bool) -> str:
        """Put the repository into a collection; returns the slug."""
        with self._step(f"adding {self.repo} to the collection {collection}"):
            slug = collection
            if not is_slug:
                made = self._api.create_collection(
                    collection, namespace=self.owner, private=private, exists_ok=True
                )
                slug = made.slug
            self._api.add_collection_item(slug, self.repo, "model", exists_ok=True)
        return slug

    @contextmanager
    def telling(self) -> Iterator[None]:
        """What the client logs (its retries) goes to the reporter; Ctrl-C says the state."""
        from huggingface_hub.utils import (  # type: ignore[attr-defined]
            are_progress_bars_disabled,
            disable_progress_bars,
            enable_progress_bars,
        )

        logger = logging.getLogger("huggingface_hub")
        handlers, propagate = logger.handlers, logger.propagate
        logger.handlers = [_ToReporter(self._reporter, self._token)]
        logger.propagate = False
        # In a log the client's bars, which know how far a file is, would be a line each time.
        quiet = not os.isatty(_STDERR) and not are_progress_bars_disabled()
        if quiet:
            disable_progress_bars()
        try:
            yield
        except (KeyboardInterrupt, SystemExit):
            self._reporter.warning(f"interrupted: {self.state}")
            raise
        finally:
            logger.handlers, logger.propagate = handlers, propagate
            if quiet:
                enable_progress_bars()

    def _info(self) -> "ModelInfo | None":
        from huggingface_hub.errors import RepositoryNotFoundError

        with self._step(f"looking for {self.repo}"):
            try:
                return self._api.model_info(self.repo)
            except RepositoryNotFoundError as error:
                # The same error with 401 means that the token is not known.
                if error.response.status_code != _NOT_FOUND:
                    raise
                return None

    def _upload(
        self, files: Sequence[PublishedFile], additions: "Sequence[CommitOperationAdd]"
    ) -> None:
        """Send the contents of LFS files: the large ones each by itself, then the small ones."""
        pairs = list(zip(files, additions, strict=True))
        for file, addition in pairs:
            if file.size_bytes >= LARGE_BYTES:
                self._send(f"{file.path} ({size_text(file.size_bytes)})", [addition])
        small = [addition for file, addition in pairs if file.size_bytes < LARGE_BYTES]
        if small:
            self._send(f"{len(small)} small files", small)
        for file, addition in pairs:
            # The client hashes what it sends: it must be what was checked.
            if addition.upload_info.sha256.hex() != file.sha256:
                raise PublishError(
                    f"{file.path} changed while it was uploaded",
                    allowed=sentence(self.state),
                    hint="let nothing write to the folder, and export or restore the file",
                )

    def _send(self, what: str, additions: "list[CommitOperationAdd]") -> None:
        self._reporter.stage(f"Uploading {what}")
        with self._step(f"uploading {what} to {self.repo}"):
            self._api.preupload_lfs_files(
                self.repo, additions, revision=self.branch, free_memory=False
            )
        self.state = f"no file in {self.repo} was changed, and what was uploaded is not sent again"

    @contextmanager
    def _step(self, doing: str, *, refused: str | None = None) -> Iterator[None]:
        """A failure inside becomes a `PublishError`; `refused` is the state after a refusal."""
        from huggingface_hub import errors

        try:
            yield
        # The client wraps failures of its threads as RuntimeError, and answers as ValueError; an
        # answer in another form than the Hub's (a proxy's page) breaks it with the other two.
        except (
            errors.HTTPError,  # type: ignore[attr-defined]
            OSError,
            ValueError,
            RuntimeError,
            LookupError,
            TypeError,
        ) as error:
            state = refused if refused is not None and is_definite(error) else self.state
            told = explain(error, doing=doing, state=state, owner=self.owner, token=self._token)
            raise told from (None if leaks(error, self._token) else error)


class _ToReporter(logging.Handler):
    """Log lines as warnings, without tokens."""

    def __init__(self, reporter: Reporter, token: str | None) -> None:
        super().__init__()
        self._reporter = reporter
        self._token = token

    def emit(self, record: logging.LogRecord) -> None:
        """Tell one line."""
        self._reporter.warning(mask(record.getMessage(), self._token))
