"""The card as the Hub's client parses it, and as its reader sees it."""

import re
from html.parser import HTMLParser
from typing import Any

from huggingface_hub import ModelCard
from markdown_it import MarkdownIt


def data_of(card: str) -> dict[str, Any]:
    """The metadata as the Hub's own client parses it."""
    return ModelCard(card).data.to_dict()


def rendered(card: str) -> str:
    """HTML of the card's text, as the Hub would show it."""
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(ModelCard(card).text)


def shown_text(card: str) -> str:
    """What a reader sees, each run of white space as one space."""
    parts: list[str] = []
    parser = HTMLParser()
    parser.handle_data = parts.append  # type: ignore[method-assign]
    parser.feed(rendered(card))
    return re.sub(r"\s+", " ", "".join(parts))
