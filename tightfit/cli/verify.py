"""`tightfit verify`: files against the quantizer's numbers, runtimes against transformers."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tightfit.cli.artifacts import engine_text
from tightfit.cli.failures import HANDLED
from tightfit.cli.options import JsonFlag, examples
from tightfit.cli.output import StderrReporter, emit, table
from tightfit.errors import UsageError

if TYPE_CHECKING:
    from tightfit.export.manifest import Artifact, Manifest
    from tightfit.verify.remote import Published

EXAMPLES = examples(
    ("verify out", "every tensor bit for bit, and each runtime against transformers"),
    ("verify out --on-gpu", "also run a TensorRT engine on the card that it was built for"),
    ("verify hub:someone/tiny-r1-GGUF", "the same of what was published, at its newest commit"),
    ("verify out --json", "the same as a JSON document"),
)


def verify_command(
    artifact: Annotated[
        str, typer.Argument(help="Folder that `tightfit export` wrote, or hub:OWNER/NAME.")
    ],
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit on the Hub.", show_default="main")
    ] = None,
    on_gpu: Annotated[
        bool, typer.Option("--on-gpu", help="Run TensorRT engines on this machine's GPU.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Prove artifacts: bit for bit, and in their runtime.

    Reads every tensor back and compares the logits of llama.cpp and onnxruntime with those of
    transformers. Records the outcome in tightfit.json. Exit status 1 when something differs.
    From the Hub only tightfit.json and the files that it lists are downloaded, at one commit.
    """
    from tightfit.export.manifest import manifest_text

    published, manifest = _verify(artifact, revision, on_gpu=on_gpu)
    passed = all(
        made.verification is not None and made.verification.passed for made in manifest.artifacts
    )
    recorded = json.loads(manifest_text(manifest))["artifacts"]
    emit(
        {
            "folder": str(published.folder if published else artifact),
            **({"repo": published.repo, "commit": published.commit} if published else {}),
            **({"not_listed": list(published.not_listed)} if published else {}),
            "passed": passed,
            "artifacts": [
                {key: made[key] for key in ("format", "verification", "engines")}
                for made in recorded
            ],
        },
        *(
            table(made.format, ("check", "result"), _rows(made), left=2)
            for made in manifest.artifacts
        ),
        *_not_run(manifest, artifact),
        *(_origin(published) if published else []),
        "passed" if passed else "FAILED",
        as_json=as_json,
    )
    if not passed:
        raise typer.Exit(HANDLED)


def _verify(
    artifact: str, revision: str | None, *, on_gpu: bool
) -> tuple["Published | None", "Manifest"]:
    from tightfit.pipeline.drift.kept import cache_folder
    from tightfit.verify.remote import HUB_PREFIX, verify_published
    from tightfit.verify.run import run_verify

    reporter = StderrReporter()
    if artifact.startswith(HUB_PREFIX):
        repo = artifact.removeprefix(HUB_PREFIX)
        return verify_published(repo, revision, cache_folder(), reporter, on_gpu=on_gpu)
    if revision is not None:
        raise UsageError(
            f"--revision {revision} with {artifact!r}, which is a folder",
            allowed=f"a revision goes with {HUB_PREFIX}OWNER/NAME",
            hint="leave --revision out",
        )
    return None, run_verify(Path(artifact), reporter, on_gpu=on_gpu)


def _origin(published: "Published") -> list[str]:
    """What was looked at, and what was not."""
    from tightfit.calib.tensor_index import shorten

    lines = [f"{published.repo} at commit {published.commit}", f"kept in {published.folder}"]
    if published.not_listed:
        lines.append(
            "not checked, since tightfit.json does not list them: "
            + shorten([ascii(name)[1:-1] for name in published.not_listed])
        )
    return lines


def _not_run(manifest: "Manifest", folder: str) -> list[str]:
    """What is left to do on the machine that has the card."""
    engines = [engine for made in manifest.artifacts for engine in made.engines]
    if all(engine.executed for engine in engines):
        return []
    command = f"tightfit verify {folder} --on-gpu"
    return [f"engines were checked by their structure; run them where the card is: {command}"]


def _rows(artifact: "Artifact") -> list[list[str]]:
    verification = artifact.verification
    assert verification is not None, "run_verify records what it found"
    rows = [
        ["tensors equal, bit for bit", f"{verification.exact_tensors} of {verification.tensors}"],
        *([engine.file, engine_text(engine)] for engine in artifact.engines),
    ]
    parity = verification.parity
    if parity is None:
        return rows
    return [
        *rows,
        ["logits compared", f"{parity.runtime} and transformers, {parity.tokens} tokens"],
        ["mean difference", f"{parity.mean_abs_difference:.2e}"],
        ["largest difference", f"{parity.max_abs_difference:.2e}"],
        ["relative difference", f"{parity.relative_difference:.1e}"],
        ["of the median position", f"{parity.typical_difference:.1e}"],
        ["relative maximum", f"{parity.relative_maximum:.1e}"],
        ["mean KL", f"{parity.mean_kl_nats:.2e} nats"],
        ["largest KL", f"{parity.max_kl_nats:.2e} nats"],
        ["top-1 agreement", f"{parity.top1_agreement:.2%}"],
    ]
