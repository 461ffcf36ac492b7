"""llm-compressor: `python -m benchmarks.race.llm_compressor METHOD MODEL OUTPUT SEQUENCES`.

METHOD is gptq:ORDER (static, its default, or none) or awq.
"""

import os
import sys
from typing import Any

import torch
from torch.utils.data import DataLoader

from benchmarks.race.measured import arguments, measured, save_linears
from benchmarks.race.subject import LENGTH_TOKENS, calibration_ids


def recipe(method: str) -> Any:
    """Its own defaults beside 4 bits in groups of 128."""
    kind, _, order = method.partition(":")
    if kind == "gptq":
        from llmcompressor.modifiers.gptq import GPTQModifier

        actorder = None if order == "none" else order
        return GPTQModifier(targets="Linear", scheme="W4A16", ignore=["lm_head"], actorder=actorder)
    from llmcompressor.modifiers.transform.awq import AWQModifier

    return AWQModifier(targets="Linear", scheme="W4A16_ASYM", ignore=["lm_head"])


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
    save_linears(model, output)


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    main()
