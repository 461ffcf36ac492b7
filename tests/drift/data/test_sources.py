"""Sources: the embedded set, files, and the real `datasets` client against a Hub of ours."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.hub import serve

from tightfit.drift.data.sources import EMBEDDED, SOURCES, read_source
from tightfit.drift.data.subset import load_subset, parse_spec
from tightfit.errors import MissingPackageError, UsageError

SHARED = Path(__file__).parents[4] / "shared" / "data"
COMMIT = "a" * 40
MATH500, AIME24, GSM8K = (SOURCES[name].hub_id for name in ("math500", "aime24", "gsm8k"))

# The client reads its environment when it is imported, so it runs in a process of its own.
LOAD = """
import json, sys
from tightfit.drift.data.subset import load_subset, parse_spec
from tightfit.errors import TightfitError

for text in sys.argv[1:]:
    try:
        subset = load_subset(parse_spec(text))
    except TightfitError as error:
        answer = [type(error).__name__, str(error)]
    else:
        answer = [subset.sha256, [[each.unique_id, each.answer] for each in subset.problems]]
    print(json.dumps(answer))
"""


def entries(n):
    return [
        {
            "problem": f"What is ${index}$?",
            "solution": "",
            "answer": str(index),
            "subject": "Algebra",
            "level": index % 5 + 1,
            "unique_id": f"test/{index}.json",
        }
        for index in range(n)
    ]


def lines(rows):
    return "\n".join(map(json.dumps, rows))


def load(url, home, *texts, offline=False):
    """What each `--subset` gives in a fresh process: hash and problems, or the error."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": str(int(offline)),
    }
    environment.pop("HF_TOKEN", None)
    run = subprocess.run(
        [sys.executable, "-c", LOAD, *texts],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    answers = [json.loads(line) for line in run.stdout.splitlines()]
    return dict(zip(texts, answers, strict=True))


ONLINE = (
    *("math500", "aime24", "gsm8k", GSM8K, f"{MATH500}:n=3", "o/one:level=2", "o/two:main/train"),
    *("o/two", "o/splits", "o/two:main/nope", "o/two:nope/train"),
    *("o/damaged", "o/empty", "o/gated", "o/none", "o/other"),
)
OFFLINE = ("math500", "o/two:main/train", "o/none")


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """Of one online process, and of an offline one after it with the same home."""
    pytest.importorskip("datasets")
    root = tmp_path_factory.mktemp("hub")

    def publish(repo, **files):
        folder = root / repo.replace("/", "--")
        folder.mkdir()
        for name, text in files.items():
            (folder / name.replace("__", ".")).write_text(text)
        return hub.add(f"datasets/{repo}", folder, commit=COMMIT)

    two = (
        "---\nconfigs:\n- config_name: main\n  data_files:\n  - split: train\n    path: a.jsonl\n"
        "  - split: test\n    path: b.jsonl\n- config_name: other\n  data_files: b.jsonl\n---\n"
    )
    gsm8k = [{"question": "?", "answer": f"so\n#### {n}"} for n in ("1,450,000", "-3")]
    socratic = two.replace("other", "socratic")
    aime = {"solution": "", "url": "", "year": "2024"}
    with serve() as hub:
        publish(MATH500, test__jsonl=lines(entries(6)), README__md="---\nlicense: mit\n---\n")
        publish(
            AIME24,
            train__jsonl=lines(
                {"id": number, "problem": f"{number}?", "answer": "073", **aime}
                for number in (60, 61)
            ),
        )
        publish(GSM8K, README__md=socratic, a__jsonl=lines(gsm8k[:1]), b__jsonl=lines(gsm8k))
        publish("o/one", test__jsonl=lines(entries(6)))
        publish("o/two", README__md=two, a__jsonl=lines(entries(3)), b__jsonl=lines(entries(2)))
        publish("o/splits", train__jsonl=lines(entries(3)), test__jsonl=lines(entries(2)))
        publish("o/damaged", test__jsonl='{"problem": 1,\n')
        publish("o/empty")
        publish("o/other", test__jsonl=lines([{"text": "no problem"}]))
        gated = publish("o/gated", test__jsonl=lines(entries(2)))
        gated.gated, gated.token = True, "secret"
        return (
            load(hub.url, root / "home", *ONLINE),
            load(hub.url, root / "home", *OFFLINE, offline=True),
        )


def test_the_same_problems_from_the_hub_and_from_a_file(answers, tmp_path):
    path = tmp_path / "math.jsonl"
    path.write_text(lines({**each, "extra": 1} for each in reversed(entries(6))))
    backwards = load_subset(parse_spec(str(path)))
    path.write_text(lines({**each, "extra": 1} for each in entries(6)))
    from_file = load_subset(parse_spec(str(path)))
    assert answers[0]["math500"][0] == from_file.sha256 != backwards.sha256
    drawn = load_subset(parse_spec(f"{path}:n=3"))
    assert answers[0][f"{MATH500}:n=3"][0] == drawn.sha256


def test_registered_data_sets(answers):
    assert answers[0]["aime24"][1] == [["aime24/60", "073"], ["aime24/61", "073"]]
    assert answers[0]["gsm8k"][1] == [["gsm8k/0", "1450000"], ["gsm8k/1", "-3"]]
    # By its Hub id too, which alone would not say which configuration.
    assert answers[0][GSM8K] == answers[0]["gsm8k"]


def test_other_data_sets(answers):
    assert answers[0]["o/one:level=2"][1] == [["test/1.json", "1"]]
    assert len(answers[0]["o/two:main/train"][1]) == 3


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("o/two", r"o/two: Config name is missing(.|\n)*'main', 'other'(.|\n)*o/two:CONFIG/SPLIT"),
        ("o/splits", r"several splits(.|\n)*splits: train, test\n.*o/splits:default/train"),
        ("o/two:main/nope", r"Unknown split \"nope\".*'train', 'test'"),
        ("o/two:nope/train", r"'nope' not found.*'main', 'other'"),
        ("o/damaged", r"o/damaged: cannot be loaded: .*JSON"),
        ("o/empty", r"o/empty: cannot be loaded: .*doesn't contain any data files"),
        ("o/gated", r"gated dataset(.|\n)*set HF_TOKEN"),
        ("o/none", r"doesn't exist(.|\n)*check the name(.|\n)*--dataset FILE\.jsonl"),
        ("o/other", r"o/other, row 1: the fields text are not those(.|\n)*problem, answer \(MATH"),
    ],
)
def test_what_cannot_be_loaded_says_what_to_do(answers, text, says):
    kind, message = answers[0][text]
    assert kind == "DriftError"
    assert re.search(says, message), message


