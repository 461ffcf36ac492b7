"""auto-round's light recipe: `python -m benchmarks.race.auto_rounding MODEL OUTPUT SEQUENCES`."""

import importlib
from typing import Any

import torch

from benchmarks.race.measured import arguments, measured, save_linears, use_threads
from benchmarks.race.subject import LENGTH_TOKENS, calibration_ids

ITERATIONS = 50
LEARNING_RATE = 5e-3
"""Of `auto-round-light`; the default takes four times as many iterations, and as long."""


def main() -> None:
    """Quantize and save the dequantized matrices."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    auto_round: Any = importlib.import_module("auto_round")
    tokenizer: Any = PreTrainedTokenizerFast

    folder, output, n_sequences = arguments()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rounding = auto_round.AutoRound(
        model,
        # It asks for one and gets token ids.
        tokenizer=tokenizer(tokenizer_object=Tokenizer(WordLevel({}, unk_token="?"))),
        scheme="W4A16",
        dataset=[ids_T[None] for ids_T in calibration_ids(n_sequences)],
        iters=ITERATIONS,
        lr=LEARNING_RATE,
        seqlen=LENGTH_TOKENS,
        nsamples=n_sequences,
        batch_size=min(8, n_sequences),
        device_map="cpu",
    )
    with measured(output):
        rounding.quantize()
    save_linears(rounding.model, output)


if __name__ == "__main__":
    use_threads()
    main()
