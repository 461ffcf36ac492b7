"""Which kept baseline serves a request, and a new one where none does."""

import shutil
from pathlib import Path

from tightfit.calib.checkpoint import COMPANIONS, Checkpoint
from tightfit.calib.hub import resolve_commit
from tightfit.calib.locate import model_id
from tightfit.calib.tokenizer import load_tokenizer, prompt_ids
from tightfit.drift.data.subset import Subset
from tightfit.errors import DriftError
from tightfit.files import whole_file
from tightfit.pipeline.drift import kept
from tightfit.pipeline.drift.identity import Identity, content_sha256, current_versions
from tightfit.pipeline.drift.kept import BaselineRecord, Probe
from tightfit.pipeline.drift.original import RUNTIME, Original
from tightfit.pipeline.drift.request import DriftRequest, fit_context
from tightfit.reporter import Reporter

PROBES = ("<think>", "</think>")
"""Beside a problem's text: tokenizers of one family differ in their special tokens."""


def find_baseline(
    request: DriftRequest, subset: Subset, original: Original, reporter: Reporter
) -> tuple[Path, BaselineRecord]:
    """Folder and record of the baseline that the request asks for.

    `subset` is in the order in which problems are visited. Raises `CheckpointError`, `DriftError`
    and `UsageError`.
    """
    path = request.baseline_cache
    if path is not None and path.exists():
        packed = kept.read_packed_record(path)
        _refuse_another(path, packed.identity, request, subset, original)
        if _is_current(path, packed.identity, reporter):
            folder = kept.baseline_folder(packed.identity)
            kept.unpack(path, folder)
            return folder, packed
    checkpoint = original.checkpoint
    identity = Identity(
        model=checkpoint.source.id,
        revision=checkpoint.source.revision,
        content_sha256=content_sha256(checkpoint),
        protocol=request.protocol.resolve(subset.spec.source),
        problems_sha256=subset.sha256,
        versions=current_versions(),
    )
    folder = kept.baseline_folder(identity)
    record = kept.read_record(folder)
    if record is None:
        record = _new_record(request, original, identity, subset)
        _write(folder, checkpoint, record)
    return folder, record


def _refuse_another(
    path: Path, held: Identity, request: DriftRequest, subset: Subset, original: Original
) -> None:
    pairs = {
        "model": (held.model, model_id(request.baseline)),
        "revision": (held.revision, _commit(request, held)),
        "protocol": (held.protocol, request.protocol.resolve(subset.spec.source)),
        "problems": (held.problems_sha256[:12], subset.sha256[:12]),
    }
    if pairs["model"][0] == pairs["model"][1]:
        pairs["content"] = (held.content_sha256, original.local_content() or held.content_sha256)
    differences = [
        f"{what}: kept {theirs}, asked for {ours}"
        for what, (theirs, ours) in pairs.items()
        if theirs != ours
    ]
    if differences:
        raise DriftError(
            f"{path} holds another baseline: " + "; ".join(differences),
            allowed="a kept baseline serves one model, protocol and subset",
            hint="name another file with --baseline-cache, or ask for what it holds",
        )


def _commit(request: DriftRequest, held: Identity) -> str | None:
    """The commit that is asked for; a branch or tag is looked up on the Hub."""
    if request.revision in (None, held.revision) or held.revision is None:
        return held.revision
    return resolve_commit(held.model, request.revision)


def _is_current(path: Path, held: Identity, reporter: Reporter) -> bool:
    changed = [
        name for name, number in current_versions().items() if held.versions.get(name) != number
    ]
    if changed:
        reporter.warning(
            f"{path} was made under another definition of {', '.join(changed)}: the baseline is "
            "computed anew"
        )
    return not changed


def _new_record(
    request: DriftRequest, original: Original, identity: Identity, subset: Subset
) -> BaselineRecord:
    checkpoint = original.checkpoint
    tokenizer = load_tokenizer(checkpoint.path)
    suffix = f"\n{identity.protocol.instruction}" if identity.protocol.instruction else ""
    prompts = [prompt_ids(tokenizer, problem.problem + suffix) for problem in subset.problems]
    probes = [subset.problems[0].problem, *PROBES]
    return BaselineRecord(
        schema_version=kept.SCHEMA_VERSION,
        identity=identity,
        protocol=fit_context(
            identity.protocol,
            prompts,
            checkpoint.dimensions.max_position_embeddings,
            explicit=request.protocol.max_tokens is not None,
        ),
        runtime=RUNTIME,
        logits=original.logits_label,
        vocab_size=checkpoint.dimensions.vocab_size,
        probes=tuple(
            Probe(text=text, ids=tuple(tokenizer.encode(text, add_special_tokens=False)))
            for text in probes
        ),
        prompts=tuple(map(tuple, prompts)),
    )


def _write(folder: Path, checkpoint: Checkpoint, record: BaselineRecord) -> None:
    copies = folder / kept.TOKENIZER
    copies.mkdir(parents=True, exist_ok=True)
    for name in COMPANIONS:
        if (checkpoint.path / name).is_file():
            with whole_file(copies / name) as part:
                shutil.copyfile(checkpoint.path / name, part)
    kept.write_record(folder, record)
