"""Whether a text ends in a loop, and how much of it repeats.

*Loop*: the text ends in a block that stands there `LOOP_REPEATS` times or more, the last time
perhaps cut short, over `LOOP_CHARACTERS` or more. With z[p] the length of the common prefix of the
reversed text and itself from p on (the Z-function: Gusfield, Algorithms on Strings, Trees, and
Sequences, 1997, section 1.3; linear time), the longest end of period p has p + z[p] characters.
Only exact copies count: a loop that counts its steps shows in the repetition, or as truncated.

*Repetition*: the share of word n-grams that occurred before in the same text,

    1 - |unique n-grams| / |n-grams|        (seq-rep-n: Welleck et al., Neural Text Generation with
                                             Unlikelihood Training, ICLR 2020, section 6)

over words between white space, with n = `REPETITION_WORDS` where they take 4: mathematics repeats
short phrases and formulas without being stuck.
"""

from typing import Final

LOOP_REPEATS: Final = 4
"""Three equal lines happen in mathematics (rows of a matrix, cases that end alike)."""
LOOP_CHARACTERS: Final = 200
"""About 64 tokens: longer than a row of zeros, a rule of dashes or a period of decimals that
answers really write."""
REPETITION_WORDS: Final = 20
"""About a sentence: who writes twenty words again has written the sentence again."""


def ends_in_loop(text: str) -> bool:
    """Whether the text ends in a loop."""
    if not _end_recurs(text):
        return False
    common = z_function(text[::-1])
    return any(
        period + common[period] >= max(LOOP_REPEATS * period, LOOP_CHARACTERS)
        for period in range(1, len(text) // LOOP_REPEATS + 1)
    )


def _end_recurs(text: str) -> bool:
    """Whether the last characters stand in the text often enough for a loop.

    Every loop shows this: of at least 4 p and 200 characters, 3 p + 50 or more are periodic, so
    that the last 50 recur three times. Other texts, nearly all, need no more than this search.
    """
    end = text[-(LOOP_CHARACTERS // LOOP_REPEATS) :]
    start = len(text) - len(end)
    for _ in range(LOOP_REPEATS - 1):
        start = text.rfind(end, 0, start + len(end) - 1)
        if start < 0:
            return False
    return True


def z_function(text: str) -> list[int]:
    """Of each index, the length of the common prefix of the text and its rest from there."""
    n = len(text)
    common = [0] * n
    # text[left:right] is the prefix match that reaches furthest.
    left = right = 0
    for index in range(1, n):
        length = min(right - index, common[index - left]) if index < right else 0
        while index + length < n and text[length] == text[index + length]:
            length += 1
        common[index] = length
        if index + length > right:
            left, right = index, index + length
    return common


def repetition(text: str) -> float:
    """Share of n-grams that occurred before, 0 to 1; 0 for a text of fewer words."""
    words = text.split()
    n_grams = len(words) - REPETITION_WORDS + 1
    if n_grams < 1:
        return 0.0
    unique = {tuple(words[start : start + REPETITION_WORDS]) for start in range(n_grams)}
    return 1 - len(unique) / n_grams
