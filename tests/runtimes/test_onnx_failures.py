"""Damaged files, foreign models, absent providers: always our error, never onnxruntime's."""

import builtins
import shutil

import onnx
import pytest
from support.onnx_folders import onnx_folder
from support.tiny_r1 import TINY_R1

from tightfit.errors import ArtifactError, MissingPackageError, RuntimeFailureError, UsageError
from tightfit.runtimes.onnx import OnnxModel
from tightfit.runtimes.onnx.session import SessionOptions


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return onnx_folder(TINY_R1, tmp_path_factory.mktemp("whole")).parent.parent


@pytest.fixture
def model(whole, tmp_path):
    """A copy that a test may damage."""
    shutil.copytree(whole, tmp_path / "out")
    return tmp_path / "out" / "onnx" / "model.onnx"


def load(path):
    return OnnxModel(path, context_tokens=64, options=SessionOptions(threads=1))


def cut(path, n_bytes):
    path.write_bytes(path.read_bytes()[:n_bytes])


def edit(path, change):
    proto = onnx.load(path, load_external_data=False)
    change(proto)
    path.write_bytes(proto.SerializeToString())


DAMAGE = {
    "no data file": lambda model: model.with_name("model.onnx.data").unlink(),
    "half a data file": lambda model: cut(model.with_name("model.onnx.data"), 5_000_000),
    "half a model": lambda model: cut(model, model.stat().st_size // 2),
    "an empty model": lambda model: cut(model, 0),
    "random bytes": lambda model: model.write_bytes(
        bytes((index * 197 + 31) % 256 for index in range(50_000))
    ),
    "no tokenizer": lambda model: (model.parent.parent / "tokenizer.json").unlink(),
    "half a tokenizer": lambda model: cut(model.parent.parent / "tokenizer.json", 999),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_our_error_with_a_hint(model, damage):
    DAMAGE[damage](model)
    with pytest.raises(ArtifactError) as caught:
        load(model)
    assert "onnx" in caught.value.problem or "tokenizer.json" in caught.value.problem
    assert caught.value.hint


def unknown_opset(proto):
    proto.opset_import[0].version = 9999


def unknown_operator(proto):
    proto.graph.node[-1].op_type = "NoSuchOperator"


@pytest.mark.parametrize("change", [unknown_opset, unknown_operator])
def test_what_onnxruntime_refuses_is_our_error(model, change):
    edit(model, change)
    with pytest.raises(RuntimeFailureError, match="onnxruntime failed on") as caught:
        load(model)
    assert str(model) in caught.value.problem
    assert "export again" in caught.value.hint


def test_a_model_without_a_cache_is_named_foreign(model):
    def rename(proto):
        proto.graph.output[0].name = "scores"
        for node in proto.graph.node:
            for index, name in enumerate(node.output):
                if name == "logits":
                    node.output[index] = "scores"

    edit(model, rename)
    with pytest.raises(ArtifactError, match="no output `logits`"):
        load(model)


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(RuntimeFailureError, match="is not a file"):
        load(tmp_path / "absent.onnx")


def test_an_absent_provider_lists_those_that_are_there(model):
    options = SessionOptions(threads=1, provider="no-such")
    with pytest.raises(UsageError, match="no execution provider 'no-such'") as caught:
        OnnxModel(model, context_tokens=64, options=options)
    assert "CPUExecutionProvider" in caught.value.allowed


@pytest.mark.parametrize("name", ["cpu", "CPU", "CPUExecutionProvider"])
def test_a_provider_has_a_short_name(model, name):
    options = SessionOptions(threads=1, provider=name)
    with OnnxModel(model, context_tokens=64, options=options) as runtime:
        assert runtime.system_info.facts["provider"] == "CPUExecutionProvider"


def test_tokens_outside_the_model_are_refused(model):
    with load(model) as runtime:
        with pytest.raises(RuntimeFailureError, match="the vocabulary"):
            runtime.logits([1, runtime.vocab_size])
        with pytest.raises(RuntimeFailureError, match="1 to 64"):
            runtime.logits([1] * 65)
        with pytest.raises(RuntimeFailureError, match="0 tokens"):
            runtime.generate([[]], max_tokens=1, seed=0)
    with pytest.raises(RuntimeFailureError, match="was closed"):
        runtime.logits([1])


def test_a_missing_package_names_the_extra(model, monkeypatch):
    real = builtins.__import__

    def without_onnxruntime(name, *rest, **options):
        if name.partition(".")[0] == "onnxruntime":
            raise ImportError("No module named 'onnxruntime'")
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without_onnxruntime)
    with pytest.raises(MissingPackageError, match=r"tightfit\[onnx\]"):
        load(model)