def test_offline(answers):
    online, offline = answers
    assert offline["math500"] == online["math500"]
    assert offline["o/two:main/train"] == online["o/two:main/train"]
    kind, message = offline["o/none"]
    assert kind == "DriftError"
    assert re.search(r"never loaded here(.|\n)*connect once .*--dataset FILE\.jsonl", message)


def test_embedded_is_offline():
    problems = read_source(EMBEDDED)
    assert len(problems) >= 64
    assert all(each.level and each.subject and each.original["problem"] for each in problems)


@pytest.mark.parametrize("name", ["math-500", "data/none.jsonl", "none.csv", "a/b/c", "o/two:main"])
def test_unknown_names_list_the_sources(name):
    with pytest.raises(UsageError, match=f"{name}.*neither a known data set nor a file") as caught:
        read_source(name)
    assert "embedded, math500, aime24, gsm8k" in caught.value.allowed


def test_a_folder_is_not_a_file(tmp_path):
    with pytest.raises(UsageError, match="nor a file"):
        read_source(str(tmp_path))


def test_a_file_goes_before_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "data").write_text("")
    with pytest.raises(UsageError, match="o/data: problems are not read from"):
        read_source("o/data")


def test_without_datasets_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("tightfit.drift.data.hub.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"tightfit\[drift\]"):
        read_source("math500")
