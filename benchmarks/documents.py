"""Generated parts of the documents, between marks."""

from pathlib import Path
from typing import Final

DOCS: Final = Path(__file__).parents[1] / "docs"


def replace_part(document: Path, name: str, text: str) -> None:
    """Replace what stands between the two marks of that name."""
    start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, _, rest = document.read_text(encoding="utf-8").partition(start)
    _, mark, after = rest.partition(end)
    assert mark, f"{document} has no part {name!r}"
    document.write_text(f"{before}{start}{text}{end}{after}", encoding="utf-8")


def write_part(document: Path, name: str, text: str) -> None:
    """The same; a document without the marks gets them at its end."""
    written = document.read_text(encoding="utf-8")
    if f"<!-- {name} -->\n" not in written:
        marks = f"\n<!-- {name} -->\n<!-- /{name} -->\n"
        document.write_text(written.rstrip("\n") + "\n" + marks, encoding="utf-8")
    replace_part(document, name, text)
