"""Run the commands that README.md shows, put their true output behind them, and write its matrix.

    python tools/readme.py            # rewrite the README
    (tests/house/test_readme.py compares instead)

A block is fenced as `console` and begins with `$ tightfit ...`; what follows is its stdout. Blocks
run in their order in one empty folder, so that a later one can use what an earlier one made. The
matrix of models by targets stands between the lines `<!-- matrix -->` and `<!-- /matrix -->`.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
_BLOCK = re.compile(
    r"(?<=```console\n)\$ tightfit (?P<arguments>[^\n]*)\n(?P<output>.*?)(?=```)", re.S
)
_MATRIX = re.compile(r"(?<=^<!-- matrix -->\n).*?(?=^<!-- /matrix -->$)", re.S | re.M)
HANDLED_STATUSES = (0, 5)
"""Done, and a gate that needs more problems: both are results."""


def shown(text: str) -> Iterator[tuple[str, str]]:
    """Arguments and stdout of every command that the text shows."""
    for match in _BLOCK.finditer(text):
        yield match["arguments"], match["output"]


def run(arguments: str, folder: Path) -> str:
    """Stdout of `tightfit` with these arguments, without trailing blanks."""
    done = subprocess.run(
        [sys.executable, "-m", "tightfit", *arguments.split()],
        cwd=folder,
        env={**os.environ, "TIGHTFIT_CACHE": str(folder / ".cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in HANDLED_STATUSES, done.stderr
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    return "\n".join(line for line in lines if line) + "\n"


def masked(output: str) -> str:
    """The output without what may differ between machines: numbers, signs, hashes, and widths."""
    without_hashes = re.sub(r"\b[0-9a-f]{16}\b", "#", output)
    without_numbers = re.sub(r"[+-]?[\d.,]+(e[+-]?\d+)?", "#", without_hashes)
    return re.sub(r"[─\s]+", " ", without_numbers).strip()


def matrix_of(text: str) -> str:
    """What lies between the markers of the matrix, which must be there once."""
    (between,) = _MATRIX.findall(text)
    return str(between)


def with_matrix(text: str) -> str:
    """The text with the matrix of models by targets between its markers."""
    from tightfit.cli.plan_tables import matrix_markdown
    from tightfit.targets.matrix import make_matrix

    matrix_of(text)
    table = matrix_markdown(make_matrix()) + "\n"
    return _MATRIX.sub(lambda _between: table, text)


def main() -> None:
    """Rewrite the README."""
    text = with_matrix(README.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as temporary:
        for arguments, _ in list(shown(text)):
            output = run(arguments, Path(temporary))
            text = _BLOCK.sub(
                lambda match, arguments=arguments, output=output: (
                    f"$ tightfit {arguments}\n{output}"
                    if match["arguments"] == arguments
                    else match[0]
                ),
                text,
            )
    README.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
