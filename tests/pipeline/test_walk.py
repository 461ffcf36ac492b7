"""The walk's parts against slow references on the whole model in transformers."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tightfit.calib.architecture import QWEN2
from tightfit.calib.calibration import CalibrationOptions, CalibrationSet, load_calibration
from tightfit.calib.checkpoint import Checkpoint, open_checkpoint
from tightfit.calib.decoder import Decoder
from tightfit.calib.hidden import HiddenStates, plan_batches
from tightfit.calib.precision import products_in
from tightfit.calib.tokenizer import load_tokenizer
from tightfit.pipeline.collect import collect_statistics
from tightfit.pipeline.executors.serial import SerialExecutor
from tightfit.pipeline.fold import fold_scales
from tightfit.pipeline.job import Units
from tightfit.pipeline.passes import replay
from tightfit.pipeline.quantize import Algorithm, Method
from tightfit.pipeline.shared import Shared
from tightfit.pipeline.walk import Walk
from tightfit.quant.registry import get_grid
from tightfit.reporter import SilentReporter

CPU = torch.device("cpu")
OPTIONS = CalibrationOptions(samples=5, max_tokens=2048)


@pytest.fixture
def checkpoint(qwen2: Path) -> Checkpoint:
    return open_checkpoint(qwen2)


@pytest.fixture
def calibration(qwen2: Path) -> CalibrationSet:
    return load_calibration(load_tokenizer(qwen2), OPTIONS)


@pytest.fixture
def decoder(checkpoint: Checkpoint) -> Decoder:
    return Decoder(checkpoint.path, checkpoint.architecture, CPU)


def hidden_states(
    decoder: Decoder, checkpoint: Checkpoint, calibration: CalibrationSet, path: Path
) -> HiddenStates:
    hidden = HiddenStates(path, [len(sample.ids) for sample in calibration.samples], 256)
    embedding_VD = checkpoint.load(checkpoint.architecture.embedding)
    for number, sample in enumerate(calibration.samples):
        hidden.scatter([number], decoder.embed(sample.ids, embedding_VD)[None])
    return hidden


def test_statistics_are_those_of_every_token_and_no_padding(
    checkpoint: Checkpoint, calibration: CalibrationSet, decoder: Decoder, tmp_path: Path
) -> None:
    """Against the whole model, one unpadded sequence at a time, in float64."""
    hidden = hidden_states(decoder, checkpoint, calibration, tmp_path / "hidden-0")
    batches = plan_batches(hidden.lengths)
    assert len(set(hidden.lengths)) > 1
    assert len(batches) == 1, "sequences of several lengths must be padded together here"
    model = AutoModelForCausalLM.from_pretrained(checkpoint.path, dtype=torch.float32)
    inputs = QWEN2.blocks["dense"].inputs

    for layer in range(decoder.n_blocks):
        block = decoder.block(layer, decoder.load_block(layer, checkpoint.load))
        statistics = collect_statistics(decoder, block, inputs, hidden, batches)
        following = HiddenStates(tmp_path / f"hidden-{layer + 1}", hidden.lengths, 256)
        replay(decoder, block, hidden, batches, following)
        hidden = following

        for source in inputs:
            for linear in source.linears:
                rows: list[torch.Tensor] = []
                hook = (
                    model.model.layers[layer]
                    .get_submodule(linear)
                    .register_forward_pre_hook(lambda _, args, rows=rows: rows.append(args[0][0]))
                )
                for sample in calibration.samples:
                    with torch.no_grad():
                        model(torch.tensor([sample.ids]))
                hook.remove()
                x_TI = torch.cat(rows).double()
                seen = statistics[source.name]
                assert seen.n_tokens == calibration.tokens
                torch.testing.assert_close(
                    seen.hessian_II.double(), x_TI.T @ x_TI / len(x_TI), rtol=1e-4, atol=1e-6
                )
                abs_max_I = x_TI.abs().amax(0)
                torch.testing.assert_close(seen.abs_max_I.double(), abs_max_I, rtol=1e-5, atol=1e-6)


def test_folded_scales_keep_the_function_of_the_block(
    checkpoint: Checkpoint, calibration: CalibrationSet, decoder: Decoder, tmp_path: Path
) -> None:
    hidden = hidden_states(decoder, checkpoint, calibration, tmp_path / "hidden")
    batches = plan_batches(hidden.lengths)
    parameters = decoder.load_block(0, checkpoint.load)
    # Outlier channels in every group, so that the search finds scales worth folding.
    for norm in ("input_layernorm.weight", "post_attention_layernorm.weight"):
        parameters[norm][::32] *= 16
    kind = QWEN2.blocks["dense"]
    block = decoder.block(0, parameters)
    statistics = collect_statistics(decoder, block, kind.inputs, hidden, batches)
    grids = {f"{linear}.weight": get_grid("Q4_0") for linear in kind.linears}

    folded, scaled, _ = fold_scales(kind, parameters, statistics, grids, n_heads=4, n_kv_heads=2)

    changed = {name for name in parameters if not torch.equal(folded[name], parameters[name])}
    assert {"input_layernorm.weight", "post_attention_layernorm.weight"} <= changed
    assert {"mlp.up_proj.weight", "mlp.down_proj.weight"} <= changed
    hidden_BTD, real_BT = hidden.gather(batches[0])
    before_BTD = decoder.run_block(block, hidden_BTD)
    after_BTD = decoder.run_block(decoder.block(0, folded), hidden_BTD)
    torch.testing.assert_close(after_BTD[real_BT], before_BTD[real_BT], rtol=1e-4, atol=1e-4)
    again = collect_statistics(decoder, decoder.block(0, folded), kind.inputs, hidden, batches)
    for name, seen in scaled.items():
        scale = seen.hessian_II.abs().max().item()
        torch.testing.assert_close(
            again[name].hessian_II, seen.hessian_II, rtol=1e-3, atol=1e-4 * scale
        )


def test_later_blocks_are_calibrated_on_the_quantized_ones_before(
    checkpoint: Checkpoint, calibration: CalibrationSet, decoder: Decoder, tmp_path: Path
) -> None:
    """The second block's statistics come from the first one's dequantized weights."""
    grid = get_grid("Q2_K")
    shared = Shared(
        source=checkpoint.source,
        storage={
            name: "Q2_K" if len(checkpoint.shape(name)) == 2 else "F32"
            for name in checkpoint.names()
        },
        method=Method(algorithm=Algorithm.RTN),
        calibration=calibration,
        folder=tmp_path,
        device="cpu",
        threads=torch.get_num_threads(),
    )
    Walk(shared=shared, executor=SerialExecutor(shared)).run(SilentReporter())
    units = Units(tmp_path)

    first = units.load("block-00000")
    weights = {
        name: grid.dequantize(packed.unpack()) for name, packed in first.quantized.items()
    } | dict(first.plain)
    hidden = hidden_states(decoder, checkpoint, calibration, tmp_path / "again")
    batches = plan_batches(hidden.lengths)
    prefix = "model.layers.0."
    quantized = {name.removeprefix(prefix): value for name, value in weights.items()}
    following = HiddenStates(tmp_path / "next", hidden.lengths, 256)
    inputs = QWEN2.blocks["dense"].inputs
    with products_in(Method().precision):
        replay(decoder, decoder.block(0, quantized), hidden, batches, following)
        block = decoder.block(1, decoder.load_block(1, checkpoint.load))
        seen = collect_statistics(decoder, block, inputs, following, batches)["attn_in"]
    from tightfit.quant.algorithms.rtn import rtn

    name = "model.layers.1.self_attn.q_proj.weight"
    expected = grid.pack(rtn(checkpoint.load(name).float(), grid, seen.importance_I))
    assert torch.equal(units.load("block-00001").quantized[name].data, expected)


def test_conversations_and_text_become_sequences(qwen2: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(qwen2)
    records: list[dict[str, object]] = [
        {"problem": "What is $1 + 1$?", "completion": "1 + 1 = 2\n</think>\n$\\boxed{2}$."},
        {"text": "The answer is 42."},
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]},
    ]
    path = tmp_path / "set.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))

    problem, text, chat = load_calibration(tokenizer, CalibrationOptions(source=str(path))).samples

    whole = tokenizer.decode(problem.ids)
    assert whole.startswith(
        "<｜begin▁of▁sentence｜><｜User｜>What is $1 + 1$?<｜Assistant｜><think>\n1"
    )
    assert whole.endswith("$\\boxed{2}$.<｜end▁of▁sentence｜>")
    prompt = tokenizer.decode(problem.ids[: problem.completion_start])
    assert prompt.endswith("<think>\n")
    assert tokenizer.decode(text.ids) == "The answer is 42."
    assert "<｜User｜>Hi<｜Assistant｜>Yo" in tokenizer.decode(chat.ids)


def test_the_choice_of_sequences_is_seeded(qwen2: Path) -> None:
    tokenizer = load_tokenizer(qwen2)

    def choose(seed: int) -> str:
        options = CalibrationOptions(samples=4, seed=seed)
        return load_calibration(tokenizer, options).sha256

    assert choose(0) == choose(0)
    assert choose(0) != choose(1)
