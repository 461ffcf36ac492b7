"""What was proven of each artifact, and what was not."""

from collections.abc import Sequence

from tightfit.export.manifest import Artifact, EngineRecord, Manifest, Parity
from tightfit.publish.card import numerals
from tightfit.publish.card.layout import label
from tightfit.publish.card.markdown import Markdown, code, listed, text

_HASH_SHOWN = 16


def proof_lines(manifest: Manifest) -> tuple[Markdown, ...]:
    """A paragraph an artifact, and one on formats that hold the same numbers."""
    same = _same_numbers(manifest.artifacts)
    return (*map(_artifact, manifest.artifacts), *same)


def _artifact(artifact: Artifact) -> Markdown:
    verification = artifact.verification
    said: list[str] = []
    if verification is None:
        said.append("not verified after it was written.")
    else:
        said.append(
            f"{verification.exact_tensors} of {verification.tensors} tensors, read back, equal the "
            "quantizer's numbers bit for bit."
        )
        if verification.parity:
            said.append(_parity(verification.parity, of_onnx=bool(artifact.engines)))
        else:
            said.append("Its logits were not compared with those of another runtime.")
    said += map(_engine, artifact.engines)
    return Markdown(f"**{text(label(artifact))}**: {' '.join(said)}")


def _parity(parity: Parity, *, of_onnx: bool) -> Markdown:
    what = "Logits of its ONNX file in" if of_onnx else "Logits of"
    within = "within its bounds" if parity.passed else "**outside its bounds**"
    figures = (
        f"relative difference {numerals.figure(parity.relative_difference)}",
        f"mean KL {numerals.small(parity.mean_kl_nats)} nats",
        f"same most probable token {numerals.share(parity.top1_agreement, 2)}",
    )
    return Markdown(
        f"{what} {text(parity.runtime)} against transformers with the same weights, on "
        f"{parity.tokens} tokens: {', '.join(figures)}; {within}."
    )


def _engine(engine: EngineRecord) -> Markdown:
    cards = text(listed(engine.compute_capabilities))
    verbatim = (
        f"{engine.verbatim_tensors} of its {engine.quantized_tensors} quantized tensors lie in it "
        "byte for byte."
        if engine.quantized_tensors
        else ""
    )
    built = (
        f"{code(engine.file)} is built by {text(engine.builder)} for compute capability {cards}."
    )
    return Markdown(" ".join(filter(None, (built, verbatim, _run(engine)))))


def _run(engine: EngineRecord) -> Markdown:
    if not engine.executed:
        return Markdown("**It has never run**: it was built on a machine without the card.")
    ran = f"It ran on {text(engine.device or 'a card')}"
    if engine.relative_difference is not None:
        ran += f", its logits {numerals.figure(engine.relative_difference)} from the golden ones"
    if engine.tokens_per_s is not None:
        ran += f", {numerals.figure(engine.tokens_per_s)} tokens/s"
    return Markdown(f"{ran}.")


def _same_numbers(artifacts: Sequence[Artifact]) -> list[Markdown]:
    by_hash: dict[str, list[str]] = {}
    for artifact in artifacts:
        by_hash.setdefault(artifact.weights_sha256, []).append(label(artifact))
    return [
        Markdown(
            f"{text(listed(labels))} hold the same numbers: the hash of all weights, read back, is "
            f"{code(sha256[:_HASH_SHOWN] + '...')} in each."
        )
        for sha256, labels in by_hash.items()
        if len(labels) > 1
    ]
