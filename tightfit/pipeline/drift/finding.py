"""Which kept baseline serves a request, and a new one where none does."""

import shutil
from importlib.metadata import version
from pathlib import Path

from tightfit.calib.checkpoint import COMPANIONS, Checkpoint
from tightfit.calib.locate import model_id
from tightfit.calib.tokenizer import load_tokenizer, prompt_ids
from tightfit.drift.data.subset import Subset
from tightfit.errors import DriftError
from tightfit.pipeline.drift import kept
from tightfit.pipeline.drift.identity import Identity, content_sha256, current_versions
from tightfit.pipeline.drift.kept import BaselineRecord
from tightfit.pipeline.drift.original import Original
from tightfit.pipeline.drift.request import DriftRequest, fit_context
from tightfit.reporter import Reporter
from tightfit.runtimes.llamacpp import binding


def find_baseline(
    request: DriftRequest, subset: Subset, original: Original, reporter: Reporter
) -> tuple[Path, BaselineRecord]:
    """Folder and record of the baseline that the request asks for.

    `subset` is in the order in which problems are visited. Raises `CheckpointError`, `DriftError`
    and `UsageError`.
    """
    path = request.baseline_cache
    if path is not None and path.exists():
        record = kept.read_packed_record(path)
        _refuse_another(path, record.identity, request, subset, original)
        if _is_current(path, record.identity, reporter):
            folder = kept.baseline_folder(record.identity)
            kept.unpack(path, folder)
            return folder, record
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
    record = kept.read_record(folder) or _new_record(request, checkpoint, identity, subset)
    _write(folder, checkpoint, record)
    return folder, record


def _refuse_another(
    path: Path, held: Identity, request: DriftRequest, subset: Subset, original: Original
) -> None:
    pairs = {
        "model": (held.model, model_id(request.baseline)),
        "revision": (held.revision, request.revision or held.revision),
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
    request: DriftRequest, checkpoint: Checkpoint, identity: Identity, subset: Subset
) -> BaselineRecord:
    tokenizer = load_tokenizer(checkpoint.path)
    suffix = f"\n{identity.protocol.instruction}" if identity.protocol.instruction else ""
    prompts = [prompt_ids(tokenizer, problem.problem + suffix) for problem in subset.problems]
    probe = subset.problems[0].problem
    return BaselineRecord(
        schema_version=kept.SCHEMA_VERSION,
        identity=identity,
        protocol=fit_context(
            identity.protocol,
            prompts,
            checkpoint.dimensions.max_position_embeddings,
            explicit=request.protocol.max_tokens is not None,
        ),
        runtime=f"llama.cpp ({binding.PACKAGE} {binding.PACKAGE_VERSION})",
        logits=f"transformers {version('transformers')}, float32",
        vocab_size=checkpoint.dimensions.vocab_size,
        probe_text=probe,
        probe_ids=tuple(tokenizer.encode(probe, add_special_tokens=False)),
        prompts=tuple(map(tuple, prompts)),
    )


def _write(folder: Path, checkpoint: Checkpoint, record: BaselineRecord) -> None:
    copies = folder / kept.TOKENIZER
    copies.mkdir(parents=True, exist_ok=True)
    for name in COMPANIONS:
        if (checkpoint.path / name).is_file():
            shutil.copyfile(checkpoint.path / name, copies / name)
    kept.write_record(folder, record)
