"""`tightfit`: registers the commands, runs one, and turns its failure into an exit status."""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from types import ModuleType
from typing import Annotated

import typer

from tightfit import __version__
from tightfit.cli import (
    build_engine,
    doctor,
    drift,
    drift_baseline,
    drift_compare,
    export,
    inspect,
    models,
    plan,
    publish,
    targets,
    verify,
)
from tightfit.cli.failures import HANDLED, INTERRUPTED, TERMINATED, describe_failure
from tightfit.cli.options import examples
from tightfit.cli.output import emit, emit_error

_DEBUG = "--debug"
_EXAMPLES = examples(
    ("models", "the DeepSeek-R1 family: what there is and how large"),
    ("plan r1-distill-qwen-7b --target rtx3060-8gb", "what fits an 8 GB card, and why"),
    ("export --target rtx3060-8gb -o out", "quantize the embedded tiny-r1, as a first try"),
    ("drift out --baseline tiny-r1", "what the quantized file lost"),
)
_EXIT_STATUS = (
    "\b\nEXIT STATUS\n"
    "  0 done   1 failed   2 wrong usage   3 the drift gate failed\n"
    "  4 does not fit the target   5 inconclusive   130 interrupted"
)

app = typer.Typer(
    name="tightfit",
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog=f"{_EXAMPLES}\n\n{_EXIT_STATUS}",
)
_COMMANDS = (
    models,
    targets,
    plan,
    export,
    verify,
    drift,
    publish,
    build_engine,
    inspect,
    doctor,
)
for module in _COMMANDS:
    name = module.__name__.rpartition(".")[2]
    command = getattr(module, f"{name}_command")
    app.command(name.replace("_", "-"), epilog=module.EXAMPLES)(command)
_TWO_WORDS: dict[str, tuple[ModuleType, Callable[..., None]]] = {
    "drift baseline": (drift_baseline, drift_baseline.drift_baseline_command),
    "drift compare": (drift_compare, drift_compare.drift_compare_command),
}
"""Commands whose name is two words, beside `drift`, whose first argument is an artifact."""
for name, (module, command) in _TWO_WORDS.items():
    app.command(name, epilog=module.EXAMPLES)(command)


def _print_version(asked: bool) -> None:
    if asked:
        emit({"version": __version__}, f"tightfit {__version__}", as_json=False)
        raise typer.Exit


@app.callback()
def tightfit(
    _version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the version and exit.",
            is_eager=True,
            callback=_print_version,
        ),
    ] = False,
    _debug: Annotated[bool, typer.Option(_DEBUG, help="Show the traceback of a failure.")] = False,
) -> None:
    """The best DeepSeek-R1 that fits the hardware you have, with proof of what it lost."""


def main(argv: list[str] | None = None) -> None:
    """Run the command line and exit with its status."""
    args = list(sys.argv[1:] if argv is None else argv)
    # A job that is told to end removes its temporary files (a baseline may be 15 GB) and children.
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(run(args))


def _terminate(_number: int, _frame: object) -> None:
    sys.exit(TERMINATED)


def join_command(args: list[str]) -> list[str]:
    """The arguments with a command of two words as one."""
    words = " ".join(args[:2])
    return [words, *args[2:]] if words in _TWO_WORDS else args


def run(args: list[str]) -> int:
    """Run one command and return its exit status."""
    debug = _DEBUG in args
    args = join_command([arg for arg in args if arg != _DEBUG]) or ["--help"]
    command = typer.main.get_command(app)
    try:
        status: int = command.main(args, prog_name="tightfit", standalone_mode=False) or 0
        if status == INTERRUPTED:
            # Newer typers swallow Ctrl-C and return this status without a word.
            raise KeyboardInterrupt
        return status
    except BrokenPipeError:
        # The reader of a pipe has seen enough; give Python somewhere to flush to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return HANDLED
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        failure = describe_failure(error)
        emit_error(failure.lines, failure.document, as_json="--json" in args)
        return failure.exit_status
