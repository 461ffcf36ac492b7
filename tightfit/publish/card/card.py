"""The model card: README.md of a published artifact, every figure from its manifest."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined

from tightfit.export.manifest import Artifact, ExpertsRecord, Manifest
from tightfit.publish.card import layout, numerals
from tightfit.publish.card.losses import loss_tables
from tightfit.publish.card.markdown import (
    Markdown,
    block,
    cell_code,
    code,
    command,
    finalize,
    link,
    listed,
    text,
)
from tightfit.publish.card.metadata import front_matter
from tightfit.publish.card.model import BaseModel, base_model
from tightfit.publish.card.proof import proof_lines
from tightfit.publish.card.reproduce import export_commands
from tightfit.publish.card.results import Drift, read_drift
from tightfit.publish.card.usage import MAIN, revision_option, usages
from tightfit.targets.profile import list_targets, load_target

TEMPLATE: Final = "card.md"
_HUB: Final = "https://huggingface.co"
_FITS: Final = re.compile(r"it takes (?:about )?([\d.]+ \w+) of the ([\d.]+ \w+) that ")
"""In the plan's reason."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FileRow:
    """One format in the table of files."""

    format: str
    names: Markdown
    size: str
    bits_per_weight: str
    scheme: str
    memory: str
    """In use, of what the target has; empty where the plan does not say so."""


def make_card(
    manifest: Manifest,
    folder: Path,
    repo: str,
    *,
    branch: str = MAIN,
    unverified: Sequence[str] = (),
) -> str:
    """README.md with front matter for a branch of the repository `repo` (`OWNER/NAME`).

    `folder` holds the artifact's small files; `unverified` says what was not checked, or failed.
    Raises `DriftError` when the manifest holds a damaged drift report.
    """
    base, drift = base_model(manifest.input), read_drift(manifest)
    card = (
        _environment()
        .get_template(TEMPLATE)
        .render(
            front_matter=Markdown(front_matter(manifest, base, drift, repo)),
            name=repo.rpartition("/")[2],
            repo=repo,
            manifest=manifest,
            base=base,
            base_link=_model_link(base.id if base.hub_id else None, base.id),
            parent_link=_model_link(base.derived_from, base.derived_from or ""),
            terms_link=base.terms and Markdown(f"[{text(base.terms.name)}]({base.terms.url})"),
            unverified=unverified,
            labels=listed([layout.label(made) for made in manifest.artifacts]),
            target=_target(manifest.target),
            files=[_file_row(made) for made in manifest.artifacts],
            reasons=_reasons(manifest.artifacts),
            tables=loss_tables(drift),
            outdated=listed([layout.label(made) for made in drift.outdated] or [""]),
            missing=listed([layout.label(made) for made in drift.missing] or [""]),
            proofs=proof_lines(manifest),
            sampling=_advice(layout.sampling(manifest, folder)) if base.is_r1 else [],
            opens_thought="<think>" in layout.chat_template(manifest, folder),
            usages=usages(manifest, folder, repo, branch),
            commands=block("sh", export_commands(manifest)),
            verify_command=block(
                "sh", [command("tightfit", "verify", f"hub:{repo}", *revision_option(branch))]
            ),
            versions=listed([f"{name} {version}" for name, version in manifest.versions.items()]),
            own_calibration=_is_own_file(manifest),
            experts=_experts(manifest.artifacts),
            has_engines=any(made.engines for made in manifest.artifacts),
            limits=_limits(manifest, base, drift),
        )
    )
    # Half a surrogate pair is no character of a file.
    return card.encode("utf-8", "replace").decode("utf-8")


def _environment() -> Environment:
    """Jinja whose every expression is escaped, unless it is `Markdown`."""
    environment = Environment(
        loader=PackageLoader("tightfit.publish.card", "templates"),
        # Markdown, not HTML: `finalize` escapes.
        autoescape=False,
        finalize=finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"code": code, "cell": _cell}
    return environment


def _cell(value: str) -> Markdown:
    """A cell of a table; an empty one needs its space."""
    return text(value) or Markdown(" ")


