"""gptqmodel: `python -m benchmarks.race.gptq_model MODEL OUTPUT SEQUENCES`, group-aware order."""

import os
from pathlib import Path

import torch

from benchmarks.race.measured import arguments, measured, save_weights
from benchmarks.race.subject import GROUP_SIZE, calibration_ids
from tightfit.calib.checkpoint import open_checkpoint


def main() -> None:
    """Quantize, write its checkpoint, and read the matrices from it."""
    from gptqmodel import GPTQModel, QuantizeConfig

    folder, output, n_sequences = arguments()
    model = GPTQModel.load(str(folder), QuantizeConfig(bits=4, group_size=GROUP_SIZE))
    rows = [
        {"input_ids": ids.tolist(), "attention_mask": [1] * len(ids)}
        for ids in calibration_ids(n_sequences)
    ]
    with measured(output):
        model.quantize(rows, batch_size=1)
    model.save(str(output / "checkpoint"))
    checkpoint = open_checkpoint(Path(output / "checkpoint"))
    names = [name for name in checkpoint.names() if checkpoint.stored_grid(name)]
    save_weights({name: checkpoint.load(name) for name in names}, output)


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    main()
