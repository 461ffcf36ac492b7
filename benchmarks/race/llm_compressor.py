"""llm-compressor: `python -m benchmarks.race.llm_compressor METHOD MODEL OUTPUT SEQUENCES`.

METHOD is gptq:ORDER (static, its default, or none) or awq.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.race.measured import (
    arguments,
    block_linears,
    measured,
    save_linears,
    save_weights,
    use_threads,
)
from benchmarks.race.scaled import unscaled
from benchmarks.race.subject import LENGTH_TOKENS, calibration_ids

IGNORED = ["lm_head"]


def recipe(method: str) -> list[Any]:
    """Its own defaults beside 4 bits in groups of 128."""
    kind, _, order = method.partition(":")
    if kind == "gptq":
        from llmcompressor.modifiers.gptq import GPTQModifier

        actorder = None if order == "none" else order
        return [GPTQModifier(targets="Linear", scheme="W4A16", ignore=IGNORED, actorder=actorder)]
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from llmcompressor.pipelines.cache import IntermediatesCache

    if not torch.accelerator.is_available():
        # 0.14 pins what it keeps for a device, and without one there is nothing to pin it for.
        IntermediatesCache.pin_memory = lambda *_: None
    return [
        AWQModifier(),
        QuantizationModifier(targets="Linear", scheme="W4A16_ASYM", ignore=IGNORED),
    ]


def save_scaled(model: nn.Module, folder: Path, output: Path) -> None:
    """AWQ leaves the scaled weights as they are, and their scales and zero points beside them."""
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize

    scaled, rounded = {}, {}
    for name, linear in block_linears(model).items():
        held: Any = linear
        scaled[f"{name}.weight"] = linear.weight.detach()
        rounded[f"{name}.weight"] = fake_quantize(
            linear.weight.detach(),
            held.weight_scale,
            held.weight_zero_point,
            held.quantization_scheme.weights,
        ).detach()
    save_weights(unscaled(rounded, scaled, load_file(folder / "model.safetensors")), output)


def main() -> None:
    """Quantize and save the dequantized matrices."""
    from llmcompressor import oneshot
    from transformers import AutoModelForCausalLM

    method = sys.argv.pop(1)
    folder, output, n_sequences = arguments()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rows = [
        {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        for ids in calibration_ids(n_sequences)
    ]
    with measured(output):
        oneshot(
            model=model,
            dataset=DataLoader(rows, batch_size=1),  # type: ignore[arg-type]
            recipe=recipe(method),
            num_calibration_samples=n_sequences,
            max_seq_length=LENGTH_TOKENS,
            shuffle_calibration_samples=False,
        )
    if method == "awq":
        save_scaled(model, folder, output)
    else:
        save_linears(model, output)


if __name__ == "__main__":
    use_threads()
    main()
