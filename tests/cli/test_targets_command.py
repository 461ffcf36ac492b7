"""`tightfit targets` as a user types it."""

import json
from pathlib import Path

import pytest

from tightfit.cli.main import run

PROFILES = Path(__file__).parents[2] / "targets" / "profiles"


def test_a_node_shows_what_connects_its_devices(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["targets", "a100x16-80gb"]) == 0
    shown = capsys.readouterr().out
    for field in ("node_count", "interconnect_gb_s", "runtimes.vllm", "notes.gguf"):
        assert field in shown
    assert run(["targets", "jetson-agx-orin-64gb"]) == 0
    assert "unified_memory" in capsys.readouterr().out
    assert run(["targets", "rtx3060-8gb"]) == 0
    shown = capsys.readouterr().out
    assert "node_count" not in shown
    assert "unified_memory" not in shown


def test_the_list_counts_devices(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["targets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    row = next(line for line in lines if "a100x8-80gb" in line)
    # 8 x (80 - 0.85) GiB
    assert "8 x 80" in row
    assert "633.20" in row
    assert "gguf, onnx, gptq, awq," in row


def test_a_profile_of_the_users_is_checked_and_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "office.toml"
    text = (PROFILES / "rtx3060-12gb.toml").read_text()
    mine.write_text(text.replace("reserved_gib = 0.75", "reserved_gib = 1.75"))
    assert run(["targets", "--target-file", str(mine), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["name"], shown["reserved_gib"]) == ("office", 1.75)
    mine.write_text(text.replace("reserved_gib = 0.75", "reserved_gib = '1.75'"))
    assert run(["targets", "--target-file", str(mine)]) == 2
    said = capsys.readouterr().err
    assert "profile 'office': reserved_gib = '1.75' is not allowed" in said
    assert "a number from 0, in GiB" in said
    assert run(["targets", "rtx3060-8gb", "--target-file", str(mine)]) == 2
    assert "name two machines" in capsys.readouterr().err
