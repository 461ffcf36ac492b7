"""The whole publication: is it ready, the card, one commit, read back, tags, a collection."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tightfit.errors import PublishError
from tightfit.export.manifest import MANIFEST_NAME, Manifest, read_manifest
from tightfit.publish.card.card import make_card
from tightfit.publish.card.companions import GENERATED, companion_texts
from tightfit.publish.changes import Changes, compare
from tightfit.publish.contents import CARD_NAME, PublishedFile, list_contents
from tightfit.publish.hub import SHORT_COMMIT, HubRepository
from tightfit.publish.readiness import check_ready
from tightfit.publish.request import PublishRequest, check_request
from tightfit.reporter import Reporter

_SLUG: Final = re.compile(r"[^/]+/[\w-]+-[0-9a-f]{16,}")
"""`OWNER/TITLE-ID` of a collection; anything else is a title."""
_SHOWN: Final = 5
"""Names of a list that a message tells."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Publication:
    """What was published, or with `dry_run` what would be."""

    repo: str
    url: str
    branch: str
    private: bool
    """Of a dry run: what a new repository would be."""
    commit: str | None
    """That holds the artifact; None of a dry run."""
    files: tuple[PublishedFile, ...]
    changes: Changes | None
    """None of a dry run, which does not look at the repository."""
    tags: tuple[str, ...]
    collection: str | None
    """Its slug; of a dry run what was asked for."""
    unverified: tuple[str, ...]
    """Problems that were allowed; the card says them."""


def run_publish(request: PublishRequest, reporter: Reporter) -> Publication:
    """Publish a folder that `tightfit export` wrote.

    Raises `ArtifactError` for a folder without a sound manifest, `UsageError` for names that cannot
    be, and `PublishError` for an artifact that is not ready and for whatever the Hub refuses.
    """
    check_request(request)
    manifest = read_manifest(request.folder)
    reporter.stage("Comparing the files with the manifest")
    ready = check_ready(
        request.folder, manifest, allow_unverified=request.allow_unverified, reporter=reporter
    )
    for problem in ready.problems:
        reporter.warning(f"published all the same, as the model card says: {problem}")
    reporter.stage("Writing the model card")
    files = _contents(request, manifest, ready.problems)
    if request.dry_run:
        return _planned(request, files, ready.problems)
    hub = HubRepository(request.repo, request.branch, reporter)
    with hub.telling():
        return _publish(request, hub, files, _message(request, manifest), ready.problems, reporter)


def _contents(
    request: PublishRequest, manifest: Manifest, unverified: Sequence[str]
) -> tuple[PublishedFile, ...]:
    card = make_card(
        manifest, request.folder, request.repo, branch=request.branch, unverified=unverified
    )
    texts = companion_texts(manifest, request.folder, request.repo)
    files = list_contents(request.folder, manifest, {CARD_NAME: card, **texts})
    if read_manifest(request.folder) != manifest:
        raise PublishError(
            f"{request.folder / MANIFEST_NAME} changed while the files were compared with it",
            allowed="a folder that no export, verify or drift is writing to",
            hint="wait until they have ended, and publish again",
        )
    return files


def _message(request: PublishRequest, manifest: Manifest) -> str:
    made = ", ".join(f"{each.format} {each.scheme.name}" for each in manifest.artifacts)
    name = Path(manifest.input.id).name
    return request.message or f"{name} for {manifest.target}: {made} (tightfit)"


def _planned(
    request: PublishRequest, files: tuple[PublishedFile, ...], unverified: tuple[str, ...]
) -> Publication:
    from huggingface_hub import constants

    return Publication(
        repo=request.repo,
        url=f"{constants.ENDPOINT}/{request.repo}",
        branch=request.branch,
        private=not request.public,
        commit=None,
        files=files,
        changes=None,
        tags=request.tags,
        collection=request.collection,
        unverified=unverified,
    )