def _model_link(hub_id: str | None, shown: str) -> Markdown:
    return link(shown, f"{_HUB}/{hub_id}") if hub_id else code(shown)


def _target(name: str) -> Markdown:
    """A built-in target by what it is."""
    if name not in list_targets():
        return code(name)
    return Markdown(f"{code(name)} ({text(load_target(name).description)})")


def _advice(sampling: Mapping[str, Any]) -> list[str]:
    return [f"{key.replace('top_', 'top-')} {value}" for key, value in sampling.items()]


def _file_row(artifact: Artifact) -> FileRow:
    main = layout.main_files(artifact)
    more = len(artifact.files) - len(main)
    shown = ", ".join(map(cell_code, main)) + (f" and {more} more" if more else "")
    return FileRow(
        format=layout.label(artifact),
        names=Markdown(shown),
        size=numerals.size(sum(record.size_bytes for record in artifact.files)),
        bits_per_weight=f"{artifact.bits_per_weight:.2f}",
        scheme=artifact.scheme.name,
        memory=_memory(artifact),
    )


def _memory(artifact: Artifact) -> str:
    found = _FITS.search(artifact.scheme.reason)
    return f"{found[1]} of {found[2]}" if found else ""


def _reasons(artifacts: Sequence[Artifact]) -> list[tuple[str, str]]:
    """The plan's reasons with the formats that they are of."""
    by_reason: dict[str, list[str]] = {}
    for artifact in artifacts:
        by_reason.setdefault(artifact.scheme.reason, []).append(layout.label(artifact))
    return [(listed(labels), reason) for reason, labels in by_reason.items()]


def _is_own_file(manifest: Manifest) -> bool:
    """Whether the calibration text is a file that only its owner has."""
    used = manifest.calibration
    return used is not None and used.source.partition(":")[0] not in ("embedded", "self")


def _experts(artifacts: Sequence[Artifact]) -> str:
    """What the calibration saw of a mixture's experts; empty when there are none."""
    records: Sequence[ExpertsRecord] = next(
        (made.experts for made in artifacts if made.experts), ()
    )
    if not records:
        return ""
    tokens = [visits for record in records for visits in record.tokens]
    unseen = sum(visits == 0 for visits in tokens)
    least = f"The least visited of them saw {numerals.count(min(tokens), 'token')}"
    return (
        f"The model is a mixture of experts: {numerals.count(len(tokens), 'routed expert')} in "
        f"{numerals.count(len(records), 'layer')} were calibrated on the tokens that the router "
        "sent them. "
        + (f"{unseen} of them saw no token" if unseen else least)
        + "; where an expert saw few, the statistics of its whole layer fill in."
    )


def _limits(manifest: Manifest, base: BaseModel, drift: Drift) -> list[str]:
    limits = []
    if base.embedded:
        limits.append(
            "tiny-r1 is a model for trying tightfit: it knows small-number arithmetic in R1's "
            "format and nothing else."
        )
    limits.append(
        f"The plan kept room for {manifest.context_tokens} tokens of context on "
        f"{manifest.target}; more context needs more memory."
    )
    devices = dict.fromkeys(report.runtime.device for _, report in drift.measured)
    if devices:
        limits.append(
            f"The loss was measured on these problems, in these runtimes, on {listed([*devices])}: "
            "other tasks may lose more, and other hardware rounds differently."
        )
    else:
        limits.append("How far its answers are from the original's was not measured.")
    if any(not engine.executed for made in manifest.artifacts for engine in made.engines):
        limits.append("The TensorRT engine was built and inspected, and has not been run.")
    experimental = any(
        engine.experimental for made in manifest.artifacts for engine in made.engines
    )
    if experimental:
        limits.append("NVIDIA's support matrix leaves out a card that the engine is built for.")
    if manifest.calibration and manifest.calibration.source == "embedded" and not base.embedded:
        limits.append(
            "It was calibrated on tightfit's embedded arithmetic, which is narrow for this model."
        )
    limits.append("What the original gets wrong, this gets wrong too.")
    return limits
