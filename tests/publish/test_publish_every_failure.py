"""Each request of a publication fails in each way; what is said then is true, and a rerun ends it.

Two publications: of a new repository, with everything that an option asks for, and of an artifact
that replaces one. What must hold of every failure
is in `test_every_failure`.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.hub_client import use_hub
from support.hub_routes import SIGNATURE
from support.hub_server import TOKEN, serve_hub
from support.hub_state import Commit, Hub
from support.publishable import REPO, publishable

import tightfit.publish.hub as hub_module
import tightfit.publish.run as run_module
from tightfit.cli.main import run

LARGE_BYTES = 15_000
"""In place of 10 MiB: two files are larger, the others smaller."""
FILE_BYTES = 20_000
BRANCH = "small"
OPTIONS = ("--revision", BRANCH, "--tag", "v2", "--collection", "mine")

NEW = (
    *("info", "create", "info", "refs", "branch", "refs", "tree", "refs"),
    *("preupload", "lfs-batch", "lfs-put", "lfs-verify", "preupload", "preupload"),
    *("validate-yaml", "commit", "tree", "tag", "collection-create", "collection-add"),
)
UPDATE = (
    *("info", "refs", "tree", "resolve", "resolve", "refs"),
    *("preupload", "lfs-batch", "lfs-put", "lfs-verify", "preupload", "commit", "tree", "tag"),
    *("collection-create", "collection", "collection-add", "collection"),
)
"""What the client asks for, in this order, when nothing fails."""
WRITING = (
    *("create", "branch", "preupload", "lfs-batch", "lfs-put", "lfs-verify", "validate-yaml"),
    *("commit", "tag", "collection-create", "collection-add"),
)
READING = ("info", "refs", "tree")

FAILURES: Mapping[str, tuple[Mapping[str, Any], tuple[str, ...]]] = {
    "401": ({"status": 401, "message": f"who is {TOKEN}?"}, ("create", "lfs-put", "commit")),
    "403": ({"status": 403, "message": f"{TOKEN} may not"}, WRITING),
    # Where it does not say that the thing is there already, which is no failure.
    "409": ({"status": 409, "message": "in conflict"}, ("preupload", "commit", "tag")),
    "413": ({"status": 413}, ("lfs-put", "commit")),
    "429": ({"status": 429, "headers": {"Retry-After": "7"}}, ("create", "lfs-put", "commit")),
    "503": ({"status": 503, "message": "<html>down</html>"}, ("lfs-batch", "commit", *READING)),
    "nothing arrives": ({"break_upload_at_bytes": 0}, WRITING),
    "no answer": ({"lost": True}, WRITING),
    "half an answer": ({"break_answer_at_bytes": 1}, ("lfs-batch", "commit", *READING)),
}
"""What goes wrong, and in requests of which routes."""
OF_UPDATES = ("lfs-put", "commit", "tree", "tag")
"""Where an update differs from a new publication: something is there that must stay whole."""


def cases() -> Iterator[Any]:
    for failure, (_, routes) in FAILURES.items():
        for route in routes:
            # A route that only reads is asked several times, each for another reason.
            for skip in range(NEW.count(route) if route in READING else 1):
                yield pytest.param("new", route, skip, failure, id=f"new-{route}-{skip}-{failure}")
            if route in OF_UPDATES:
                skip = UPDATE.count(route) - 1
                yield pytest.param("update", route, skip, failure, id=f"update-{route}-{failure}")


@dataclass
class Shown:
    """What a command ended with."""

    status: int
    out: str
    err: str


Publish = Callable[[str], Shown]


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    with serve_hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """The artifact of each publication: the second one replaces the first."""
    root = tmp_path_factory.mktemp("artifacts")
    made = {scenario: root / scenario for scenario in ("new", "update")}
    for scenario, folder in made.items():
        publishable(folder, file_bytes=FILE_BYTES, seed=scenario)
    return made


@pytest.fixture
def hub(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The server with nothing in it."""
    for held in (server.repos, server.collections, server.requests, server.failures):
        held.clear()
    server.part_bytes = None
    monkeypatch.setattr(hub_module, "LARGE_BYTES", LARGE_BYTES)
    # The card has tests of its own, and takes half of the time.
    monkeypatch.setattr(run_module, "make_card", lambda *_, **__: "---\nlicense: mit\n---\n")
    use_hub(monkeypatch, server, tmp_path / "home", TOKEN)
    return server


