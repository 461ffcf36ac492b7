"""`tightfit publish`: an artifact to the Hugging Face Hub."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tightfit.cli.options import JsonFlag, examples
from tightfit.cli.output import StderrReporter, emit, table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tightfit.publish.run import Publication

EXAMPLES = examples(
    ("publish out --repo someone/r1-for-me --dry-run", "what would go where; asks nobody"),
    ("publish out --repo someone/r1-for-me --dry-run --card card.md", "and its model card"),
    ("publish out --repo someone/r1-for-me", "to a private repository, made when missing"),
    ("publish out --repo someone/r1-for-me --public --tag v1", "for all to see"),
    ("publish out --repo someone/r1-for-me --revision awq", "to a branch of its own"),
    ("publish out --repo someone/r1-for-me --collection 'R1, small'", "and into a collection"),
)
_HASH_SHOWN = 16


def publish_command(
    artifact: Annotated[Path, typer.Argument(help="Folder that `tightfit export` wrote.")],
    repo: Annotated[str, typer.Option("--repo", help="OWNER/NAME on the Hub.")],
    public: Annotated[
        bool, typer.Option("--public", help="A new repository is public. [default: private]")
    ] = False,
    revision: Annotated[
        str | None,
        typer.Option("--revision", help="Branch, made when it is missing. [default: main]"),
    ] = None,
    tag: Annotated[
        list[str] | None, typer.Option("--tag", help="Tag of the commit; several times if need be.")
    ] = None,
    collection: Annotated[
        str | None,
        typer.Option(
            "--collection",
            help="Add it to a collection: its slug, or a title among the owner's, made when it is "
            "missing.",
        ),
    ] = None,
    message: Annotated[str | None, typer.Option("--message", help="Of the commit.")] = None,
    allow_unverified: Annotated[
        bool,
        typer.Option(
            "--allow-unverified",
            help="Publish what was not verified or measured, or failed; the model card says so.",
        ),
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace files that tightfit did not put there."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would go where, and stop.")
    ] = False,
    card: Annotated[
        Path | None, typer.Option("--card", help="Also write the model card here, to read it.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Publish an artifact on the Hugging Face Hub, with its model card.

    Refuses what was changed, not verified, or drifted beyond the limits. All files become visible
    in one commit, which is read back and compared. Interrupted, the same command continues. The
    token is that of `hf auth login` or HF_TOKEN.
    """
    from tightfit.files import write_text_whole
    from tightfit.publish.contents import CARD_NAME
    from tightfit.publish.request import PublishRequest
    from tightfit.publish.run import run_publish

    request = PublishRequest(
        folder=artifact,
        repo=repo,
        public=public,
        revision=revision,
        tags=tuple(dict.fromkeys(tag or ())),
        collection=collection,
        allow_unverified=allow_unverified,
        overwrite=overwrite,
        dry_run=dry_run,
        message=message,
    )
    publication = run_publish(request, StderrReporter())
    emit(_document(publication), *_render(publication), as_json=as_json)
    if card is not None:
        (readme,) = (file for file in publication.files if file.path == CARD_NAME)
        write_text_whole(card, readme.read().decode())


def _document(publication: "Publication") -> dict[str, Any]:
    changes = publication.changes
    return {
        "repo": publication.repo,
        "url": publication.url,
        "revision": publication.branch,
        "visibility": _visibility(publication),
        "dry_run": publication.commit is None,
        "commit": publication.commit,
        "tags": publication.tags,
        "collection": publication.collection,
        "unverified": publication.unverified,
        "files": [
            {
                "path": file.path,
                "size_bytes": file.size_bytes,
                "sha256": file.sha256,
                "storage": file.storage,
            }
            for file in publication.files
        ],
        "changes": changes
        and {
            "added": [file.path for file in changes.added],
            "replaced": [file.path for file in changes.replaced],
            "unchanged": [file.path for file in changes.unchanged],
            "deleted": changes.deleted,
            "left": changes.left,
        },
    }


def _render(publication: "Publication") -> "list[RenderableType]":
    from tightfit.targets.memory_use import size_text

    is_planned = publication.commit is None
    files = [
        [file.path, size_text(file.size_bytes), file.sha256[:_HASH_SHOWN], file.storage]
        for file in publication.files
    ]
    size = size_text(sum(file.size_bytes for file in publication.files))
    facts = [
        ["to", publication.url],
        ["visibility", _visibility(publication) + (", if it is new" if is_planned else "")],
        ["branch", publication.branch],
        *([["commit", publication.commit]] if publication.commit else []),
        *([["tags", ", ".join(publication.tags)]] if publication.tags else []),
        *([["collection", publication.collection]] if publication.collection else []),
        ["files", f"{len(files)}, {size}" + _done(publication)],
        *(["unverified", problem] for problem in publication.unverified),
    ]
    end = "dry run: nothing was sent" if is_planned else f"published: {publication.url}"
    return [
        table("", ("file", "size", "sha256", "stored as"), files, left=1),
        table("", ("publication", ""), facts, left=2),
        end,
    ]


def _done(publication: "Publication") -> str:
    """How many files were added, replaced ...; those that are none are left out."""
    changes = publication.changes
    if changes is None:
        return ""
    counts = {
        "added": len(changes.added),
        "replaced": len(changes.replaced),
        "unchanged": len(changes.unchanged),
        "of before deleted": len(changes.deleted),
    }
    return ": " + ", ".join(f"{count} {what}" for what, count in counts.items() if count)


def _visibility(publication: "Publication") -> str:
    return "private" if publication.private else "public"
