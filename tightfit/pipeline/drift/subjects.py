"""What `tightfit drift` measures, and where its reports are kept."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tightfit.drift.report import ArtifactFacts, DriftReport, to_fields, without_examples
from tightfit.errors import ArtifactError, TightfitError, UsageError
from tightfit.export.manifest import (
    MANIFEST_NAME,
    Artifact,
    Manifest,
    read_manifest,
    write_manifest,
)
from tightfit.pipeline.drift.request import DriftRequest
from tightfit.reporter import Reporter
from tightfit.runtimes.base import LogprobRuntime, Runtime
from tightfit.runtimes.opening import SAFETENSORS, format_of, open_artifact, open_file, unavailable
from tightfit.runtimes.tokenizer import FolderTokenizer

ENDPOINT = "endpoint"
SERVED_TOKEN = 1
"""What a server must generate to tell the log-probabilities of a prompt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """An artifact to be measured."""

    format: str
    files: tuple[Path, ...]
    """What its content is; the one that a runtime is given first. Empty for an endpoint."""
    facts: ArtifactFacts
    open: Callable[[int, Path], Runtime | LogprobRuntime]
    """Run it: context in tokens, and a folder with the baseline's tokenizer."""


def find_subjects(request: DriftRequest, reporter: Reporter) -> tuple[Subject, ...]:
    """What a request names.

    Of an exported folder, the named formats, each of which must run here; none named: all that run
    here, with a warning for every other one. Raises `ArtifactError`, `UsageError`, and when nothing
    runs what the first format lacks.
    """
    if request.endpoint is not None:
        _refuse_idle_options(request)
        return (_endpoint(request, request.endpoint, reporter),)
    if request.artifact is None:
        raise UsageError(
            "neither an artifact nor an endpoint is given",
            allowed="a folder, a .gguf or .onnx file, or --endpoint URL",
            hint="for example: tightfit drift out --baseline tiny-r1",
        )
    if request.endpoint_model is not None:
        raise UsageError(
            f"--model {request.endpoint_model} without an endpoint",
            allowed="--model is what an endpoint calls its model",
            hint="add --endpoint URL, or leave --model out",
        )
    subjects = _all_subjects(request, request.artifact)
    if request.vllm and any(subject.format != SAFETENSORS for subject in subjects):
        raise UsageError(
            f"--vllm with {request.artifact}",
            allowed="vLLM runs a folder of a Hugging Face checkpoint",
            hint="leave --vllm out, or serve the file and give --endpoint URL",
        )
    held = [subject.format for subject in subjects]
    absent = [name for name in request.formats if name not in held]
    if absent:
        raise UsageError(
            f"{request.artifact} holds no artifact of the format {absent[0]}",
            allowed=f"it holds: {', '.join(held)}",
            hint="leave --format out to measure all that run here",
        )
    wanted = [subject for subject in subjects if subject.format in (request.formats or held)]
    reasons = [_unavailable(subject.format, vllm=request.vllm) for subject in wanted]
    for subject, reason in zip(wanted, reasons, strict=True):
        if reason is not None and (request.formats or all(reasons)):
            raise reason
        if reason is not None:
            reporter.warning(f"{subject.format} is not measured: {reason.problem}")
    return tuple(subject for subject, reason in zip(wanted, reasons, strict=True) if reason is None)


def _refuse_idle_options(request: DriftRequest) -> None:
    """An endpoint says itself what it serves and how."""
    given = {
        f"an artifact ({request.artifact})": request.artifact is not None,
        "--format": bool(request.formats),
        "--vllm": request.vllm,
    }
    for what, is_given in given.items():
        if is_given:
            raise UsageError(
                f"both {what} and an endpoint ({request.endpoint})",
                allowed="one of them",
                hint=f"leave {what} out: the endpoint says what it serves",
            )


def _unavailable(format_name: str, *, vllm: bool) -> TightfitError | None:
    if vllm and format_name == SAFETENSORS:
        from tightfit.runtimes.vllm import unavailable as vllm_unavailable

        return vllm_unavailable()
    return unavailable(format_name)


def _all_subjects(request: DriftRequest, path: Path) -> tuple[Subject, ...]:
    if path.is_dir() and (path / MANIFEST_NAME).is_file():
        return tuple(_exported(request, path, made) for made in read_manifest(path).artifacts)
    if not path.exists():
        raise ArtifactError(
            f"there is no artifact {str(path)!r}",
            allowed="a folder written by `tightfit export`, a folder of a Hugging Face checkpoint, "
            "or a .gguf or .onnx file",
        )
    return (_single(request, path),)


