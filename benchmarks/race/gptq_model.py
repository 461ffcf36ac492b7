"""gptqmodel: `python -m benchmarks.race.gptq_model MODEL OUTPUT SEQUENCES`, group-aware order."""

from benchmarks.race.measured import CHECKPOINT, arguments, measured, use_threads
from benchmarks.race.subject import GROUP_SIZE, calibration_ids


def main() -> None:
    """Quantize and write its checkpoint, which the score reads."""
    from gptqmodel import GPTQModel, QuantizeConfig

    folder, output, n_sequences = arguments()
    model = GPTQModel.load(str(folder), QuantizeConfig(bits=4, group_size=GROUP_SIZE))
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
