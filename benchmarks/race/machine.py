"""What the figures depend on beside the code: the processor, its cores, the installed packages."""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PEERS_PYTHON = "TIGHTFIT_PEERS_PYTHON"
"""Environment variable: the interpreter that the peers are installed for; unset: this one."""
_LIST = (
    "import importlib.metadata as m, json;"
    "print(json.dumps({d.name.lower().replace('_', '-'): d.version for d in m.distributions()}))"
)


def interpreters() -> tuple[str, ...]:
    """Where a peer is looked for, in this order."""
    return tuple(dict.fromkeys((os.environ.get(PEERS_PYTHON, sys.executable), sys.executable)))


@functools.cache
def installed(python: str) -> Mapping[str, str]:
    """Versions by lower-case name of all that an interpreter has."""
    shown = subprocess.run(
        [python, "-I", "-c", _LIST], check=True, stdout=subprocess.PIPE, text=True
    )
    packages: dict[str, str] = json.loads(shown.stdout)
    return packages


def interpreter_of(package: str) -> str | None:
    """The first interpreter that has the package; None: it is not installed."""
    return next((each for each in interpreters() if package in installed(each)), None)


def machine(packages: Sequence[str]) -> dict[str, Any]:
    """Processor, cores, and the versions of those packages that are there, sorted."""
    found: dict[str, str] = {}
    for name in packages:
        python = interpreter_of(name)
        if python is not None:
            found[name] = installed(python)[name]
    return {"cores": os.cpu_count(), "cpu": _processor(), "packages": found}


def machine_line(of: Mapping[str, Any]) -> str:
    """The same as a sentence."""
    packages = ", ".join(f"{name} {version}" for name, version in sorted(of["packages"].items()))
    return f"{of['cores']} cores of {of['cpu']}; {packages}."


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "a processor without a name")
