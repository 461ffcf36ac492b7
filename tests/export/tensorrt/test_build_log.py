"""The layers of a build log, on lines that TensorRT 1.7.1 wrote."""

from tightfit.export.tensorrt.build_log import Constant, EngineLayer, read_layers

FORMAT = "Format: (Transposed) Transposed format "
FUSED = (
    "Name: __myl_ReplCastMulCastFc_myl1_2, LayerType: runtime_fusion, Inputs: [ { Name: x, "
    "Dimensions: [-1,256], Strides: [256,1], StrideOrder: [1,0], Datatype: Half, Format: (Linear) "
    "Row major linear format }], Constants: [ { Name: c1, Dimensions: [256,128], Strides: [1,256], "
    f"StrideOrder: [0,1], Datatype: Int4, {FORMAT}}}, {{ Name: c2, Dimensions: [2,128], Strides: "
    f"[1,2], StrideOrder: [0,1], Datatype: Half, {FORMAT}}}], Outputs: [ {{ Name: y, Dimensions: "
    "[-1,128], Strides: [128,1], StrideOrder: [1,0], Datatype: Half, Format: (Linear) Row major "
    "linear format }], TacticName: , StreamId: 0, Metadata: [ONNX Layer: q_proj.dequantized]"
    "[ONNX Layer: q_proj]"
)
PLAIN = "Name: __mye_myl1_14, LayerType: wait, Inputs: [], Constants: [], Outputs: [], TacticName: "


def test_constants_and_nodes_of_each_layer(tmp_path):
    log = tmp_path / "log"
    lines = ["INFO: x", "VERBOSE: Name: not a layer", "VERBOSE: Layers:", FUSED, PLAIN]
    log.write_text("\n".join(lines))
    assert list(read_layers(log)) == [
        EngineLayer(
            nodes=("q_proj.dequantized", "q_proj"),
            constants=(
                Constant(n_elements=256 * 128, type="Int4"),
                Constant(n_elements=256, type="Half"),
            ),
        ),
        EngineLayer(nodes=(), constants=()),
    ]
