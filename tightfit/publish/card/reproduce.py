"""The command that makes the artifacts again, as the manifest has it."""

import itertools
from collections.abc import Iterator, Sequence

from tightfit.export.manifest import Manifest
from tightfit.publish.card.markdown import BREAK, command

_LINE_CHARACTERS = 92
"""What the Hub shows without a scroll bar."""


def export_commands(manifest: Manifest) -> tuple[str, ...]:
    """One command, an option with its value never apart."""
    pairs = (command(*words) for words in _options(("tightfit", *manifest.command)))
    lines: list[str] = []
    for pair in pairs:
        if lines and len(lines[-1]) + len(pair) < _LINE_CHARACTERS:
            lines[-1] += f" {pair}"
        else:
            lines.append(pair)
    return (BREAK.join(lines),)


def _options(words: Sequence[str]) -> Iterator[list[str]]:
    """`tightfit export MODEL`, then each option with what follows it."""
    group: list[str] = []
    for word, following in itertools.zip_longest(words, words[1:], fillvalue=""):
        group.append(word)
        if following.startswith("--"):
            yield group
            group = []
    yield group
