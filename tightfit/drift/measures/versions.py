"""Versions of the definitions.

A number counts up when the same answers and logits would give another figure. Reports of other
versions are not compared, and a baseline that was kept under other versions is made anew.

* `tokens` (`tokens`, `partition`, `tightfit.runtimes.logprobs`): which tokens of a position are
  kept, how positions are compared and summed up. 1: KL over the whole vocabulary. 2: over the most
  probable tokens that hold 1 - 1e-6, at most 2048, and the rest as one; interval by
  `statistics.mean`; tokens confident from a probability of 0.9.
* `grading` (`tightfit.drift.grading`): when an answer is correct, wrong, absent or truncated.
  1: the last box behind the last `</think>`, compared by math-verify.
* `reasoning` (`reasoning`, `loops`, `scripts`): unclosed, truncated, looping, repetition, mixing
  and length ratio. 1: loops of 4 copies over 200 characters, 20-grams of words, 4 foreign letters.
* `prompt` (`tightfit.drift.protocol`): what a model is asked. 1: the checkpoint's chat template
  around problem and instruction, the answer opened by `<think>`.
"""

from typing import Final

VERSIONS: Final = {
    "tokens": 2,
    "grading": 1,
    "reasoning": 1,
    "prompt": 1,
}
