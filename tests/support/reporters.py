"""Reporters that keep what they are told, or interrupt."""

from collections.abc import Iterator
from contextlib import contextmanager

from tightfit.reporter import Progress, SilentReporter


class Notes(SilentReporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.warnings: list[str] = []

    def stage(self, name: str) -> None:
        self.lines.append(name)

    def info(self, text: str) -> None:
        self.lines.append(text)

    def warning(self, text: str) -> None:
        self.warnings.append(text)

    def count(self, start: str) -> int:
        """Lines that begin so."""
        return sum(line.startswith(start) for line in self.lines)


class StopAt(Notes):
    """Ctrl-C where a stage or a progress bar begins so; a bar is stopped after its first step."""

    def __init__(self, start: str) -> None:
        super().__init__()
        self.start = start

    def stage(self, name: str) -> None:
        super().stage(name)
        if name.startswith(self.start):
            raise KeyboardInterrupt

    @contextmanager
    def progress(self, total: int, description: str, /) -> Iterator[Progress]:
        if description.startswith(self.start):
            yield _Interrupt()
        else:
            with super().progress(total, description) as progress:
                yield progress


class _Interrupt:
    def advance(self, _steps: int = 1) -> None:
        raise KeyboardInterrupt
