"""Several formats in one export: the same numbers, or each format's own choice."""

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import onnx
import onnxruntime
import pytest
from support.reporters import Notes

from tightfit.errors import ArtifactError, QuantizationError, UsageError
from tightfit.export.manifest import Manifest
from tightfit.export.onnx.options import Dialect
from tightfit.pipeline.export import run_export
from tightfit.pipeline.quantize import Method
from tightfit.pipeline.requests import ExportRequest
from tightfit.quant.algorithms.gptq import GptqSettings
from tightfit.quant.algorithms.ordering import Order
from tightfit.reporter import SilentReporter
from tightfit.verify.run import run_verify

Build = Callable[..., ExportRequest]
UP_PROJ = "model.layers.1.mlp.up_proj.weight"


def exported(request: ExportRequest, notes: Notes | None = None) -> Manifest:
    manifest = run_export(request, notes or SilentReporter()).manifest
    assert manifest is not None
    return manifest


def test_gguf_and_onnx_of_one_scheme_hold_the_same_numbers(request_for: Build) -> None:
    request = request_for(formats=("gguf", "onnx"), scheme="gptq-int4-g128")
    notes = Notes()

    gguf_artifact, onnx_artifact = exported(request, notes).artifacts

    assert notes.count("Quantizing to") == 1
    assert notes.count("gguf, onnx share one quantization") == 1
    assert gguf_artifact.weights_sha256 == onnx_artifact.weights_sha256
    assert gguf_artifact.scheme.method == onnx_artifact.scheme.method == "gptq"
    # The hashes are our claim; these are the two readers' own numbers.
    from_gguf = read_gguf(request.output / gguf_artifact.files[0].name, "blk.1.ffn_up.weight")
    from_onnx = multiply_by_identity(request.output / onnx_artifact.files[0].name, UP_PROJ)
    assert np.array_equal(from_gguf, from_onnx)
    assert len(np.unique(from_gguf[0, :128])) <= 16


def read_gguf(path: Path, name: str) -> np.ndarray:
    (tensor,) = (t for t in gguf.GGUFReader(path).tensors if t.name == name)
    return gguf.dequantize(tensor.data, tensor.tensor_type)


def multiply_by_identity(path: Path, name: str) -> np.ndarray:
    """The matrix as MatMulNBits applies it: the node of the file, fed with the identity."""
    model = onnx.load(path)
    (node,) = (n for n in model.graph.node if f"{name}.codes" in n.input)
    assert node.op_type == "MatMulNBits"
    parts = [t for t in model.graph.initializer if t.name in node.input]
    scales = next(onnx.numpy_helper.to_array(t) for t in parts if t.name.endswith(".scales"))
    kept = [t for t in parts if not t.name.endswith(".scales")]
    kept.append(onnx.numpy_helper.from_array(scales.astype(np.float32), f"{name}.scales"))
    width = next(a.i for a in node.attribute if a.name == "K")
    one = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMulNBits", ["x", *node.input[1:]], ["y"], domain=node.domain)],
        "one",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [width, width])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        kept,
    )
    one.node[0].attribute.extend(node.attribute)
    built = onnx.helper.make_model(one, opset_imports=model.opset_import, ir_version=10)
    session = onnxruntime.InferenceSession(built.SerializeToString())
    (y_IO,) = session.run(None, {"x": np.eye(width, dtype=np.float32)})
    return np.asarray(y_IO).T


def test_every_format_verifies(request_for: Build) -> None:
    request = request_for(formats=("gguf", "onnx"), scheme="int8-g32", target="cpu-16gb")
    exported(request)

    manifest = run_verify(request.output, SilentReporter())

    for artifact in manifest.artifacts:
        assert artifact.verification is not None, artifact.format
        assert artifact.verification.passed, artifact.format
        assert artifact.verification.exact_tensors == len(artifact.tensors)


