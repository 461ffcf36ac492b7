"""The `--subset` option: parsing, choosing, hashing, and what is refused."""

import csv
import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from tightfit.drift.data.problem import Problem
from tightfit.drift.data.subset import SubsetSpec, hash_problems, load_subset, parse_spec
from tightfit.errors import DriftError, UsageError

SHARED = Path(__file__).parents[4] / "shared" / "data"


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
        ("owner/name:n=3", SubsetSpec(source="owner/name", n=3)),
        ("owner/name:main/test", SubsetSpec(source="owner/name:main/test")),
        ("owner/name:main/test:n=3", SubsetSpec(source="owner/name:main/test", n=3)),
    ],
)
def test_parse(text, spec):
    assert parse_spec(text) == spec
    assert parse_spec(spec.text) == spec


@pytest.mark.parametrize(
    ("subset", "dataset", "text"),
    [
        (None, None, "embedded"),
        ("", None, "embedded"),
        (None, "gsm8k", "gsm8k"),
        ("n=64,level=4-5", "math500", "math500:n=64,level=4-5"),
        ("level=5,seed=0", "owner/name:main/test", "owner/name:main/test:level=5"),
        ("seed=7", "a=b.jsonl", "a=b.jsonl:seed=7"),
    ],
)
def test_the_data_set_apart(subset, dataset, text):
    assert parse_spec(subset, dataset=dataset).text == text


def test_a_source_named_twice_or_never():
    with pytest.raises(UsageError, match="both name a source") as twice:
        parse_spec("math500:n=3", dataset="gsm8k")
    assert twice.value.hint == "--dataset gsm8k --subset n=3"
    with pytest.raises(UsageError, match="names no source") as never:
        parse_spec("n=3,seed=1")
    assert "math500:n=3,seed=1" in never.value.hint
    assert "aime24" in never.value.allowed


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
        "math500:level=-4",
        "math500:level=5-4",
        "math500:level=0",
        "math500:n=٣",
        "math500:seed=-1",
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
    assert first == sorted(first)
    # Five levels times two subjects, four problems each: one of every stratum.
    assert sorted((index % 5, index % 2) for index in first) == [
        (level, subject) for level in range(5) for subject in range(2)
    ]
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
    for field in ("unique_id", "problem", "answer"):
        changed = replace(subset.problems[0], **{field: "other"})
        assert hash_problems([changed, subset.problems[1]]) != subset.sha256
    for change in ({"solution": "s"}, {"subject": "x"}, {"level": 9}, {"original": {}}):
        same = replace(subset.problems[0], **change)
        assert hash_problems([same, subset.problems[1]]) == subset.sha256


def test_the_hash_is_that_of_its_definition():
    problem = Problem(unique_id="a", problem='¿"?\n', answer="\\pi", original={})
    line = b'["a", "\\u00bf\\"?\\n", "\\\\pi"]\n'
    assert hash_problems([problem, problem]) == hashlib.sha256(line + line).hexdigest()


@pytest.mark.parametrize("ending", [".json", ".csv", ".parquet"])
def test_the_kind_of_file_does_not_matter(problems_file, ending):
    entries = [json.loads(line) for line in problems_file.read_text().split("\n") if line]
    other = problems_file.with_name("other" + ending)
    if ending == ".json":
        other.write_text(json.dumps([dict(reversed(each.items())) for each in entries]))
    elif ending == ".csv":
        with other.open("w", newline="") as file:
            writer = csv.DictWriter(file, entries[0])
            writer.writeheader()
            writer.writerows(entries)
    else:
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.Table.from_pylist(entries), other)
    options = "n=7,level=2-4,seed=3"
    first, second = (
        load_subset(parse_spec(f"{path}:{options}")) for path in (problems_file, other)
    )
    assert first.sha256 == second.sha256
    assert [each.level for each in first.problems] == [each.level for each in second.problems]


def test_draws_of_math500_do_not_change_between_versions():
    """Kept baselines and published figures rest on these."""
    path = SHARED / "math500.jsonl"
    if not path.is_file():
        pytest.skip("../shared/data/math500.jsonl is absent")
    hashes = {}
    for options in ("", ":n=64,level=4-5,seed=0", ":n=16"):
        subset = load_subset(parse_spec(f"{path}{options}"))
        hashes[options] = (subset.sha256[:16], subset.shuffled().sha256[:16])
    assert hashes == {
        "": ("735db0f505b4a619", "af200ab77aafc3e8"),
        ":n=64,level=4-5,seed=0": ("dbab3ffef7d53b34", "28dd0b630157074b"),
        ":n=16": ("84cb7fed4d531e62", "55c52736b961defa"),
    }


def test_shuffled(problems_file):
    def visit(options):
        return load_subset(parse_spec(f"{problems_file}:{options}")).shuffled()

    first = visit("seed=1")
    assert first == visit("seed=1")
    assert first.shuffled() == first
    assert first.sha256 == hash_problems(first.problems)
    source = load_subset(first.spec)
    assert sorted(source.problems, key=first.problems.index) == list(first.problems)
    assert first.problems != source.problems
    assert visit("seed=2").problems != first.problems
    # Which problems were drawn says nothing of their order: a smaller draw keeps it.
    some = {problem.unique_id for problem in visit("seed=1,n=10").problems}
    assert [each.unique_id for each in visit("seed=1,n=10").problems] == [
        each.unique_id for each in first.problems if each.unique_id in some
    ]


@pytest.mark.parametrize(("option", "field"), [("level=5", "level"), ("subject=A", "subject")])
def test_filters_on_what_is_not_there(tmp_path, option, field):
    path = tmp_path / "gsm8k.jsonl"
    path.write_text('{"question": "?", "answer": "#### 1"}\n' * 3)
    with pytest.raises(DriftError, match=f"3 of 3 problems in .* have no {field}"):
        load_subset(parse_spec(f"{path}:{option}"))
    with pytest.raises(DriftError, match="levels: none; subjects: none"):
        load_subset(parse_spec(f"{path}:n=4"))
    assert len(load_subset(parse_spec(f"{path}:n=2")).problems) == 2


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
