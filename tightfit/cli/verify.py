"""`tightfit verify`: the file against the quantizer's numbers, the runtime against transformers."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tightfit.cli.failures import HANDLED
from tightfit.cli.options import JsonFlag, examples
from tightfit.cli.output import StderrReporter, emit, table

if TYPE_CHECKING:
    from tightfit.export.manifest import Verification

EXAMPLES = examples(
    ("verify out", "every tensor bit for bit, and llama.cpp against transformers"),
    ("verify out --json", "the same as a JSON document"),
)


def verify_command(
    artifact: Annotated[Path, typer.Argument(help="Folder that `tightfit export` wrote.")],
    as_json: JsonFlag = False,
) -> None:
    """Prove an artifact: bit for bit, and in its runtime.

    Reads every tensor back and compares llama.cpp's logits with those of transformers. Records the
    outcome in tightfit.json. Exit status 1 when something differs.
    """
    from tightfit.export.manifest import manifest_text
    from tightfit.verify.run import run_verify

    manifest = run_verify(artifact, StderrReporter())
    assert manifest.verification is not None, "run_verify records what it found"
    emit(
        {
            "folder": str(artifact),
            "passed": manifest.verification.passed,
            "verification": json.loads(manifest_text(manifest))["verification"],
        },
        table("", ("check", "result"), _rows(manifest.verification), left=2),
        "passed" if manifest.verification.passed else "FAILED",
        as_json=as_json,
    )
    if not manifest.verification.passed:
        raise typer.Exit(HANDLED)


def _rows(verification: "Verification") -> list[list[str]]:
    rows = [
        ["tensors equal, bit for bit", f"{verification.exact_tensors} of {verification.tensors}"]
    ]
    parity = verification.parity
    if parity is None:
        return rows
    return [
        *rows,
        ["logits compared", f"{parity.runtime} and transformers, {parity.tokens} tokens"],
        ["mean difference", f"{parity.mean_abs_difference:.2e}"],
        ["largest difference", f"{parity.max_abs_difference:.2e}"],
        ["relative difference", f"{parity.relative_difference:.2%}"],
        ["mean KL", f"{parity.mean_kl_nats:.2e} nats"],
        ["largest KL", f"{parity.max_kl_nats:.2e} nats"],
        ["top-1 agreement", f"{parity.top1_agreement:.2%}"],
    ]