def _exported(request: DriftRequest, folder: Path, artifact: Artifact) -> Subject:
    first = artifact.files[0]
    return Subject(
        format=artifact.format,
        files=tuple(folder / file.name for file in artifact.files),
        facts=ArtifactFacts(
            name=Path(first.name).name,
            format=artifact.format,
            scheme=artifact.scheme.name,
            bits_per_weight=artifact.bits_per_weight,
            size_bytes=sum(file.size_bytes for file in artifact.files),
            sha256=first.sha256,
            weights_sha256=artifact.weights_sha256,
        ),
        open=lambda context_tokens, _tokenizer: open_artifact(
            folder, artifact, context_tokens=context_tokens, provider=request.provider
        ),
    )


def _single(request: DriftRequest, path: Path) -> Subject:
    format_name = format_of(path)
    files = _files(path)

    def run(context_tokens: int, tokenizer: Path) -> Runtime | LogprobRuntime:
        if request.vllm and format_name == SAFETENSORS:
            from tightfit.runtimes.vllm import VllmModel

            return VllmModel(
                path,
                tokenizer=FolderTokenizer(tokenizer),
                context_tokens=context_tokens + SERVED_TOKEN,
            )
        return open_file(
            path,
            context_tokens=context_tokens,
            provider=request.provider,
            device=request.device,
        )

    return Subject(
        format=format_name,
        files=files,
        facts=ArtifactFacts(
            name=path.resolve().name,
            format=format_name,
            scheme=None,
            bits_per_weight=None,
            size_bytes=sum(file.stat().st_size for file in files),
            sha256=None,
            weights_sha256=None,
        ),
        open=run,
    )


def _files(path: Path) -> tuple[Path, ...]:
    """What decides how a model answers: an ONNX file's weights lie beside it."""
    if path.is_dir():
        return tuple(sorted((*path.glob("*.safetensors"), *path.glob("*.json"))))
    beside = path.parent.glob(f"{path.name}*") if path.suffix == ".onnx" else ()
    return (path, *sorted(file for file in beside if file != path))


def _endpoint(request: DriftRequest, url: str, reporter: Reporter) -> Subject:
    def run(context_tokens: int, tokenizer: Path) -> LogprobRuntime:
        from tightfit.runtimes.endpoint import Endpoint

        return Endpoint(
            url,
            model=request.endpoint_model,
            tokenizer=FolderTokenizer(tokenizer),
            context_tokens=context_tokens + SERVED_TOKEN,
            warn=reporter.warning,
        )

    return Subject(
        format=ENDPOINT,
        files=(),
        facts=ArtifactFacts(
            name=url,
            format=ENDPOINT,
            scheme=None,
            bits_per_weight=None,
            size_bytes=None,
            sha256=None,
            weights_sha256=None,
        ),
        open=run,
    )


def warn_of_another_baseline(
    path: Path | None, model: str, revision: str | None, reporter: Reporter
) -> None:
    """Say so when the baseline is not the checkpoint that the artifacts were made from."""
    if path is None or not (path / MANIFEST_NAME).is_file():
        return
    made_from = read_manifest(path).input
    if (made_from.id, made_from.revision) != (model, revision):
        reporter.warning(
            f"the artifact was made from {made_from.id} (revision {made_from.revision}), the "
            f"baseline is {model} (revision {revision}): the drift includes what differs "
            "between the two"
        )


def record_reports(
    path: Path | None, reports: Mapping[str, DriftReport], reporter: Reporter
) -> None:
    """Put reports, by format, into the manifest, where there is one.

    Measuring takes hours: an artifact that was replaced meanwhile gets no report of the old one.
    """
    if path is None or not (path / MANIFEST_NAME).is_file():
        return
    try:
        write_manifest(path, _with_reports(read_manifest(path), reports, reporter))
    except ArtifactError as error:  # hours of measuring must not be lost with it
        reporter.warning(f"the drift was not recorded: {error.problem}")


def _with_reports(
    manifest: Manifest, reports: Mapping[str, DriftReport], reporter: Reporter
) -> Manifest:
    for artifact in manifest.artifacts:
        report = reports.get(artifact.format)
        if report is None:
            continue
        if report.artifact.is_of(artifact):
            measured = dataclasses.replace(artifact, drift=to_fields(without_examples(report)))
            manifest = manifest.with_artifact(measured)
        else:
            reporter.warning(
                f"the drift of {artifact.format} was not recorded: the artifact was replaced "
                "while it was measured"
            )
    return manifest