@pytest.fixture
def publish(hub: Hub, folders: Mapping[str, Path], capsys: pytest.CaptureFixture[str]) -> Publish:
    """Publishes the artifact of a scenario."""

    def call(scenario: str) -> Shown:
        hub.forget()
        status = run(["publish", str(folders[scenario]), "--repo", REPO, *OPTIONS])
        shown = capsys.readouterr()
        return Shown(status=status, out=shown.out, err=" ".join(shown.err.split()))

    return call


@pytest.mark.parametrize(("scenario", "routes"), [("new", NEW), ("update", UPDATE)])
def test_these_are_the_requests(
    hub: Hub, publish: Publish, scenario: str, routes: tuple[str, ...]
) -> None:
    prepare(hub, publish, scenario)
    assert publish(scenario).status == 0
    assert [request.route for request in hub.requests if request.route != "agents"] == list(routes)


@pytest.mark.parametrize(("scenario", "route", "skip", "failure"), cases())
def test_every_failure(
    hub: Hub, publish: Publish, scenario: str, route: str, skip: int, failure: str
) -> None:
    prepare(hub, publish, scenario)
    before = artifact_commits(hub)
    hub.fail(route=route, skip=skip, times=None, **FAILURES[failure][0])

    failed = publish(scenario)

    # A failure in three parts, nothing that looks like a success, and no secret.
    assert (failed.status, failed.out) == (1, "")
    found = re.search(r"error: (?P<problem>.*) hint: (?P<hint>.*)", failed.err)
    assert found is not None
    assert "run the same command again" in found["hint"] or "--split-max-size" in found["hint"]
    assert not any(secret in failed.err for secret in (TOKEN, SIGNATURE))
    made = artifact_commits(hub)[len(before) :]
    check_state(hub, found["problem"], made, existed=bool(before))

    hub.heal()
    kept = set(hub.repos[REPO].objects) if hub.repos else set()
    again = publish(scenario)

    # It is ended by the same command: one commit, each object sent once, one tag, one item.
    assert again.status == 0, again.err
    assert not kept & {request.path.rsplit("/", 1)[1] for request in hub.asked("lfs-put")}
    (commit,) = artifact_commits(hub)[len(before) :]
    assert made in ([], [commit])
    assert hub.repos[REPO].tags == {"v2": commit.oid}
    (collection,) = hub.collections.values()
    assert collection.items == [("model", REPO)]


def prepare(hub: Hub, publish: Publish, scenario: str) -> None:
    """For an update: what was published before, and has the tag no more."""
    if scenario == "update":
        assert publish("new").status == 0
        hub.repos[REPO].tags.clear()


def artifact_commits(hub: Hub) -> list[Commit]:
    """Commits that show an artifact; the first of a repository is the Hub's."""
    return hub.repos[REPO].commits[1:] if hub.repos else []


def check_state(hub: Hub, told: str, made: list[Commit], *, existed: bool) -> None:
    """What the message says of the repository is so."""
    if "Whether the commit was made is not known" in told:
        return
    found = re.search(
        r"The commit (\w+) is made, and not compared"
        r"|The files are published, whole and compared \(commit (\w+)\)",
        told,
    )
    if found:
        (commit,) = made
        assert commit.oid.startswith(found[1] or found[2])
        return
    assert made == []
    if "Nothing was changed on the Hub" in told:
        assert (REPO in hub.repos) == existed
    elif f"Whether {REPO} was created is not known" not in told:
        assert REPO in hub.repos
        assert "exists, without this artifact" in told or f"No file in {REPO} was changed" in told


@pytest.mark.parametrize("private", [True, False])
def test_somebody_makes_the_repository_meanwhile(hub: Hub, publish: Publish, private: bool) -> None:
    hub.fail(route="create", call=lambda: hub.create(REPO, private=private))
    shown = publish("new")
    if private:
        assert shown.status == 0
    else:
        assert "exists and is public" in shown.err
        assert artifact_commits(hub) == []


def test_a_file_in_parts_is_whole_or_not_there(
    hub: Hub, publish: Publish, folders: Mapping[str, Path]
) -> None:
    hub.part_bytes = FILE_BYTES // 3
    hub.fail(route="lfs-put", skip=2, status=403)
    assert publish("new").status == 1
    assert hub.repos[REPO].objects == {}
    assert publish("new").status == 0
    (commit,) = artifact_commits(hub)
    (name,) = (path for path, file in commit.files.items() if file.is_lfs)
    assert commit.bytes_of(name) == (folders["new"] / name).read_bytes()
    assert len(hub.asked("lfs-complete")) == 1
