"""Language mixing, by the script of letters.

An answer mixes languages when it has `MIXING_LETTERS` or more letters of scripts that its problem
does not use. Latin and Greek are mathematics' own and always allowed. DeepSeek-R1-Zero is known for
mixing (arXiv 2501.12948, section 2.2.4), most often Chinese into English.

A letter's script is the first word of its name in the Unicode Character Database, after NFKC, which
turns the letters of mathematics (ℝ, ℓ, 𝑥, µ) into plain ones. What cannot be seen this way: another
language in the same script, and English where another was asked for.
"""

import re
import unicodedata
from functools import lru_cache
from typing import Final

MIXING_LETTERS: Final = 4
"""Two Chinese words, or one Russian. Fewer are a symbol (Ш of Tate and Shafarevich) or a unit."""
MATHEMATICAL_SCRIPTS: Final = frozenset({"LATIN", "GREEK"})
JAPANESE_SCRIPTS: Final = frozenset({"CJK", "HIRAGANA", "KATAKANA"})
"""Written together: a problem in kana may be answered with characters that it does not have."""
LETTER_CATEGORIES: Final = frozenset({"Lu", "Ll", "Lt", "Lo"})
"""Not modifiers (Lm), which several scripts share."""
ALEF_SYMBOLS: Final = frozenset("ℵℶℷℸ")
"""Cardinal numbers, which NFKC takes for Hebrew."""
_NOT_ASCII: Final = re.compile(r"[^\x00-\x7f]")


def mixes_languages(answer: str, problem: str) -> bool:
    """Whether an answer has letters of scripts that neither its problem nor mathematics uses."""
    allowed = MATHEMATICAL_SCRIPTS | set(scripts_of(problem))
    if allowed & JAPANESE_SCRIPTS - {"CJK"}:
        allowed |= JAPANESE_SCRIPTS
    return sum(script not in allowed for script in scripts_of(answer)) >= MIXING_LETTERS


def scripts_of(text: str) -> list[str]:
    """The script of each letter that is not ASCII, `CJK` for Chinese characters."""
    return [script for character in _NOT_ASCII.findall(text) for script in _scripts(character)]


@lru_cache(maxsize=4096)
def _scripts(character: str) -> tuple[str, ...]:
    if character in ALEF_SYMBOLS:
        return ()
    return tuple(
        unicodedata.name(letter, "UNKNOWN").split()[0]
        for letter in unicodedata.normalize("NFKC", character)
        if unicodedata.category(letter) in LETTER_CATEGORIES
    )
