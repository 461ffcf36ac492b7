"""Each command of the card, parsed by what it is for, is about files that are in the repository."""

import argparse
import dataclasses
import io
import json
import re
import shlex
import shutil
from contextlib import redirect_stdout
from fnmatch import fnmatch
from pathlib import Path

import pytest
import typer
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from support import card_manifests as cards
from support.onnx_folders import onnx_folder
from support.tiny_r1 import TINY_R1

from tightfit.cli.main import app
from tightfit.export.manifest import Manifest
from tightfit.publish.card.card import make_card
from tightfit.publish.card.layout import quant_label

NAME = cards.REPO.partition("/")[2]
ALL = ("gguf", "onnx", "tensorrt", *cards.CHECKPOINTS)


def blocks(card: str, language: str) -> list[str]:
    tokens = MarkdownIt("commonmark").parse(ModelCard(card).text)
    return [token.content for token in tokens if token.type == "fence" and token.info == language]


def commands(card: str) -> list[list[str]]:
    lines = "".join(blocks(card, "sh")).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines]


def files_of(manifest: Manifest) -> set[str]:
    made = (record.name for artifact in manifest.artifacts for record in artifact.files)
    return {*made, *(record.name for record in manifest.companions)}


def arguments(words: list[str]) -> dict:
    """The parameters as tightfit's own parser takes them; it refuses what it does not know."""
    command = typer.main.get_command(app).get_command(None, words[1])
    return command.make_context(words[1], words[2:]).params


