"""How good the matrices of an entrant are, all on equal footing.

output error    mean over the linears of ||(W' - W) X|| / ||W X||, X what the linear reads in
the unquantized model, on tokens that nobody calibrated on
KL              mean over positions of KL(original || quantized) of the logits, in nats
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks.race.measured import CHECKPOINT, WEIGHTS
from benchmarks.race.subject import held_out_ids
from tightfit.calib.checkpoint import open_checkpoint


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """Of one entrant."""

    output_error: float
    kl_nats: float


@torch.inference_mode()
def score(model_folder: Path, output: Path) -> Score:
    """Of the matrices that an entrant left in `output`."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    weights = entrant_weights(output)
    errors: list[float] = []

    def watch(name: str, module: nn.Linear) -> None:
        difference_OI = weights[f"{name}.weight"] - module.weight

        def after(_module: nn.Module, arguments: tuple[Tensor, ...], _output: Tensor) -> None:
            x_BTI = arguments[0]
            off = (x_BTI @ difference_OI.T).norm() / (x_BTI @ module.weight.T).norm()
            errors.append(float(off))

        handles.append(module.register_forward_hook(after))

    handles: list[torch.utils.hooks.RemovableHandle] = []
    linears = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and f"{name}.weight" in weights
    }
    assert len(linears) == len(weights), "every matrix has its linear"
    for name, module in linears.items():
        watch(name, module)
    ids = held_out_ids()
    original = model(ids).logits.log_softmax(-1)
    for handle in handles:
        handle.remove()
    for name, module in linears.items():
        module.weight.data = weights[f"{name}.weight"]
    quantized = model(ids).logits.log_softmax(-1)
    kl = (original.exp() * (original - quantized)).sum(-1).mean()
    return Score(output_error=sum(errors) / len(errors), kl_nats=float(kl))


def entrant_weights(output: Path) -> dict[str, Tensor]:
    """float32 matrices by checkpoint name: as the entrant says, or as its checkpoint holds them."""
    if (output / WEIGHTS).exists():
        return load_file(output / WEIGHTS)
    checkpoint = open_checkpoint(output / CHECKPOINT)
    return {
        name: checkpoint.load(name) for name in checkpoint.names() if checkpoint.stored_grid(name)
    }
