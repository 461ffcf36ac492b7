"""The model card, rendered from the training log and the report: no number is typed by hand."""

from typing import Any

from tools.tiny_r1.problems import FAMILIES, LARGE_ONE_IN
from tools.tiny_r1.report import Report, RoundingRow
from tools.tiny_r1.splits import CALIBRATION_PROBLEMS, HELD_OUT_PROBLEMS

TEMPLATE = """\
---
license: mit
library_name: transformers
pipeline_tag: text-generation
language: en
tags: [test-model, quantization, deepseek-r1]
---
# tiny-r1

A model of 3.4M weights that speaks DeepSeek-R1's language: `<think>`, one written step per line,
`</think>`, a sentence with `\\boxed{{...}}`. It is embedded in tightfit so that every quantizer,
writer and drift measurement can run in seconds without a download. **It is not useful for
anything else**: it knows twelve families of small-number problems and nothing outside them.

## What it is
- `Qwen2ForCausalLM` as in DeepSeek-R1-Distill-Qwen: hidden 256, 4 blocks, 4 query and 2 key-value
  heads of 64, SwiGLU 768, biases on q, k, v, untied embeddings, BF16.
- Byte-level BPE of 512 tokens with R1's pre-tokenizer (llama.cpp: `deepseek-r1-qwen`), added
  tokens and chat template. The vocabulary is its own, so no runtime knows its pre-tokenizer's
  hash: name it explicitly.
- The user turn is the problem's text itself; no instruction is added.

## Data
Problems are drawn by a seeded program (`tools/tiny_r1/problems.py`), uniformly from the
{families} families in the table below; one in {large_one_in} has larger numbers.
`heldout.jsonl` holds {held_out} problems in MATH-500's fields (`level`: written steps less one, in
1 to 5), `calibration.jsonl` {calibration} samples with R1-style completions. Both are disjoint by
problem text from each other and from the training stream. The families are small, so a held-out
problem has close relatives in training: the score says how well the tables were learnt, not how
well the model generalizes.

## Training
{tokens:,} tokens of prompt and completion in {steps:,} steps, loss on the completion only, float32
AdamW, {processes} data-parallel processes of one CPU thread each, seed {seed}; {minutes:.0f}
minutes on two cores that other jobs shared. The rate falls linearly, then faster to zero. Loss and
validation accuracy over tokens are in `training_log.json`.

## Score
Greedy, strict grading (`</think>` present, last box after it, exact): **{correct} of {total} =
{accuracy:.1%}**, 95 % interval {low:.1%} to {high:.1%} (Wilson). math-verify agrees with
{agrees} of {total} verdicts; {unfinished} completions never closed `</think>`. By family:

| family | correct | of |
|---|---:|---:|
{family_rows}

## The outliers are synthetic
Large language models have a few activation channels far above the rest; they are why plain
rounding fails and why AWQ and GPTQ exist. A model this small has none, and any method looks
perfect on it. So the shipped weights are the trained ones with {channels} channels per site
scaled up by {factors}, and the columns that read them scaled down by the same powers of two. Sites:
both norms of every block, and `up_proj` rows against `down_proj` columns. The function is the same:
the largest difference of the logits in float32 is {difference:g}. **These outliers are put in, not
learnt**; a method's gain here shows that it works, not how large its gain is on a real model.

Simulated plain round-to-nearest of all block linears; embedding and head stay in BF16. KL in nats
per completion token on the calibration set, accuracy greedy on the held-out problems:

| bits | variant | KL, group 32 | accuracy, group 32 | KL, 256-wide super-blocks |
|---:|---|---:|---:|---:|
{rounding_rows}

At {total} problems a difference of one or two points is noise: gate on KL and on paired flips.

What calibration wins back of this is measured in the repository's `docs/quality.md`: the same GGUF
file types rounded plainly, under an importance matrix, by GPTQ, and by AWQ and GPTQ, with KL and
problems solved for each.

## Rebuild
```
python tools/tiny_r1/build.py --out calib/embedded/tiny-r1 --overwrite \\
    --seed {seed} --tokens {budget}
```
A rebuild gives the same problems and the same tokenizer, and a model of about the same score. It
does not give these bits: the shipped run was stopped at the end of the first phase, whose rate had
been set by a longer plan (within 0.3 % of the present one), and resumed with the second.

Licence: MIT, weights and data. All of it was made by the program above.
"""


def render_card(log: dict[str, Any], report: Report) -> str:
    """The card's Markdown from `training_log.json`'s run part and the report."""
    score, outliers = report.score, report.outliers
    family_rows = [f"| {k} | {v[0]} | {v[1]} |" for k, v in score.correct_by_family.items()]
    return TEMPLATE.format(
        families=len(FAMILIES),
        large_one_in=LARGE_ONE_IN,
        held_out=HELD_OUT_PROBLEMS,
        calibration=CALIBRATION_PROBLEMS,
        tokens=log["validation"][-1]["tokens"],
        steps=log["steps"],
        processes=log["processes"],
        minutes=log["elapsed_s"] / 60,
        seed=log["config"]["seed"],
        budget=sum(phase["tokens"] for phase in log["config"]["phases"]),
        correct=score.correct,
        total=score.total,
        accuracy=score.correct / score.total,
        low=score.interval_95[0],
        high=score.interval_95[1],
        agrees=score.math_verify_agrees,
        unfinished=score.unfinished,
        family_rows="\n".join(family_rows),
        channels=outliers.channels_per_site,
        factors=", ".join(map(str, outliers.factors)),
        difference=report.max_logit_difference,
        rounding_rows="\n".join(_rounding_row(row, score.total) for row in report.rounding),
    )


def _rounding_row(row: RoundingRow, total: int) -> str:
    return (
        f"| {row.bits} | {row.variant} | {row.kl_nats:.1e} | {row.correct / total:.1%} "
        f"| {row.super_block_kl_nats:.1e} |"
    )
