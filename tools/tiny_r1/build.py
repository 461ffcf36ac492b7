"""Builds `tiny-r1` from nothing: the one entry point.

    python tools/tiny_r1/build.py --out calib/embedded/tiny-r1 [--seed N] [--tokens N]

Steps: problems and splits; tokenizer; training (two processes, about twenty minutes on two free
cores); rounding to BF16; outlier channels; score; simulated rounding; the folder with its card.
`--work` keeps the checkpoints, and `--resume` goes on from the last one. When that one is the end
of the training, only the steps after it are redone: outliers, scores and card, in minutes.
"""

import argparse
import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
if str(REPOSITORY) not in sys.path:  # run as a script, only this file's folder is on the path
    sys.path.insert(0, str(REPOSITORY))

import torch  # noqa: E402  (the path comes first)
from tokenizers import Tokenizer  # noqa: E402
from transformers import Qwen2ForCausalLM  # noqa: E402
from transformers.utils import logging  # noqa: E402

from tools.tiny_r1.card import render_card  # noqa: E402
from tools.tiny_r1.folder import write_config, write_weights  # noqa: E402
from tools.tiny_r1.outliers import OutlierConfig, max_logit_difference, with_outliers  # noqa: E402
from tools.tiny_r1.progress import LOG_NAME, STATE_NAME  # noqa: E402
from tools.tiny_r1.report import Report, measure_rounding, measure_score  # noqa: E402
from tools.tiny_r1.schedule import TrainConfig  # noqa: E402
from tools.tiny_r1.splits import (  # noqa: E402
    Splits,
    make_splits,
    write_calibration,
    write_held_out,
)
from tools.tiny_r1.tokenizer import (  # noqa: E402
    prompt_text,
    train_tokenizer,
    write_tokenizer,
)
from tools.tiny_r1.train import train  # noqa: E402

DEFAULTS = TrainConfig()
EQUALITY_SAMPLES = 64  # completions on which the two variants' logits are compared
MAX_WEIGHTS_BYTES = 10 * 2**20  # the folder is part of the wheel


def round_to_bf16(model: Qwen2ForCausalLM) -> Qwen2ForCausalLM:
    """`model` with BF16 values held in float32: what ships is what is scored."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16).float()
    return model


def measure(
    plain: Qwen2ForCausalLM, tokenizer: Tokenizer, splits: Splits
) -> tuple[Qwen2ForCausalLM, Report]:
    """The shipped variant of `plain` and everything the card says about it."""
    config = OutlierConfig()
    shipped = with_outliers(plain, config)
    batches = [
        torch.tensor([tokenizer.encode(prompt_text(p.text) + p.completion).ids])
        for p in splits.calibration[:EQUALITY_SAMPLES]
    ]
    report = Report(
        score=measure_score(shipped, tokenizer, splits),
        outliers=config,
        max_logit_difference=max_logit_difference(plain, shipped, batches),
        rounding=measure_rounding({"plain": plain, "outliers": shipped}, tokenizer, splits),
    )
    return shipped, report


def write_folder(
    out: Path,
    model: Qwen2ForCausalLM,
    tokenizer: Tokenizer,
    splits: Splits,
    log: dict[str, Any],
    report: Report,
) -> None:
    """All files, written beside `out` and renamed into its place."""
    beside = out.with_name(out.name + ".partial")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    write_config(beside, model)
    write_weights(beside, model)
    write_tokenizer(beside, tokenizer)
    write_held_out(beside / "heldout.jsonl", splits.held_out)
    write_calibration(beside / "calibration.jsonl", splits.calibration)
    document = {**log, "report": asdict(report)}
    text = json.dumps(document, indent=1) + "\n"
    (beside / LOG_NAME).write_text(text, encoding="utf-8")
    (beside / "README.md").write_text(render_card(log, report), encoding="utf-8")
    weights_bytes = (beside / "model.safetensors").stat().st_size
    assert weights_bytes <= MAX_WEIGHTS_BYTES, weights_bytes
    shutil.rmtree(out, ignore_errors=True)
    beside.rename(out)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Build the embedded model tiny-r1.")
    parser.add_argument("--out", type=Path, required=True, help="the model folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing folder")
    parser.add_argument("--seed", type=int, default=DEFAULTS.seed)
    parser.add_argument("--tokens", type=int, default=DEFAULTS.tokens, help="training budget")
    parser.add_argument("--work", type=Path, default=Path("out/tiny-r1"), help="checkpoints, log")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    arguments = parser.parse_args()
    if arguments.out.exists() and not arguments.overwrite:
        parser.error(f"{arguments.out} exists; pass --overwrite to replace it")
    if arguments.resume and not (arguments.work / STATE_NAME).exists():
        parser.error(f"{arguments.work} holds no checkpoint; start without --resume")
    return arguments


def main() -> None:
    """Builds the folder that the command line asks for."""
    arguments = parse_arguments()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # no types there
    torch.set_num_threads(1)
    splits = make_splits(arguments.seed)
    tokenizer = train_tokenizer(arguments.seed, splits.texts)
    config = TrainConfig(seed=arguments.seed).scaled_to(arguments.tokens)
    model = train(config, tokenizer, arguments.work, resume=arguments.resume)
    log = json.loads((arguments.work / LOG_NAME).read_text(encoding="utf-8"))
    shipped, report = measure(round_to_bf16(model), tokenizer, splits)
    write_folder(arguments.out, shipped, tokenizer, splits, log, report)
    print(f"{arguments.out}: {report.score.correct} of {report.score.total} held-out problems")


if __name__ == "__main__":
    main()