def download(words: list[str]) -> argparse.Namespace:
    """The part of `hf download` that the card uses, as its --help has it."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("program", nargs=2)
    parser.add_argument("repo")
    parser.add_argument("names", nargs="*")
    parser.add_argument("--local-dir")
    parser.add_argument("--include", action="append", default=[])
    return parser.parse_intermixed_args(words)


def check(words: list[str], names: set[str]) -> str:
    """Assert that the command is about files of the repository; returns the program."""
    program = words[0]
    if program == "llama-server":
        assert words[words.index("-hf") + 1] == cards.REPO
        assert words[words.index("-hff") + 1] in names
    elif program == "ollama":
        repo, _, tag = words[2].rpartition(":")
        assert words[:2] == ["ollama", "run"]
        assert repo == f"hf.co/{cards.REPO}"
        ggufs = [name for name in names if name.endswith(".gguf")]
        assert len(ggufs) == 1
        assert tag in ggufs[0]
    elif program == "lms":
        assert words[2].partition("@")[0] == f"https://huggingface.co/{cards.REPO}"
        assert any(words[2].partition("@")[2] in name for name in names)
    elif program == "hf":
        given = download(words)
        assert given.program == ["hf", "download"]
        assert (given.repo, given.local_dir) == (cards.REPO, NAME)
        assert set(given.names) <= names
        for pattern in given.include:
            assert any(fnmatch(name, pattern) for name in names)
    elif program in ("vllm", "trtllm-serve"):
        where = words[2] if program == "vllm" else words[1]
        folder = "" if where == cards.REPO else where.removeprefix(f"./{NAME}/") + "/"
        assert f"{folder}config.json" in names
        assert f"{folder}tokenizer.json" in names
        assert any(name.startswith(f"{folder}model") for name in names)
    elif program == "llama-gguf-split":
        assert words[1] == "--merge"
        assert words[2].removeprefix(f"{NAME}/") in names
    elif program == "tightfit":
        if words[1] == "export":
            arguments(words)
        else:
            assert words[1:] in (["verify", f"hub:{cards.REPO}"], ["verify", NAME, "--on-gpu"])
    else:
        assert program == "pip"
    return program


@pytest.mark.parametrize(
    ("kinds", "programs"),
    [
        (("gguf",), {"llama-server", "ollama", "lms"}),
        (("split",), {"llama-server", "lms", "hf", "llama-gguf-split"}),
        (("onnx",), {"hf", "pip"}),
        (("js",), {"hf"}),
        (("tensorrt",), {"hf", "pip"}),
        (("gptq",), {"vllm", "pip"}),
        (("awq",), {"vllm", "pip"}),
        (("compressed-tensors",), {"vllm", "pip"}),
        (("modelopt",), {"vllm", "trtllm-serve"}),
        (("gptq", "awq"), {"hf", "vllm", "pip"}),
        (ALL, {"llama-server", "ollama", "lms", "hf", "pip", "vllm", "trtllm-serve"}),
    ],
    ids=lambda value: "+".join(sorted(value)),
)
def test_the_commands_are_those_that_the_files_allow(
    tmp_path: Path, kinds: tuple[str, ...], programs: set[str]
) -> None:
    manifest = cards.manifest(tmp_path, kinds)
    card = make_card(manifest, tmp_path, cards.REPO)
    found = {check(words, files_of(manifest)) for words in commands(card)}
    assert found == {*programs, "tightfit"}


def test_a_file_that_is_not_there_is_noticed(tmp_path: Path) -> None:
    manifest = cards.manifest(tmp_path, ALL)
    card = make_card(manifest, tmp_path, cards.REPO)
    lists = commands(card)
    for missing in sorted(files_of(manifest)):
        if missing in "".join(blocks(card, "sh")):
            with pytest.raises(AssertionError):
                [check(words, files_of(manifest) - {missing}) for words in lists]


def test_modelopt_of_int4_is_not_for_vllm(tmp_path: Path) -> None:
    manifest = cards.manifest(tmp_path, ("modelopt",))
    (made,) = manifest.artifacts
    tensor = dataclasses.replace(made.tensors[0], grid="int4-g128-sym")
    int4 = manifest.with_artifact(dataclasses.replace(made, tensors=(tensor,)))
    programs = {words[0] for words in commands(make_card(int4, tmp_path, cards.REPO))}
    assert programs == {"trtllm-serve", "tightfit"}


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("tiny-r1-auto-Q4_K_S.gguf", "Q4_K_S"),
        ("DeepSeek-R1-Q8_0-distilled-iq4_xs-00001-of-00003.gguf", "IQ4_XS"),
        ("model-BF16.gguf", "BF16"),
        ("model-f16.gguf", "F16"),
        ("model-Q2_K.gguf", "Q2_K"),
        ("model-Q5_1.gguf", "Q5_1"),
        ("model-IQ4_NL.gguf", "IQ4_NL"),
        ("model.gguf", None),
    ],
)
def test_the_label_is_the_last_type_in_the_name(name: str, label: str | None) -> None:
    assert quant_label(name) == label


def test_the_export_command_is_the_manifests(tmp_path: Path) -> None:
    manifest = cards.manifest(tmp_path, ("gguf", "onnx", "tensorrt"))
    card = make_card(manifest, tmp_path, cards.REPO)
    (words,) = (words for words in commands(card) if words[:2] == ["tightfit", "export"])
    assert tuple(words[1:]) == manifest.command
    given = arguments(words)
    assert (given["model"], given["bpw"], given["calib"]) == (
        "r1-distill-qwen-7b",
        4.37,
        "my traces.jsonl",
    )
    (block,) = (block for block in blocks(card, "sh") if "tightfit export" in block)
    assert max(map(len, block.splitlines())) <= 100


def test_transformers_js_asks_for_the_dtype_of_the_config(tmp_path: Path) -> None:
    card = make_card(cards.manifest(tmp_path, ("js",)), tmp_path, cards.REPO)
    (program,) = blocks(card, "js")
    assert f'pipeline("text-generation", "{cards.REPO}", {{ dtype: "q4f16" }})' in program


@pytest.mark.parametrize("kinds", [("gptq",), ("gptq", "awq")])
def test_the_transformers_program_runs(tmp_path: Path, kinds: tuple[str, ...]) -> None:
    """With the embedded checkpoint in the place of the repository."""
    card = make_card(cards.manifest(tmp_path, kinds), tmp_path, cards.REPO)
    program = blocks(card, "python")[0]
    repository = tmp_path / "repository"
    inside = repository / "gptq" if len(kinds) > 1 else repository
    shutil.copytree(TINY_R1, inside)
    assert program.count(json.dumps(cards.REPO)) == 2
    program = program.replace(json.dumps(cards.REPO), json.dumps(str(repository)))
    assert "</think>" in output_of(program)


def test_the_genai_program_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder as `hf download` makes it."""
    card = make_card(cards.manifest(tmp_path, ("onnx",)), tmp_path, cards.REPO)
    (program,) = blocks(card, "python")
    genai_folder(tmp_path / NAME)
    monkeypatch.chdir(tmp_path)
    assert "</think>" in output_of(program)


def test_the_onnxruntime_program_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = cards.manifest(tmp_path, ("onnx",))
    (made,) = manifest.artifacts
    bare = manifest.with_artifact(dataclasses.replace(made, files=made.files[:2]))
    (program,) = blocks(make_card(bare, tmp_path, cards.REPO), "python")
    genai_folder(tmp_path / NAME)
    monkeypatch.chdir(tmp_path)
    assert "input_ids" in output_of(program)


def genai_folder(folder: Path) -> None:
    from tightfit.calib.config import read_config
    from tightfit.calib.dimensions import dimensions_of
    from tightfit.export.onnx.genai import write_genai_config

    folder.mkdir()
    onnx_folder(TINY_R1, folder)
    write_genai_config(folder, dimensions_of(read_config(TINY_R1)))


def output_of(program: str) -> str:
    said = io.StringIO()
    with redirect_stdout(said):
        exec(compile(program, "card", "exec"), {})
    return re.sub(r"\s+", " ", said.getvalue())
