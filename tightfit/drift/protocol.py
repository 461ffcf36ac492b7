"""How answers are generated.

`deepseek` is DeepSeek-R1's own (its model card, Usage Recommendations, and section 3 of its paper,
arXiv 2501.12948): temperature 0.6, top-p 0.95, at most 32,768 tokens, no system prompt, the
instruction with the boxed answer in the user's turn, and the answer forced to begin with `<think>`.
`greedy` has no sampling noise: for smoke tests and small models. R1 itself loops under it.
"""

from dataclasses import dataclass

from tightfit.errors import UsageError

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
"""DeepSeek's instruction for mathematical problems; tiny-r1 was trained without any."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Protocol:
    """Everything that decides what a model is asked and how its answer is drawn."""

    name: str
    temperature: float
    """0 is greedy."""
    top_p: float
    max_tokens: int
    """Tokens of an answer at most."""
    samples: int = 1
    """Answers to each problem."""
    seed: int = 0
    instruction: str = INSTRUCTION
    """Follows the problem on a line of its own; empty: none."""
    forced_opening: str = "<think>\n"
    """What every answer begins with; part of the prompt."""

    def __post_init__(self) -> None:
        """Refuse samples that would all be the same."""
        if self.temperature == 0 and self.samples > 1:
            raise UsageError(
                f"{self.samples} samples a problem at temperature 0 are {self.samples} times the "
                "same answer",
                allowed="--samples 1 with greedy decoding",
                hint="give --temperature 0.6 --top-p 0.95, which is what DeepSeek samples with",
            )

    def stream(self, problem: int, sample: int) -> int:
        """Number of the random stream of an answer: the same for every model that is compared."""
        return problem * self.samples + sample


PROTOCOLS = {
    "deepseek": Protocol(name="deepseek", temperature=0.6, top_p=0.95, max_tokens=32_768),
    "greedy": Protocol(name="greedy", temperature=0.0, top_p=1.0, max_tokens=8192),
}
