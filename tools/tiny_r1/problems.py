"""Procedural problems: twelve families of small-number arithmetic and simple algebra.

What: each family draws numbers from a seeded generator and returns a `Problem`: the text, the
written steps and the exact answer. One problem in eight draws larger numbers.
Why: a model of 3.4M weights can learn these in minutes, and a wrong digit anywhere in the chain
changes the answer, so its accuracy reacts to quantization as a large reasoning model's does.
Source: the field names follow MATH-500 (`problem`, `solution`, `answer`, `subject`, `level`,
`unique_id`); the completion has the form of DeepSeek-R1's: reasoning, `</think>`, boxed answer.
Deviation: the level is not a human's rating but the number of written steps less one, in 1..5.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import gcd

from tools.tiny_r1.arithmetic import (
    add_lines,
    divide_lines,
    multiply_lines,
    remainder_lines,
    subtract_lines,
)

LARGE_ONE_IN = 8  # harder mixes learnt nothing in the same time
MAX_LEVEL = 5  # MATH's scale
NAMES = (
    *("Ana", "Ben", "Clara", "David", "Eva", "Hugo"),
    *("Karim", "Leo", "Mia", "Nora", "Sofia", "Tom"),
)
ITEMS = ("apples", "balloons", "books", "cards", "cups", "flowers", "pens", "tickets")
EXTRAS = ("bag", "lamp", "notebook", "poster")


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One problem with its worked solution."""

    text: str
    """The user turn, verbatim; nothing is added to it."""
    steps: tuple[str, ...]
    """The reasoning, one line per step."""
    answer: str
    r"""An integer or `\frac{a}{b}` in lowest terms."""
    family: str
    """A key of `FAMILIES`."""

    @property
    def level(self) -> int:
        """The difficulty in 1..5: written steps less one, clamped."""
        return min(MAX_LEVEL, max(1, len(self.steps) - 1))

    @property
    def final_sentence(self) -> str:
        """The visible answer after the reasoning."""
        return f"The answer is $\\boxed{{{self.answer}}}$."

    @property
    def completion(self) -> str:
        r"""What follows the generation prompt (which ends in `<think>\n`)."""
        return "\n".join(self.steps) + "\n</think>\n" + self.final_sentence

    @property
    def solution(self) -> str:
        """The worked solution without R1's tags, as MATH-500 has it."""
        return "\n".join(self.steps) + "\n" + self.final_sentence


Body = tuple[str, list[str], str]  # text, steps, answer
Family = Callable[[random.Random, bool], Body]


def _sum(rng: random.Random, large: bool) -> Body:
    low, high = (100, 499) if large else (10, 99)
    a, b = rng.randint(low, high), rng.randint(low, high)
    text = rng.choice(
        (f"Compute ${a} + {b}$.", f"What is ${a} + {b}$?", f"Find the sum of ${a}$ and ${b}$.")
    )
    return text, add_lines(a, b), str(a + b)


def _difference(rng: random.Random, large: bool) -> Body:
    low, high = (100, 499) if large else (10, 99)
    b, a = sorted((rng.randint(low, high), rng.randint(low, high)))
    text = rng.choice(
        (f"Compute ${a} - {b}$.", f"What is ${a} - {b}$?", f"Subtract ${b}$ from ${a}$.")
    )
    return text, subtract_lines(a, b), str(a - b)


def _product(rng: random.Random, large: bool) -> Body:
    a, b = rng.randint(2, 9), rng.randint(101, 299) if large else rng.randint(11, 79)
    text = rng.choice(
        (
            f"Compute ${a} \\times {b}$.",
            f"What is ${a} \\times {b}$?",
            f"Find the product of ${a}$ and ${b}$.",
        )
    )
    return text, multiply_lines(a, b), str(a * b)


def _remainder(rng: random.Random, large: bool) -> Body:
    divisor = rng.randint(3, 9)
    number = rng.randint(100, 299) if large else rng.randint(2 * divisor, 10 * divisor - 1)
    text = rng.choice(
        (
            f"What is the remainder when ${number}$ is divided by ${divisor}$?",
            f"Find the remainder of ${number}$ divided by ${divisor}$.",
            f"Compute ${number} \\bmod {divisor}$.",
        )
    )
    return text, remainder_lines(number, divisor), str(number % divisor)


def _linear(rng: random.Random, large: bool) -> Body:
    a, b = rng.randint(2, 9), rng.randint(1, 30)
    x = rng.randint(11, 29) if large else rng.randint(2, 10)
    variable = rng.choice("xyn")
    text = f"Solve ${a}{variable} + {b} = {a * x + b}$ for ${variable}$."
    steps = subtract_lines(a * x + b, b)
    steps += [f"{a}{variable} = {a * x}", *divide_lines(a * x, a)]
    return text, steps, str(x)


def _balance(rng: random.Random, large: bool) -> Body:
    difference, right = rng.randint(2, 9), rng.randint(2, 9)
    left = right + difference
    x = rng.randint(11, 19) if large else rng.randint(2, 10)
    b = rng.randint(1, 20)
    variable = rng.choice("xyn")
    d = difference * x + b
    text = f"Solve ${left}{variable} + {b} = {right}{variable} + {d}$ for ${variable}$."
    steps = [f"{left} - {right} = {difference}", *subtract_lines(d, b)]
    steps += [f"{difference}{variable} = {d - b}", *divide_lines(d - b, difference)]
    return text, steps, str(x)


