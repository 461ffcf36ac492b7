"""gptqmodel, group-aware: `python -m benchmarks.race.gptq_model DTYPE MODEL OUTPUT SEQUENCES`.

Unasked it takes bfloat16, for which AVX-512 may have units of its own.
"""

import sys

import torch

from benchmarks.race.measured import CHECKPOINT, arguments, measured, use_threads
from benchmarks.race.subject import GROUP_SIZE, calibration_ids


def main() -> None:
    """Quantize and write its checkpoint, which the score reads."""
    from gptqmodel import GPTQModel, QuantizeConfig

    dtype = getattr(torch, sys.argv.pop(1))
    folder, output, n_sequences = arguments()
    config = QuantizeConfig(bits=4, group_size=GROUP_SIZE)
    model = GPTQModel.load(str(folder), config, dtype=dtype)
    rows = [
        {"input_ids": ids.tolist(), "attention_mask": [1] * len(ids)}
        for ids in calibration_ids(n_sequences)
    ]
    with measured(output):
        model.quantize(rows, batch_size=1)
    model.save(str(output / CHECKPOINT))


if __name__ == "__main__":
    use_threads()
    main()
