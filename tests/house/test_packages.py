"""The package list, the links and the folders agree, and a foreign `export/` changes nothing."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MAPPED = ("quant", "calib", "targets", "export")
"""Folders at the root that are packages under `tightfit`."""


def packages_in(folder: Path, name: str) -> set[str]:
    """Every package below a folder, links not followed."""
    found = {name}
    for init in folder.rglob("__init__.py"):
        inside = init.parent.relative_to(folder)
        if not any((folder / part).is_symlink() for part in [inside, *inside.parents]):
            found.add(".".join([name, *inside.parts]))
    return found


def test_package_list_is_what_the_folders_hold() -> None:
    listed = PROJECT["tool"]["setuptools"]["packages"]
    held = packages_in(ROOT / "tightfit", "tightfit")
    for folder in MAPPED:
        held |= packages_in(ROOT / folder, f"tightfit.{folder}")
    assert sorted(listed) == sorted(held)


def test_every_folder_of_code_is_a_package() -> None:
    """A forgotten __init__.py would drop the folder from the wheel."""
    for top in ("tightfit", *MAPPED):
        for module in (ROOT / top).rglob("*.py"):
            assert (module.parent / "__init__.py").exists(), module


@pytest.mark.parametrize("folder", MAPPED)
def test_links_and_package_dir_name_the_same_folder(folder: str) -> None:
    link = ROOT / "tightfit" / folder
    assert link.is_symlink()
    assert link.readlink() == Path("..") / folder
    assert PROJECT["tool"]["setuptools"]["package-dir"][f"tightfit.{folder}"] == folder


def test_data_files_are_in_the_package_data() -> None:
    """Everything that is read at run time and is no Python must be listed, or wheels lack it."""
    listed = PROJECT["tool"]["setuptools"]["package-data"]
    for folder in MAPPED:
        base = ROOT / folder
        patterns = listed.get(f"tightfit.{folder}", [])
        covered = {path for pattern in patterns for path in base.glob(pattern)}
        data = {
            path
            for path in base.rglob("*")
            if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts
        }
        assert data <= covered, sorted(str(path) for path in data - covered)


@pytest.mark.parametrize("args", [["-m", "tightfit"], ["-c", "from tightfit.cli.main import main"]])
def test_runs_beside_folders_of_the_same_names(args: list[str], tmp_path: Path) -> None:
    for folder in MAPPED:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").write_text("raise ImportError('the wrong one')\n")
    code = [*args, "targets"] if args[0] == "-m" else [args[0], args[1] + "; main(['targets'])"]
    done = subprocess.run([sys.executable, *code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "rtx3060-8gb" in done.stdout


def test_constraints_pin_every_direct_dependency() -> None:
    from packaging.requirements import Requirement

    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {
        requirement.name.lower().replace("_", "-"): requirement
        for requirement in map(Requirement, (s for s in lines if s and not s.startswith("#")))
    }
    wanted = list(PROJECT["project"]["dependencies"])
    for extra in PROJECT["project"]["optional-dependencies"].values():
        wanted += extra
    for requirement in map(Requirement, wanted):
        if requirement.name == "tightfit":
            continue
        pin = pins[requirement.name.lower().replace("_", "-")]
        (exact,) = pin.specifier
        assert exact.operator == "=="
        assert requirement.specifier.contains(exact.version), requirement


def test_version_is_written_once() -> None:
    from tightfit import __version__

    assert PROJECT["project"]["version"] == __version__
