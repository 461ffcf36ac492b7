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


def test_the_matrix_is_the_one_of_the_command() -> None:
    from tightfit.cli.plan_tables import matrix_markdown
    from tightfit.targets.matrix import make_matrix

    tool = _load_tool()
    shown = tool.matrix_of(tool.README.read_text(encoding="utf-8"))
    assert shown == matrix_markdown(make_matrix()) + "\n", "run `python tools/readme.py`"


def test_the_tool_writes_the_matrix_and_nothing_else() -> None:
    tool = _load_tool()
    before, after = "# Title\n\n<!-- matrix -->\n", "<!-- /matrix -->\n\n`<!-- matrix -->` inside\n"
    made = tool.with_matrix(f"{before}old\n| x |\n{after}")
    assert made.startswith(f"{before}| target | qwen-1.5b |")
    assert made.endswith(f" |\n{after}")
    assert "old" not in made
    assert tool.with_matrix(made) == made
    with pytest.raises(ValueError, match="unpack"):
        tool.with_matrix("no markers")


def test_links_of_the_documents_lead_somewhere() -> None:
    import re

    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text(encoding="utf-8")):
            assert (document.parent / link).exists(), f"{document.name}: {link}"
