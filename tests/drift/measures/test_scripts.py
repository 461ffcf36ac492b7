"""Language mixing on texts that do and texts that only look foreign."""

import pytest

from tightfit.drift.measures.scripts import MIXING_LETTERS, mixes_languages, scripts_of

ENGLISH = "Find all real x with $x^2 = 4$."
CHINESE = "求所有满足 $x^2=4$ 的实数 $x$。"


@pytest.mark.parametrize(
    "answer",
    [
        "We factor it. 所以我们得到 x = 2 or x = -2.",
        "So x = 2, то есть x равен двум.",
        "따라서 x 는 2 입니다",
        "したがって x = 2",
        "بالتالي x = 2",
        "इसलिए x = 2",
        "ดังนั้น x = 2",
        "解是：两个",
    ],
)
def test_mixing_is_found(answer):
    assert mixes_languages(answer, ENGLISH)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "x = 2 or x = -2",
        "Let α, β, Γ ∈ ℝ with ℓ = 2πρ, 𝑥 ∈ ℤ, 𝔸, 𝛼 ⊂ ℂ, ℏ and µ; so x ≤ ∞ ⇒ √2 · ½ × 3⁴ − x₁₂",
        "ℵ₀ < ℵ₁ < ℵ₂, ℶ₁ and ℵ₃, ℵ₄, ℵ₅",
        "naïve café, Möbius, Erdős, Poincaré, Hölder, Øre, ß, ſ",
        "x ∈ Ш(E), the group of Tate and Shafarevich; 1º, 2ª, ﬁnite, ｘ＝２",
        "所以x",  # two letters are a slip, not a language
        "✓ 😀 → ① ㎏ № ™ — “quoted” …",
    ],
)
def test_mathematics_and_latin_are_none(answer):
    assert not mixes_languages(answer, ENGLISH)


def test_the_problem_s_own_language_is_none():
    assert not mixes_languages("所以我们得到 x = 2 或 x = -2。", CHINESE)
    assert not mixes_languages("So x = 2 or x = -2.", CHINESE)
    assert mixes_languages("Следовательно x = 2.", CHINESE)
    assert mixes_languages("したがって、xは2です。", CHINESE)
    assert not mixes_languages("したがって、解は二つ。カタカナ", "xをもとめなさい。")
    assert mixes_languages("따라서 답은 2", "xをもとめなさい。")


def test_the_threshold_is_counted_in_letters():
    assert not mixes_languages("解" * (MIXING_LETTERS - 1), ENGLISH)
    assert mixes_languages("解" * MIXING_LETTERS, ENGLISH)


def test_scripts():
    assert scripts_of("aб日がア한ا") == [
        "CYRILLIC",
        "CJK",
        "HIRAGANA",
        "KATAKANA",
        "HANGUL",
        "ARABIC",
    ]
    assert scripts_of("ℝ𝛼") == ["LATIN", "GREEK"]
