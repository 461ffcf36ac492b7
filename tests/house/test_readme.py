"""The README shows what really happens."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def _load_tool():
    spec = importlib.util.spec_from_file_location("readme", ROOT / "tools" / "readme.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_commands_print_what_the_readme_shows(tmp_path: Path) -> None:
    tool = _load_tool()
    commands = list(tool.shown(tool.README.read_text(encoding="utf-8")))
    assert len(commands) >= 4

    for arguments, shown in commands:
        printed = tool.run(arguments, tmp_path)
        if arguments.split()[0] in ("models", "targets", "plan"):
            assert printed == shown, arguments
        else:
            assert tool.masked(printed) == tool.masked(shown), arguments


def test_links_of_the_documents_lead_somewhere() -> None:
    import re

    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text(encoding="utf-8")):
            assert (document.parent / link).exists(), f"{document.name}: {link}"
