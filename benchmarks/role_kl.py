"""KL divergence of a model with one role of its tensors on a grid, over the grid's noise.

    PYTHONPATH=tests python -m benchmarks.role_kl tiny-r1|smollm2

What the role weights of `targets/allocation/prior.py` are judged by: all tensors of a role, in all
layers, are rounded to nearest under the importance of the calibration sequences, and the mean KL
against the model as it was is divided by the grid's relative noise. A tied head is untied for it.
"""

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks.subjects import Subject, smollm2, tiny_r1
from tightfit.calib.architecture import architecture_of
from tightfit.quant.algorithms.rtn import rtn
from tightfit.quant.registry import get_grid
from tightfit.targets.allocation.noise import RELATIVE_NOISE
from tightfit.targets.allocation.roles import role_of

GRIDS = {"tiny-r1": "Q4_K", "smollm2": "int4-g64-asym"}
"""SmolLM2's rows of 576 take no super-blocks, and its weights come from a Q4_1 file: groups of 32
would find its own levels again."""
MAX_CALIBRATION = 8
MAX_EVALUATION = {"tiny-r1": 64, "smollm2": 4}


@torch.no_grad()
def _log_probabilities(model: PreTrainedModel, subject: Subject, n: int) -> list[Tensor]:
    """(T, V) of the scored tokens of each sequence."""
    found = []
    for sample in subject.evaluation[:n]:
        logits_TV = model(torch.tensor([sample.tokens])).logits[0]
        found.append(torch.log_softmax(logits_TV[max(sample.first_scored - 1, 0) : -1], -1))
    return found


@torch.no_grad()
def _importances(model: PreTrainedModel, subject: Subject) -> dict[str, Tensor]:
    """Sum of squares of every linear's inputs, by weight name."""
    found: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(
            lambda _module, inputs, _output, name=f"{name}.weight": found.__setitem__(
                name, found.get(name, 0) + (inputs[0].flatten(0, -2) ** 2).sum(0)
            )
        )
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    for sample in subject.calibration.samples[:MAX_CALIBRATION]:
        model(torch.tensor([sample.ids]))
    for hook in hooks:
        hook.remove()
    return found


@contextmanager
def _rounded(
    parameters: dict[str, torch.nn.Parameter], grid: str, importances: dict[str, Tensor]
) -> Iterator[None]:
    saved = {name: parameter.data.clone() for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        codes = rtn(parameter.data, get_grid(grid), importances.get(name))
        parameter.data.copy_(get_grid(grid).dequantize(codes))
    yield
    for name, parameter in parameters.items():
        parameter.data.copy_(saved[name])


def _mean_kl(baseline: list[Tensor], changed: list[Tensor]) -> float:
    kl = [(p.exp() * (p - q)).sum(-1) for p, q in zip(baseline, changed, strict=True)]
    return float(torch.cat(kl).mean())


def measure(subject: Subject, name: str) -> None:
    """Print a row for each role."""
    model = AutoModelForCausalLM.from_pretrained(subject.checkpoint.path, dtype=torch.float32)
    if model.config.tie_word_embeddings:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.data.clone())
    architecture, grid, n = (
        architecture_of(model.config.model_type),
        GRIDS[name],
        MAX_EVALUATION[name],
    )
    importances = _importances(model, subject)
    by_role: dict[str, dict[str, torch.nn.Parameter]] = {}
    for parameter_name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            role = role_of(architecture, parameter_name)
            by_role.setdefault(role, {})[parameter_name] = parameter
    by_role["all"] = {key: value for each in by_role.values() for key, value in each.items()}
    baseline = _log_probabilities(model, subject, n)
    print("| role | mean KL (nats) | KL / noise |\n|---|---:|---:|")
    for role, parameters in by_role.items():
        with _rounded(parameters, grid, importances):
            nats = _mean_kl(baseline, _log_probabilities(model, subject, n))
        print(f"| {role} | {nats:.5f} | {nats / RELATIVE_NOISE[grid]:.3g} |", flush=True)


def main() -> None:
    """Measure one model."""
    parser = argparse.ArgumentParser(description="KL divergence by role")
    parser.add_argument("model", choices=GRIDS)
    name = parser.parse_args().model
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        measure(tiny_r1() if name == "tiny-r1" else smollm2(Path(folder)), name)


if __name__ == "__main__":
    main()
