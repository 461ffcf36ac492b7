"""The streamed gradient pass against plain autograd on the whole model in transformers."""

from pathlib import Path

import torch
from support.sensitivity_case import SensitivityCase

from tightfit.calib.hidden import plan_batches
from tightfit.pipeline.sensitivity.embedding import embedding_scores
from tightfit.pipeline.sensitivity.gradients import backpropagate_block
from tightfit.pipeline.sensitivity.head import backpropagate_head, draw_gradient
from tightfit.pipeline.sensitivity.rows import spread_rows

DRAWS = 2
SEED = 5
Tensors = dict[str, list[torch.Tensor]]


def test_random_gradients_have_the_fisher_matrix_as_covariance() -> None:
    p_V = torch.tensor([0.5, 0.3, 0.15, 0.04, 0.01])
    g_NV = draw_gradient(p_V.expand(400_000, 5), torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        g_NV.T @ g_NV / len(g_NV), p_V.diag() - torch.outer(p_V, p_V), rtol=0, atol=1e-3
    )
    torch.testing.assert_close(g_NV.mean(0), torch.zeros(5), rtol=0, atol=3e-3)
    # Logits that all move together change no probability.
    torch.testing.assert_close(g_NV.sum(1), torch.zeros(len(g_NV)), rtol=0, atol=1e-5)


def plain_autograd(
    case: SensitivityCase,
) -> tuple[dict[str, list], dict[str, list], dict[str, list]]:
    """Weight gradients of every sequence and draw; output gradients; inputs, without padding."""
    model = case.model.requires_grad_(True)
    weights: dict[str, list[torch.Tensor]] = {}
    outputs: dict[str, list[torch.Tensor]] = {}
    inputs: dict[str, list[torch.Tensor]] = {}
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear):
            continue

        def watch(_module, args, output, name=name):
            inputs.setdefault(name, []).append(args[0][0].detach())
            output.register_hook(lambda g: outputs.setdefault(name, []).append(g[0]))

        module.register_forward_hook(watch)
    generator = torch.Generator().manual_seed(SEED)
    for ids in case.sequences:
        logits_TV = model(torch.tensor([ids])).logits[0]
        for _ in range(DRAWS):
            model.zero_grad()
            g_TV = draw_gradient(logits_TV.detach().softmax(1), generator)
            logits_TV.backward(g_TV, retain_graph=True)
            for name, parameter in model.named_parameters():
                weights.setdefault(name, []).append(parameter.grad.clone())
    return weights, outputs, inputs


def test_gradients_and_hessians_are_those_of_autograd(
    small: SensitivityCase, tmp_path: Path
) -> None:
    """Sequences of several lengths share a padded batch here; the reference has no padding."""
    weights, outputs, inputs = plain_autograd(small)
    prediction = small.forward(tmp_path)
    decoder, scratch, lengths = (
        prediction.subject.decoder,
        prediction.scratch,
        tuple(map(len, small.sequences)),
    )
    batches = plan_batches(lengths)
    assert len(set(lengths)) > 1
    assert len(batches) == 1
    load = small.checkpoint.load

    with scratch.new_states("above-2", lengths * DRAWS) as above:
        head = backpropagate_head(
            decoder,
            scratch.states("hidden-00002", lengths),
            load("model.norm.weight").float(),
            load("lm_head.weight").float(),
            above,
            SEED,
        )
    for layer in (1, 0):
        kind = decoder.block_kind(layer)
        parameters = decoder.load_block(layer, load)
        rows = {path: spread_rows(len(parameters[f"{path}.weight"]), 50) for path in kind.linears}
        with scratch.new_states(f"above-{layer}", lengths * DRAWS) as below:
            scores = backpropagate_block(
                decoder,
                decoder.block(layer, parameters),
                kind.inputs,
                rows,
                scratch.states(f"hidden-{layer:05d}", lengths),
                above,
                below,
                batches,
            )
        above = below
        for source in kind.inputs:
            for path in source.linears:
                name = f"model.layers.{layer}.{path}"
                # Batches keep the longest first, draws outermost.
                expected = [
                    weights[f"{name}.weight"][n * DRAWS + k]
                    for k in range(DRAWS)
                    for n in batches[0]
                ]
                expected_QSI = torch.stack(expected)[:, rows[path]]
                scale = expected_QSI.abs().max().item()
                seen = scores.linears[path]
                torch.testing.assert_close(
                    seen.gradient_QSI, expected_QSI, rtol=1e-3, atol=1e-5 * scale
                )
                power_O = torch.cat(outputs[name]).square().mean(0)
                torch.testing.assert_close(
                    seen.power_O, power_O, rtol=1e-3, atol=1e-5 * power_O.max().item()
                )
                x_TI = torch.cat(inputs[name])
                hessian_II = x_TI.T @ x_TI / len(x_TI)
                torch.testing.assert_close(
                    scores.statistics[source.name].hessian_II, hessian_II, rtol=1e-4, atol=1e-5
                )

    x_TI = torch.cat(inputs["lm_head"])
    torch.testing.assert_close(head.x_ND, x_TI, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        head.statistics.hessian_II, x_TI.T @ x_TI / len(x_TI), rtol=1e-4, atol=1e-5
    )
    embedding = load("model.embed_tokens.weight")
    scores = embedding_scores(small.sequences, above, embedding)
    for n, ids in enumerate(small.sequences):
        for draw in range(DRAWS):
            expected_VD = weights["model.embed_tokens.weight"][n * DRAWS + draw]
            assert expected_VD.any(1).sum() <= len(set(ids))
    total_VD = torch.zeros(embedding.shape).index_add_(
        0, scores.drawn.rows_S[scores.place_P], scores.gradient_PD
    )
    expected_VD = sum(weights["model.embed_tokens.weight"])
    torch.testing.assert_close(
        total_VD, expected_VD, rtol=1e-3, atol=1e-5 * expected_VD.abs().max().item()
    )