def _system(rng: random.Random, large: bool) -> Body:
    low, high = (20, 49) if large else (2, 20)
    y, x = sorted((rng.randint(low, high), rng.randint(low, high)))
    x += x == y
    total, gap = x + y, x - y
    wanted = rng.choice("xy")
    text = f"If $x + y = {total}$ and $x - y = {gap}$, what is ${wanted}$?"
    value = x if wanted == "x" else y
    steps = add_lines(total, gap) if wanted == "x" else subtract_lines(total, gap)
    steps += [f"2{wanted} = {2 * value}", f"{2 * value} / 2 = {value}"]
    return text, steps, str(value)


def _fractions(rng: random.Random, large: bool) -> Body:
    m, n = rng.randint(2, 9), rng.randint(10, 12) if large else rng.randint(2, 9)
    while m == n or gcd(m, n) > 1:
        m = rng.randint(2, 9)
    # Coprime denominators and lowest terms make the sum's own lowest terms n*a + m*b over m*n.
    a = rng.choice([k for k in range(1, m) if gcd(k, m) == 1])
    b = rng.choice([k for k in range(1, n) if gcd(k, n) == 1])
    sum_text = f"$\\frac{{{a}}}{{{m}}} + \\frac{{{b}}}{{{n}}}$"
    text = rng.choice((f"Compute {sum_text}.", f"What is {sum_text}?"))
    steps = [f"{m} * {n} = {m * n}", f"{a} * {n} = {a * n}", f"{b} * {m} = {b * m}"]
    steps += add_lines(a * n, b * m)
    return text, steps, f"\\frac{{{a * n + b * m}}}{{{m * n}}}"


def _evaluate(rng: random.Random, large: bool) -> Body:
    x, b = rng.randint(2, 9), rng.randint(2, 9)
    c = rng.randint(21, 99) if large else rng.randint(1, 20)
    polynomial = f"$x^2 + {b}x + {c}$"
    text = rng.choice(
        (f"If $x = {x}$, what is {polynomial}?", f"Evaluate {polynomial} at $x = {x}$.")
    )
    steps = [f"{x} * {x} = {x * x}", f"{b} * {x} = {b * x}"]
    steps += add_lines(x * x, b * x) + add_lines(x * x + b * x, c)
    return text, steps, str(x * x + b * x + c)


def _sequence(rng: random.Random, large: bool) -> Body:
    first, n = rng.randint(1, 20), rng.randint(5, 10)
    gap = rng.randint(11, 19) if large else rng.randint(2, 9)
    shown = ", ".join(str(first + gap * k) for k in range(3))
    text = f"What is term {n} of the arithmetic sequence ${shown}, \\ldots$?"
    steps = subtract_lines(first + gap, first)
    steps += [f"{n} - 1 = {n - 1}", *multiply_lines(n - 1, gap), *add_lines(first, (n - 1) * gap)]
    return text, steps, str(first + (n - 1) * gap)


def _purchase(rng: random.Random, large: bool) -> Body:
    count, extra = rng.randint(2, 9), rng.randint(5, 30)
    price = rng.randint(11, 29) if large else rng.randint(2, 9)
    name, item, other = rng.choice(NAMES), rng.choice(ITEMS), rng.choice(EXTRAS)
    text = (
        f"{name} buys ${count}$ {item} for ${price}$ dollars each and a {other} "
        f"for ${extra}$ dollars. How many dollars does {name} spend?"
    )
    return (
        text,
        multiply_lines(count, price) + add_lines(count * price, extra),
        str(count * price + extra),
    )


def _rectangle(rng: random.Random, large: bool) -> Body:
    width = rng.randint(2, 9)
    length = rng.randint(41, 99) if large else rng.randint(width + 1, 40)
    ask_area = rng.random() < 0.5
    wanted = "area" if ask_area else "perimeter"
    text = rng.choice(
        (
            f"A rectangle is ${length}$ cm long and ${width}$ cm wide. What is its {wanted}?",
            f"Find the {wanted} of a rectangle with sides ${length}$ and ${width}$.",
        )
    )
    if ask_area:
        return text, multiply_lines(width, length), str(width * length)
    half = length + width
    return text, add_lines(length, width) + multiply_lines(2, half), str(2 * half)


FAMILIES: dict[str, tuple[str, Family]] = {
    "sum": ("Prealgebra", _sum),
    "difference": ("Prealgebra", _difference),
    "product": ("Prealgebra", _product),
    "remainder": ("Number Theory", _remainder),
    "linear": ("Algebra", _linear),
    "balance": ("Algebra", _balance),
    "system": ("Intermediate Algebra", _system),
    "fractions": ("Prealgebra", _fractions),
    "evaluate": ("Algebra", _evaluate),
    "sequence": ("Algebra", _sequence),
    "purchase": ("Prealgebra", _purchase),
    "rectangle": ("Geometry", _rectangle),
}
"""Family name to its MATH subject and its generator; families are drawn uniformly."""


def draw(rng: random.Random, family: str | None = None) -> Problem:
    """One problem from `rng`; a uniformly drawn family unless one is named."""
    name = family or rng.choice(tuple(FAMILIES))
    text, steps, answer = FAMILIES[name][1](rng, rng.randrange(LARGE_ONE_IN) == 0)
    return Problem(text=text, steps=tuple(steps), answer=answer, family=name)


def stream(seed: str, excluded: frozenset[str]) -> Iterator[Problem]:
    """An endless stream whose problem texts are never in `excluded`; repeats are possible."""
    rng = random.Random(seed)
    while True:
        problem = draw(rng)
        if problem.text not in excluded:
            yield problem
