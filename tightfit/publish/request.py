"""What `tightfit publish` is asked for."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tightfit.errors import UsageError

MAIN: Final = "main"
_OWNER_AND_NAME: Final = re.compile(r"[^/]+/[^/]+")
_REF: Final = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*", re.ASCII)
"""Names of branches and tags that git takes; it takes more, which nobody needs."""
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishRequest:
    """An artifact and where it goes."""

    folder: Path
    """That `tightfit export` wrote."""
    repo: str
    """`OWNER/NAME`."""
    public: bool = False
    """Of a new repository; a public one that exists already is refused without it."""
    revision: str | None = None
    """Branch, made when it is missing; None: `main`."""
    tags: tuple[str, ...] = ()
    collection: str | None = None
    """Slug of one that exists, or the title of one of the owner's, made when it is missing."""
    allow_unverified: bool = False
    """Publish what was not verified or has drifted; the model card says so."""
    overwrite: bool = False
    """Replace files in the repository that tightfit did not put there."""
    dry_run: bool = False
    message: str | None = None
    """Of the commit; None: one that names the model, the formats and the target."""

    @property
    def branch(self) -> str:
        """Where the commit goes."""
        return self.revision or MAIN

    @property
    def owner(self) -> str:
        """Of the repository."""
        return self.repo.partition("/")[0]


def check_request(request: PublishRequest) -> None:
    """Raise `UsageError` for names that the Hub cannot have."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(request.repo)
        reason = "" if _OWNER_AND_NAME.fullmatch(request.repo) else "no owner"
    except HFValidationError as error:
        reason = str(error)
    if reason:
        raise UsageError(
            f"--repo {request.repo} is no repository: {reason}",
            allowed="OWNER/NAME: your user name or an organization's, and a name",
            hint="e.g. --repo someone/r1-distill-qwen-7b-rtx3060",
        )
    for option, name in (("--revision", request.branch), *(("--tag", tag) for tag in request.tags)):
        if not _is_ref(name):
            raise UsageError(
                f"{option} {name} is no name of a {'tag' if option == '--tag' else 'branch'}",
                allowed="letters, digits, `.`, `-`, `_` and `/`; no commit and no refs/...",
                hint=f"e.g. {option} v1",
            )
    if request.branch in request.tags:
        raise UsageError(
            f"--tag {request.branch} is the name of the branch",
            allowed="a tag and a branch with different names",
            hint="choose another tag",
        )
    if request.message is not None and not request.message.strip():
        raise UsageError(
            "--message is empty", allowed="a line of text", hint="leave it out for a default one"
        )


def _is_ref(name: str) -> bool:
    return (
        _REF.fullmatch(name) is not None
        and ".." not in name
        and not name.startswith("refs/")
        and not any(part.endswith((".lock", ".")) for part in name.split("/"))
        and _COMMIT.fullmatch(name) is None
    )