def _publish(
    request: PublishRequest,
    hub: HubRepository,
    files: tuple[PublishedFile, ...],
    message: str,
    unverified: tuple[str, ...],
    reporter: Reporter,
) -> Publication:
    reporter.stage(f"Looking at {request.repo} on the Hub")
    private = hub.open(private=not request.public)
    _check_visibility(request, private=private, reporter=reporter)
    head = hub.head()
    changes = _changes(request, hub, head, files, reporter)
    missing_tags = _missing_tags(request, hub, None if changes.sent or changes.deleted else head)
    if head is not None and changes.is_empty:
        commit = head
        reporter.info(f"nothing to commit: {request.branch} holds all {len(files)} files already")
    else:
        commit = hub.commit(changes, message=message, parent=head)
    reporter.stage("Comparing what the Hub holds with the local files")
    hub.check(commit, files)
    for tag in missing_tags:
        hub.tag(tag, commit)
    collection = request.collection and hub.collect(
        request.collection,
        is_slug=_SLUG.fullmatch(request.collection) is not None,
        private=private,
    )
    return Publication(
        repo=request.repo,
        url=hub.url,
        branch=request.branch,
        private=private,
        commit=commit,
        files=files,
        changes=changes,
        tags=request.tags,
        collection=collection,
        unverified=unverified,
    )


def _check_visibility(request: PublishRequest, *, private: bool, reporter: Reporter) -> None:
    """A repository keeps its visibility: what is private by default must not become public."""
    if not private and not request.public:
        raise PublishError(
            f"{request.repo} exists and is public",
            allowed="without --public nothing is published for all to see. Nothing was changed",
            hint="add --public, or make the repository private in its settings first",
        )
    if private and request.public:
        reporter.warning(
            f"{request.repo} exists and is private; it stays so: --public is for new repositories. "
            "Its settings on the Hub make it public"
        )


def _changes(
    request: PublishRequest,
    hub: HubRepository,
    head: str | None,
    files: Sequence[PublishedFile],
    reporter: Reporter,
) -> Changes:
    """Against the head; raises `PublishError` where another's file would be replaced."""
    there = hub.tree(head) if head else {}
    ours_before: frozenset[str] = frozenset()
    if head and MANIFEST_NAME in there:
        ours_before = hub.published_before(head) | {CARD_NAME, *GENERATED}
    changes = compare(files, there, ours_before)
    foreign = [file.path for file in changes.replaced if file.path not in ours_before]
    if foreign and not request.overwrite:
        raise PublishError(
            f"{request.repo} has files that tightfit did not put there and this would replace: "
            f"{_shown(foreign)}. No file was changed",
            allowed="a new repository, or one that holds an artifact of tightfit's",
            hint="choose another name, or add --overwrite: the old files stay in the history",
        )
    if changes.deleted:
        reporter.info(f"deleted, as files of the artifact before: {_shown(changes.deleted)}")
    if changes.left:
        reporter.warning(
            f"{request.repo} has files that are not of this artifact; they stay: "
            f"{_shown(changes.left)}"
        )
    return changes


def _missing_tags(
    request: PublishRequest, hub: HubRepository, commit: str | None
) -> tuple[str, ...]:
    """Tags to be made; raises `PublishError` for one that stands elsewhere.

    `commit` is what they will name, None when it is not made yet. Asked before anything is sent.
    """
    if not request.tags:
        return ()
    there = hub.tags()
    for tag in request.tags:
        if tag in there and there[tag] != commit:
            raise PublishError(
                f"--tag {tag}: {request.repo} has that tag, on another commit "
                f"({there[tag][:SHORT_COMMIT]})",
                allowed=f"a tag stays where it is; there are: {_shown(sorted(there))}. "
                "No file was changed",
                hint="choose another name, or delete the tag on the Hub first",
            )
    return tuple(tag for tag in request.tags if tag not in there)


def _shown(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