def test_auto_chooses_for_each_format(request_for: Build) -> None:
    request = request_for(formats=("gguf", "onnx"), scheme="auto")
    notes = Notes()

    made = {artifact.format: artifact for artifact in exported(request, notes).artifacts}

    assert made["gguf"].scheme.name == made["onnx"].scheme.name == "auto"
    assert {record.grid for record in made["gguf"].tensors} == {"Q8_0", "F32"}
    assert "int8-g32-sym" in {record.grid for record in made["onnx"].tensors}
    assert made["gguf"].weights_sha256 != made["onnx"].weights_sha256
    assert notes.count("Quantizing to") == 2


def test_act_order_goes_to_onnx_and_is_refused_elsewhere(request_for: Build) -> None:
    method = Method(gptq=GptqSettings(order=Order.ACT_ORDER))

    with pytest.raises(UsageError, match="does not go with --format gguf") as caught:
        run_export(
            request_for(formats=("onnx", "gguf"), scheme="gptq-int4-g32", method=method),
            SilentReporter(),
        )
    assert "--order static" in caught.value.hint

    request = request_for(
        formats=("onnx",), scheme="gptq-int4-g32", method=method, target="cpu-16gb"
    )
    assert not request.output.exists()
    exported(request)
    verification = run_verify(request.output, SilentReporter()).artifacts[0].verification
    assert verification is not None
    assert verification.passed


@pytest.mark.parametrize("scheme", ["q4_k_m", "q6_k", "iq4_xs"])
def test_k_quants_are_refused_for_onnx_by_name(request_for: Build, scheme: str) -> None:
    with pytest.raises(UsageError, match=f"(?i){scheme}") as caught:
        run_export(request_for(formats=("onnx",), scheme=scheme), SilentReporter())

    assert "--scheme gptq-int" in caught.value.hint


@pytest.mark.parametrize("head", ["f16", "int8-g32-sym"])
def test_the_head_and_the_embedding_have_their_own_grids(request_for: Build, head: str) -> None:
    request = request_for(
        formats=("gguf", "onnx"),
        scheme="gptq-int4-g64",
        head=head,
        embedding="int8-g32-sym",
        target="cpu-16gb",
    )

    gguf_artifact, onnx_artifact = exported(request).artifacts

    assert gguf_artifact.weights_sha256 == onnx_artifact.weights_sha256
    grids = {tensor.name: tensor.grid for tensor in onnx_artifact.tensors}
    assert grids["model.embed_tokens.weight"] == "int8-g32-sym"
    assert grids["lm_head.weight"] == ("float16" if head == "f16" else head)
    run_verify(request.output, SilentReporter())


@pytest.mark.parametrize("damage", ["truncated", "missing", "changed"])
def test_verify_finds_a_damaged_data_file(request_for: Build, damage: str) -> None:
    request = request_for(formats=("onnx",), scheme="int4-g128", target="cpu-16gb")
    exported(request)
    data = request.output / "onnx" / "model.onnx.data"
    content = data.read_bytes()
    if damage == "missing":
        data.unlink()
    else:
        data.write_bytes(content[:-100] if damage == "truncated" else b"x" + content[1:])

    with pytest.raises(ArtifactError, match=r"model\.onnx\.data"):
        run_verify(request.output, SilentReporter())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"embedding": "int8-channel-sym"}, "int8-channel-sym"),
        ({"embedding": "fp8-e4m3-channel"}, "fp8-e4m3-channel"),
        ({"scheme": "int2-g32", "onnx_dialect": Dialect.STANDARD}, "int2-g32"),
        (
            {"scheme": "int8-channel", "method": Method(gptq=GptqSettings(order=Order.ACT_ORDER))},
            "act-order does not go with the grid int8-channel-sym",
        ),
    ],
)
def test_what_the_graph_cannot_hold_is_refused_before_any_work(
    request_for: Build, changes: dict[str, object], sentence: str
) -> None:
    request = request_for(
        **{"formats": ("onnx",), "scheme": "int4-g32", "target": "cpu-16gb"} | changes
    )

    with pytest.raises((QuantizationError, UsageError), match=sentence):
        run_export(request, SilentReporter())

    assert not request.output.exists()
