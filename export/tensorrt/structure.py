"""Check an engine file where there is no GPU to load it: its header, its weights, its build log.

    header     size, version, and exactly the compute capabilities that were asked for
    weights    the codes of every quantized matrix lie in the file byte for byte
    log        the layer made of each DequantizeLinear has a constant of the quantized type, in
               every optimization profile: nothing fell back to float

What it cannot show is that the engine computes the right numbers: that is what the golden file is
for, on a machine that has the card.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tightfit.export.tensorrt.build_log import EngineLayer, read_layers
from tightfit.export.tensorrt.onnx_weights import QuantizedInitializer, read_onnx_weights
from tightfit.export.tensorrt.plan_header import read_plan_header
from tightfit.export.tensorrt.verbatim import find_verbatim

PROFILES = 2
"""Optimization profiles of an engine: prefill and decode."""
_SHOWN_NAMES = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineStructure:
    """What an engine file shows without running."""

    version: str
    """Of TensorRT for RTX, e.g. `1.7.1.116`."""
    capabilities: tuple[str, ...]
    """Compute capabilities that its header names, ascending."""
    size_bytes: int
    quantized_tensors: int
    """Of the ONNX file; a tied embedding and head are one."""
    verbatim_tensors: int
    """Of these, how many lie in the engine byte for byte."""
    typed_tensors: int | None
    """Of these, how many the build log shows in their quantized type; None without a log."""
    problems: tuple[str, ...]
    """What is wrong, in sentences."""

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def check_structure(
    engine_file: Path, onnx_file: Path, *, capabilities: Sequence[str], log_file: Path | None
) -> EngineStructure:
    """Check an engine against the ONNX file that it was built from.

    `capabilities` are those that it was built for; `log_file` is its verbose build log, None where
    it was not kept. Raises `ArtifactError` when a file cannot be read as what it should be.
    """
    header = read_plan_header(engine_file)
    size_bytes = engine_file.stat().st_size
    problems = []
    if size_bytes != header.size_bytes:
        problems.append(f"the file has {size_bytes} bytes, and its header says {header.size_bytes}")
    if set(header.capabilities) != set(capabilities):
        problems.append(
            f"it is for compute capabilities {', '.join(header.capabilities)}, not "
            f"{', '.join(capabilities)}"
        )
    quantized = read_onnx_weights(onnx_file).quantized
    found = find_verbatim(engine_file, {name: item.matrix for name, item in quantized.items()})
    if missing := [name for name in quantized if name not in found]:
        problems.append(f"not byte for byte in the engine: {_names(missing)}")
    typed = None
    if log_file is not None:
        untyped = _untyped(quantized, read_layers(log_file))
        problems += [f"{name}: {reason}" for name, reason in untyped.items()]
        typed = len(quantized) - len(untyped)
    return EngineStructure(
        version=header.version,
        capabilities=header.capabilities,
        size_bytes=size_bytes,
        quantized_tensors=len(quantized),
        verbatim_tensors=len(found),
        typed_tensors=typed,
        problems=tuple(problems),
    )


def _untyped(
    quantized: Mapping[str, QuantizedInitializer], layers: Iterable[EngineLayer]
) -> dict[str, str]:
    """Matrices that no layer, or a layer in another type, has; with what is wrong.

    TensorRT merges equal nodes and names one of them, so a tied matrix has any of its readers.
    """
    readers = {node: name for name, item in quantized.items() for node in item.nodes}
    times_typed: Counter[str] = Counter()
    wrong: dict[str, str] = {}
    for layer in layers:
        for name in {readers[node] for node in layer.nodes if node in readers}:
            item = quantized[name]
            # A layer that only multiplies by the scales has no constant of that size.
            large = {part.type for part in layer.constants if part.n_elements >= item.n_elements}
            if item.log_type in large:
                times_typed[name] += 1
            elif large:
                wrong[name] = f"a layer keeps it as {', '.join(sorted(large))}"
    for name, item in quantized.items():
        if times_typed[name] < PROFILES:
            shown = f"as {item.log_type} in {times_typed[name]} of {PROFILES} profiles"
            wrong.setdefault(name, f"the log shows it {shown}")
    return {name: wrong[name] for name in quantized if name in wrong}


def _names(names: Sequence[str]) -> str:
    rest = len(names) - _SHOWN_NAMES
    return ", ".join(names[:_SHOWN_NAMES]) + (f" and {rest} more" if rest > 0 else "")
