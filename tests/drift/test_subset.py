"""The `--subset` option: parsing, choosing, hashing, and what is refused."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from tightfit.drift.subset import SubsetSpec, hash_problems, load_subset, parse_spec
from tightfit.errors import DriftError, UsageError

EMBEDDED = Path(__file__).parents[2] / "calib" / "embedded" / "tiny-r1" / "heldout.jsonl"


@pytest.fixture
def problems_file(tmp_path):
    path = tmp_path / "problems.jsonl"
    lines = [
        {
            "problem": f"What is {index}?\u2028Say it.",
            "solution": f"\\boxed{{{index}}}",
            "answer": str(index),
            "subject": "Algebra" if index % 2 else "Number Theory",
            "level": index % 5 + 1,
            "unique_id": f"test/{index}",
            "extra": "ignored",
        }
        for index in range(40)
    ]
    text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    path.write_text(text + "\n\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("embedded", SubsetSpec(source="embedded")),
        (
            "math500:n=64,level=4-5,seed=3",
            SubsetSpec(source="math500", n=64, levels=(4, 5), seed=3),
        ),
        ("a/b.jsonl:level=2", SubsetSpec(source="a/b.jsonl", levels=(2, 2))),
        ("C:/b.jsonl", SubsetSpec(source="C:/b.jsonl")),
        (
            "math500:subject=Number Theory,n=1",
            SubsetSpec(source="math500", n=1, subject="Number Theory"),
        ),
    ],
)
def test_parse(text, spec):
    assert parse_spec(text) == spec


@pytest.mark.parametrize(
    "text",
    [
        "math500:size=3",
        "math500:n=0",
        "math500:n=-1",
        "math500:n=x",
        "math500:n=",
        "math500:n=1,n=2",
        "math500:n=1,oops",
        "math500:level=4-",
        "math500:level=4-x",
        ":n=3",
    ],
)
def test_refused(text):
    with pytest.raises(UsageError) as caught:
        parse_spec(text)
    assert text in str(caught.value)
    assert caught.value.allowed


def test_unknown_key_lists_the_keys():
    with pytest.raises(UsageError, match=r"n=\.\.\., level=\.\.\., subject=\.\.\., seed="):
        parse_spec("math500:levels=4")


def test_choice_is_stable_and_in_order(problems_file):
    def choose(options):
        subset = load_subset(parse_spec(f"{problems_file}:{options}"))
        return [int(problem.answer) for problem in subset.problems], subset.sha256

    first, digest = choose("n=10,seed=1")
    assert len(first) == 10
    assert first == sorted(first)
    assert choose("n=10,seed=1") == (first, digest)
    other, other_digest = choose("n=10,seed=2")
    assert other != first
    assert other_digest != digest


def test_filters(problems_file):
    subset = load_subset(parse_spec(f"{problems_file}:level=4-5,subject=number theory"))
    assert {problem.level for problem in subset.problems} == {4, 5}
    assert {problem.subject for problem in subset.problems} == {"Number Theory"}
    assert len(subset.problems) == 8
    everything = load_subset(parse_spec(str(problems_file)))
    assert len(everything.problems) == 40
    json.dumps(asdict(everything))


def test_the_hash_is_of_the_contents(problems_file):
    subset = load_subset(parse_spec(f"{problems_file}:n=2"))
    assert hash_problems(subset.problems) == subset.sha256
    assert hash_problems(subset.problems[::-1]) != subset.sha256


def test_empty_and_too_small(problems_file):
    with pytest.raises(DriftError, match="levels: 1, 2, 3, 4, 5"):
        load_subset(parse_spec(f"{problems_file}:subject=Geometry"))
    with pytest.raises(DriftError, match="n=41"):
        load_subset(parse_spec(f"{problems_file}:n=41"))


def test_bad_lines_are_named(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"problem": "?"}\n')
    with pytest.raises(DriftError, match="line 1"):
        load_subset(parse_spec(str(path)))
    path.write_text("\n[1]\n")
    with pytest.raises(DriftError, match="line 2"):
        load_subset(parse_spec(str(path)))


def test_a_level_must_be_a_number(problems_file):
    problems_file.write_text(problems_file.read_text().replace('"level": 3', '"level": "Level 3"'))
    with pytest.raises(DriftError, match="line 3: TypeError: level 'Level 3'"):
        load_subset(parse_spec(str(problems_file)))


def test_missing_file(tmp_path):
    with pytest.raises(UsageError, match="is not a file"):
        load_subset(parse_spec(str(tmp_path / "none.jsonl")))


def test_math500_without_a_network_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DriftError, match="--subset FILE"):
        load_subset(parse_spec("math500:n=1"))


def test_embedded():
    if not EMBEDDED.is_file():
        pytest.skip("calib/embedded/tiny-r1/heldout.jsonl is absent")
    assert len(load_subset(parse_spec("embedded:n=50")).problems) == 50
