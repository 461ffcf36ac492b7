"""Data flows one way: the contract of pyproject.toml, checked again without import-linter.

Imports inside functions count too: a lazy import upwards is still a dependency upwards.
"""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = {
    "tightfit": ROOT / "tightfit",
    "tightfit.quant": ROOT / "quant",
    "tightfit.calib": ROOT / "calib",
    "tightfit.targets": ROOT / "targets",
    "tightfit.export": ROOT / "export",
}


def layers() -> list[list[str]]:
    """Highest first; modules of one layer are independent of each other."""
    text = (ROOT / "pyproject.toml").read_text()
    (contract,) = tomllib.loads(text)["tool"]["importlinter"]["contracts"]
    return [[part.strip() for part in layer.split("|")] for layer in contract["layers"]]


def modules() -> Iterator[tuple[str, ast.Module]]:
    for package, folder in FOLDERS.items():
        for file in folder.rglob("*.py"):
            inside = file.relative_to(folder)
            if package == "tightfit" and (folder / inside.parts[0]).is_symlink():
                continue
            name = ".".join([package, *inside.with_suffix("").parts]).removesuffix(".__init__")
            yield name, ast.parse(file.read_text())


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer_of(name: str) -> tuple[int, str] | None:
    for height, parts in enumerate(layers()):
        for part in parts:
            if name == part or name.startswith(part + "."):
                return height, part
    return None


def test_no_layer_imports_a_higher_one() -> None:
    wrong = []
    n_edges = 0
    for name, tree in modules():
        here = layer_of(name)
        for target in imported(tree):
            there = layer_of(target)
            if here is None or there is None or here[1] == there[1]:
                continue
            n_edges += 1
            if there[0] <= here[0]:
                wrong.append(f"{name} imports {target}")
    assert not wrong
    assert n_edges > 50, "the test must have seen the project's imports"


def test_every_package_is_in_the_contract() -> None:
    outside = sorted(
        name for name, _ in modules() if name.count(".") >= 1 and layer_of(name) is None
    )
    assert outside == ["tightfit.__main__"]


def test_nobody_imports_the_root_folders_by_their_bare_names() -> None:
    bare = ("quant", "calib", "targets", "export")
    wrong = [
        f"{name} imports {target}"
        for name, tree in modules()
        for target in imported(tree)
        if target.split(".")[0] in bare
    ]
    assert not wrong


def test_only_the_output_module_prints() -> None:
    printers = {
        name
        for name, tree in modules()
        for node in ast.walk(tree)
        if (isinstance(node, ast.Name) and node.id == "print")
        or (
            (isinstance(node, ast.Attribute) and node.attr in ("stdout", "stderr"))
            and isinstance(node.value, ast.Name)
            and node.value.id == "sys"
        )
    }
    # main only points a closed stdout elsewhere, loading what gptqmodel prints.
    pointing = {"tightfit.cli.main", "tightfit.runtimes.transformers.loading"}
    assert printers <= {"tightfit.cli.output", *pointing, *WORKERS}


WORKERS = {
    "tightfit.runtimes.worker_streams",
    "tightfit.runtimes.llamacpp.worker",
    "tightfit.runtimes.tensorrt.worker",
    "tightfit.drift.grading_worker",
}
"""Child processes, which talk to their parents through standard streams."""
