"""A folder with a TensorRT artifact, on a machine that seems to have the card."""

import importlib.machinery
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from support.tensorrt_stand_in import Engine, stand_in
from tightfit.runtimes.tensorrt.profile import Profile


def seem_to_have_card(
    monkeypatch: pytest.MonkeyPatch,
    onnx_file: Path,
    *,
    capability: str = "8.6",
    package: str = "tensorrt_rtx",
    context_tokens: int = 512,
) -> list[int]:
    """Engines run on the CPU, whatever their bytes say: they compute what `onnx_file` does.

    Returns a list that gets the size of each batch that runs. A child process, such as the one
    that builds, imports the real package.
    """
    batches: list[int] = []
    profile = Profile(context_tokens=context_tokens)
    module = stand_in(profile)
    module.__spec__ = importlib.machinery.ModuleSpec(package, None)

    class Runtime:
        def __init__(self, _logger: object) -> None: ...

        def deserialize_cuda_engine(self, data: bytes) -> Engine:
            assert data
            engine = Engine(onnx_file, profile)
            compute = engine.session.run

            class Session:
                def run(self, names: object, feed: Mapping[str, object]) -> object:
                    batches.append(len(feed["input_ids"]))  # type: ignore[arg-type]
                    return compute(names, feed)

            engine.session = Session()
            return engine

    module.Runtime = Runtime  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, package, module)
    monkeypatch.setattr("tightfit.runtimes.tensorrt.engine.find_gpu", lambda: "cpu")
    for place in ("tightfit.verify.engines", "tightfit.pipeline.build_engine"):
        monkeypatch.setattr(f"{place}.card_capability", lambda: capability)
    return batches


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below it."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
