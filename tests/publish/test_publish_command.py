"""`tightfit publish` as it is typed: what it plans, sends, says and leaves."""

import functools
import hashlib
import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub.constants as hub_constants
import pytest
from huggingface_hub import snapshot_download
from support.hub_client import use_hub
from support.hub_routes import SIGNATURE
from support.hub_server import OTHER_TOKEN, READ_TOKEN, TOKEN, serve_hub
from support.hub_state import Hub
from support.publishable import REPO, publishable

import tightfit.publish.hub as hub_module
from tightfit.cli.main import run
from tightfit.export.manifest import read_manifest

Run = Callable[..., tuple[int, str, str]]
LARGE_BYTES = 2000
"""In place of 10 MiB: the files of weights are larger, the others smaller."""
IGNORING = {"__gitignore": b"*.gguf\n"}


@pytest.fixture
def publish(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command; returns its exit status, stdout and stderr, without secrets."""

    def call(*options: str, folder: Path | None = None) -> tuple[int, str, str]:
        status = run(["publish", str(folder or tmp_path / "out"), "--repo", REPO, *options])
        shown = capsys.readouterr()
        for secret in (TOKEN, READ_TOKEN, OTHER_TOKEN, SIGNATURE):
            assert secret not in shown.out + shown.err
        return status, shown.out, shown.err

    return call


class TestDryRun:
    @pytest.fixture(autouse=True)
    def nobody_to_ask(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """No token, and every connection fails."""

        def refuse(*args: object) -> None:
            raise AssertionError("a dry run asks nobody")

        monkeypatch.setattr(socket.socket, "connect", refuse)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr(hub_constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))

    def test_the_card_can_be_read_first(self, tmp_path: Path, publish: Run) -> None:
        publishable(tmp_path / "out", ("gguf",))
        status, out, _ = publish("--dry-run", "--json", "--card", str(tmp_path / "card.md"))
        assert status == 0
        card = (tmp_path / "card.md").read_bytes()
        by_path = {file["path"]: file for file in json.loads(out)["files"]}
        assert by_path["README.md"]["sha256"] == hashlib.sha256(card).hexdigest()

    def test_the_document_says_exactly_what_would_go_where(
        self, tmp_path: Path, publish: Run
    ) -> None:
        manifest = publishable(tmp_path / "out", ("gguf", "onnx"))
        status, out, _ = publish("--dry-run", "--json", "--tag", "v1", "--revision", "small")
        assert status == 0
        document = json.loads(out)
        assert document["url"] == f"https://huggingface.co/{REPO}"
        assert document["dry_run"] is True
        assert (document["visibility"], document["revision"]) == ("private", "small")
        assert (document["tags"], document["commit"]) == (["v1"], None)
        by_path = {file["path"]: file for file in document["files"]}
        assert {record.name for record in manifest.files} | {
            "tightfit.json",
            "README.md",
            "LICENSE",
            "NOTICE",
            "params",
        } == set(by_path)
        for record in manifest.files:
            content = (tmp_path / "out" / record.name).read_bytes()
            assert by_path[record.name]["sha256"] == hashlib.sha256(content).hexdigest()
            assert by_path[record.name]["size_bytes"] == len(content)
        assert by_path["onnx/model.onnx"]["storage"] == "LFS"
        assert by_path["README.md"]["storage"] == "regular"

    def test_the_table_names_every_file(self, tmp_path: Path, publish: Run) -> None:
        manifest = publishable(tmp_path / "out")
        status, out, err = publish("--dry-run", "--public")
        assert status == 0
        for record in manifest.files:
            (line,) = (line for line in out.splitlines() if record.name in line.split())
            assert record.sha256[:16] in line
        assert "visibility    public, if it is new" in out
        assert "dry run: nothing was sent" in out
        assert "Comparing the files with the manifest" in err

    def test_what_would_be_refused_is_refused(self, tmp_path: Path, publish: Run) -> None:
        manifest = publishable(tmp_path / "out")
        (tmp_path / "out" / manifest.files[-1].name).write_text("another")
        status, out, err = publish("--dry-run", "--json")
        assert status == 1
        assert json.loads(out)["error"]["type"] == "PublishError"
        assert "is not the file that was exported" in err

    def test_the_card_says_what_was_allowed(self, tmp_path: Path, publish: Run) -> None:
        unverified(tmp_path / "out")
        status, _, err = publish("--dry-run")
        assert status == 1
        assert "gguf: it was not verified" in err
        status, out, err = publish("--dry-run", "--allow-unverified")
        assert status == 0
        assert "published all the same, as the model card says: gguf: it was not verified" in err
        assert "gguf: it was not verified" in out


def unverified(folder: Path) -> None:
    publishable(folder)
    document = json.loads((folder / "tightfit.json").read_text())
    document["artifacts"][0]["verification"] = None
    (folder / "tightfit.json").write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--repo", "no-owner"), "--repo no-owner is no repository: no owner"),
        (("--repo", "a/b/c"), "--repo a/b/c is no repository"),
        (("--repo", "a/.."), "--repo a/.. is no repository"),
        (("--revision", "refs/pr/1"), "--revision refs/pr/1 is no name of a branch"),
        (("--revision", "ab" * 20), "is no name of a branch"),
        (("--tag", "v1", "--tag", "two words"), "--tag two words is no name of a tag"),
        (("--tag", "main"), "--tag main is the name of the branch"),
        (("--message", " "), "--message is empty"),
    ],
)
def test_names_that_cannot_be_are_wrong_usage(
    tmp_path: Path, publish: Run, options: tuple[str, ...], said: str
) -> None:
    publishable(tmp_path / "out")
    status, _, err = publish(*options)
    assert status == 2
    assert said in err


def test_without_a_token_nothing_is_asked(
    tmp_path: Path, publish: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    publishable(tmp_path / "out")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(hub_constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    status, _, err = publish()
    assert status == 1
    assert "there is no token" in err
    assert "hf auth login" in err


class TestHub:
    """Against the loopback Hub, by the real client."""

    @pytest.fixture
    def hub(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
        monkeypatch.setattr(hub_module, "LARGE_BYTES", LARGE_BYTES)
        with serve_hub() as hub:
            use_hub(monkeypatch, hub, tmp_path / "home", TOKEN)
            yield hub

    @pytest.fixture
    def out(self, tmp_path: Path) -> Path:
        publishable(tmp_path / "out", ("gguf", "onnx"))
        return tmp_path / "out"

    def test_everything_is_there_in_one_private_commit(
        self, hub: Hub, out: Path, tmp_path: Path, publish: Run
    ) -> None:
        status, shown, _ = publish("--json", "--tag", "v1", "--collection", "R1, small")
        assert status == 0
        document = json.loads(shown)
        repo = hub.repos[REPO]
        assert repo.private
        assert [commit.title for commit in repo.commits] == [
            "initial commit",
            "DeepSeek-R1-Distill-Qwen-7B for rtx3060-8gb: gguf auto, onnx auto (tightfit)",
        ]
        head = repo.head()
        assert document["commit"] == head.oid
        assert document["visibility"] == "private"
        assert repo.tags == {"v1": head.oid}
        (collection,) = hub.collections.values()
        assert (collection.title, collection.private) == ("R1, small", True)
        assert collection.items == [("model", REPO)]
        assert document["collection"] == collection.slug
        # What the plan says is what is there, bytes and way of storage.
        for file in document["files"]:
            stored = head.files[file["path"]]
            assert (file["sha256"], file["size_bytes"]) == (stored.sha256, len(stored.content))
            assert file["storage"] == ("LFS" if stored.is_lfs else "regular")
        assert set(head.files) == {file["path"] for file in document["files"]} | {".gitattributes"}
        # A stranger's download holds the folder, byte for byte.
        downloaded = Path(snapshot_download(REPO, local_dir=tmp_path / "fresh"))
        for record in read_manifest(downloaded).files:
            assert (downloaded / record.name).read_bytes() == (out / record.name).read_bytes()
        assert (downloaded / "README.md").read_text().startswith("---\n")
        assert all(request.token is None for request in hub.requests if request.is_storage)
        assert any("tightfit/" in request.user_agent for request in hub.requests)

    def test_a_rerun_has_nothing_to_do(self, hub: Hub, out: Path, publish: Run) -> None:
        assert publish("--tag", "v1", "--collection", "mine")[0] == 0
        hub.forget()
        status, shown, err = publish("--tag", "v1", "--collection", "mine")
        assert status == 0
        assert "nothing to commit: main holds all 13 files already" in err
        assert "13 unchanged" in shown
        assert len(hub.repos[REPO].commits) == 2
        asked = {request.route for request in hub.requests}
        assert not asked & {"create", "preupload", "lfs-batch", "lfs-put", "commit", "tag"}

    @pytest.mark.parametrize(
        ("route", "status", "said"),
        [
            ("create", 401, "the Hub does not know who you are"),
            ("create", 429, "wait 7 s, as the Hub asks"),
            ("preupload", 403, "the token may not do this"),
            ("lfs-batch", 500, "the Hub itself failed"),
            ("lfs-put", 413, "too large for the Hub"),
            ("lfs-put", 429, "wait 7 s, as the Hub asks"),
            ("commit", 401, "the Hub does not know who you are"),
            ("commit", 403, "the token may not do this"),
            ("commit", 409, "changed by somebody else"),
            ("commit", 413, "too large for the Hub"),
            ("commit", 500, "the Hub itself failed"),
        ],
    )
    def test_a_refusal_leaves_nothing_visible_and_a_rerun_continues(
        self, hub: Hub, out: Path, publish: Run, route: str, status: int, said: str
    ) -> None:
        headers = {"Retry-After": "7"} if status == 429 else {}
        hub.fail(route=route, status=status, message=f"by {TOKEN}", headers=headers, times=None)
        code, shown, err = publish()
        assert code == 1
        assert shown == ""
        assert said in err
        assert f"HTTP {status}: by ***" in err
        visible = {path for repo in hub.repos.values() for path in repo.head().files}
        assert visible <= {".gitattributes"}
        if route == "create":
            assert "Nothing was changed on the Hub" in err
        elif (route, status) == ("commit", 500):
            assert "Whether the commit was made is not known" in err
        else:
            assert f"No file in {REPO} was changed" in err
        hub.heal()
        assert publish()[0] == 0
        assert "README.md" in hub.repos[REPO].head().files

    def test_what_was_uploaded_is_not_sent_again(self, hub: Hub, out: Path, publish: Run) -> None:
        hub.fail(route="lfs-put", status=403, skip=2)
        code, _, err = publish()
        assert code == 1
        assert "what was uploaded is not sent again" in err
        (repo,) = hub.repos.values()
        sent = set(repo.objects)
        assert len(sent) == 2
        hub.forget()
        hub.heal()
        assert publish()[0] == 0
        sent_again = {request.path.rsplit("/", 1)[-1] for request in hub.asked("lfs-put")}
        assert len(sent_again) == 2
        assert not sent & sent_again

    def test_passing_failures_are_waited_out_and_told(
        self, hub: Hub, out: Path, publish: Run
    ) -> None:
        hub.fail(route="lfs-put", status=503, times=2)
        hub.fail(route="lfs-put", break_upload_at_bytes=100)
        code, _, err = publish()
        assert code == 0
        assert "warning: HTTP Error 503" in err

    def test_a_connection_that_breaks_for_good_is_told(
        self, hub: Hub, out: Path, publish: Run
    ) -> None:
        hub.fail(route="lfs-put", break_upload_at_bytes=100, times=None)
        code, _, err = publish()
        assert code == 1
        assert "the connection broke or timed out" in err
        assert f"No file in {REPO} was changed" in err

    def test_a_commit_whose_answer_is_lost_is_found_by_the_rerun(
        self, hub: Hub, out: Path, publish: Run
    ) -> None:
        hub.fail(route="commit", lost=True)
        code, shown, err = publish("--tag", "v1")
        assert code == 1
        assert shown == ""
        assert "Whether the commit was made is not known" in err
        code, _, err = publish("--tag", "v1")
        assert code == 0
        assert "nothing to commit" in err
        assert len(hub.repos[REPO].commits) == 2
        assert hub.repos[REPO].tags == {"v1": hub.repos[REPO].head().oid}

    def test_somebody_elses_commit_is_a_conflict_and_stays(
        self, hub: Hub, out: Path, publish: Run
    ) -> None:
        hub.fail(route="commit", call=lambda: hub.repos[REPO].change(notes__txt=b"mine"))
        code, _, err = publish()
        assert code == 1
        assert "changed by somebody else meanwhile (HTTP 412" in err
        assert f"No file in {REPO} was changed" in err
        assert set(hub.repos[REPO].head().files) == {".gitattributes", "notes.txt"}
        code, _, err = publish()
        assert code == 0
        assert "they stay: notes.txt" in flat(err)
        assert hub.repos[REPO].head().bytes_of("notes.txt") == b"mine"

    @pytest.mark.parametrize(
        ("route", "options"),
        [("tag", ("--tag", "v1")), ("collection-add", ("--collection", "mine"))],
    )
    def test_what_comes_after_the_commit_is_told_apart(
        self, hub: Hub, out: Path, publish: Run, route: str, options: tuple[str, ...]
    ) -> None:
        hub.fail(route=route, status=403)
        code, shown, err = publish(*options)
        assert code == 1
        assert shown == ""
        assert "The files are published, whole and compared" in err
        assert len(hub.repos[REPO].commits) == 2
        assert publish(*options)[0] == 0
        assert len(hub.repos[REPO].commits) == 2

    def test_an_update_replaces_the_artifact_and_nothing_else(
        self, hub: Hub, out: Path, tmp_path: Path, publish: Run
    ) -> None:
        assert publish()[0] == 0
        before = hub.repos[REPO].change(notes__txt=b"mine")
        publishable(tmp_path / "new", ("gguf", "gptq"), seed="new")
        hub.forget()
        code, shown, _ = publish("--json", folder=tmp_path / "new")
        assert code == 0
        head = hub.repos[REPO].head()
        assert head.parent == before.oid
        changes = json.loads(shown)["changes"]
        gone = ["genai_config.json", "onnx/model.onnx", "onnx/model.onnx.data"]
        assert changes["deleted"] == gone
        assert changes["left"] == ["notes.txt"]
        assert "config.json" in changes["unchanged"]
        assert "model.safetensors" in changes["added"]
        assert "README.md" in changes["replaced"]
        assert not set(gone) & set(head.files)
        assert head.bytes_of("notes.txt") == b"mine"
        assert (tmp_path / "new" / "tightfit.json").read_bytes() == head.bytes_of("tightfit.json")

    def test_files_that_tightfit_did_not_put_there_are_not_replaced_unasked(
        self, hub: Hub, out: Path, publish: Run
    ) -> None:
        hub.create(REPO, private=True).change(README__md=b"# my own card\n")
        code, _, err = publish()
        assert code == 1
        assert "has files that tightfit did not put there and this would replace: README.md" in err
        assert hub.repos[REPO].head().bytes_of("README.md") == b"# my own card\n"
        assert not hub.asked("preupload")
        assert publish("--overwrite")[0] == 0
        assert hub.repos[REPO].head().bytes_of("README.md") != b"# my own card\n"

    def test_a_damaged_manifest_deletes_nothing(
        self, hub: Hub, out: Path, tmp_path: Path, publish: Run
    ) -> None:
        assert publish()[0] == 0
        hub.repos[REPO].change(tightfit__json=b"{")
        publishable(tmp_path / "new", ("gguf",))
        code, shown, err = publish("--json", "--overwrite", folder=tmp_path / "new")
        assert code == 0
        assert "files of the artifact before are not known and stay" in flat(err)
        assert json.loads(shown)["changes"]["deleted"] == []
        assert "onnx/model.onnx" in hub.repos[REPO].head().files

    def test_a_public_repository_needs_public(self, hub: Hub, out: Path, publish: Run) -> None:
        hub.create(REPO, private=False)
        code, _, err = publish()
        assert code == 1
        assert f"{REPO} exists and is public" in err
        assert not hub.asked("preupload")
        assert publish("--public")[0] == 0

    def test_a_private_repository_stays_private(self, hub: Hub, out: Path, publish: Run) -> None:
        hub.create(REPO, private=True)
        code, shown, err = publish("--public")
        assert code == 0
        assert "exists and is private; it stays so" in flat(err)
        assert "visibility    private" in shown
        assert hub.repos[REPO].private

    def test_the_card_says_what_was_not_verified(
        self, hub: Hub, tmp_path: Path, publish: Run
    ) -> None:
        unverified(tmp_path / "out")
        assert publish()[0] == 1
        assert not hub.requests
        assert publish("--allow-unverified")[0] == 0
        assert b"gguf: it was not verified" in hub.repos[REPO].head().bytes_of("README.md")

    def test_public_when_asked(self, hub: Hub, out: Path, publish: Run) -> None:
        assert publish("--public", "--message", "Here it is")[0] == 0
        assert not hub.repos[REPO].private
        assert hub.repos[REPO].head().title == "Here it is"

    def test_a_branch_of_its_own(self, hub: Hub, out: Path, publish: Run) -> None:
        assert publish("--revision", "lab/small")[0] == 0
        repo = hub.repos[REPO]
        assert set(repo.head("main").files) == {".gitattributes"}
        assert "README.md" in repo.head("lab/small").files
        assert publish("--revision", "lab/small")[0] == 0
        assert len(repo.commits) == 2
        repo.tags["v1"] = repo.head().oid
        code, _, err = publish("--revision", "v1")
        assert code == 1
        assert f"--revision v1 is a tag of {REPO}" in err

    def test_a_tag_of_another_commit_is_refused_before_anything_is_sent(
        self, hub: Hub, out: Path, publish: Run
    ) -> None:
        repo = hub.create(REPO, private=True)
        repo.tags["v1"] = repo.head().oid
        code, _, err = publish("--tag", "v0", "--tag", "v1")
        assert code == 1
        assert f"--tag v1: {REPO} has that tag, on another commit" in err
        assert not hub.asked("preupload")
        assert len(repo.commits) == 1
        assert set(repo.tags) == {"v1"}

    def test_a_collection_by_its_slug(self, hub: Hub, out: Path, publish: Run) -> None:
        made = hub.create_collection("someone", "Mine")
        assert publish("--collection", made.slug)[0] == 0
        assert made.items == [("model", REPO)]
        assert len(hub.collections) == 1
        code, _, err = publish("--collection", "someone/none-" + "0" * 24)
        assert code == 1
        assert "The files are published, whole and compared" in err

    def test_what_the_hub_leaves_out_is_not_called_published(
        self, hub: Hub, out: Path, publish: Run
    ) -> None:
        hub.create(REPO, private=True).change(**IGNORING)
        code, shown, err = publish()
        assert code == 1
        assert shown == ""
        assert f"{REPO} does not hold what was sent" in err
        assert "DeepSeek-R1-Distill-Qwen-7B-auto-Q4_K_M.gguf is missing" in err
        assert ".gitignore" in err

    def test_a_file_that_changes_meanwhile_is_not_published(
        self, hub: Hub, out: Path, publish: Run
    ) -> None:
        config = out / "tokenizer.json"
        hub.fail(route="preupload", call=lambda: config.write_bytes(b"{}"))
        code, _, err = publish()
        assert code == 1
        assert "tokenizer.json changed while it was uploaded" in err
        assert set(hub.repos[REPO].head().files) == {".gitattributes"}

    @pytest.mark.parametrize("route", ["lfs-put", "commit"])
    def test_ctrl_c_says_what_the_repository_shows(
        self, hub: Hub, out: Path, publish: Run, route: str
    ) -> None:
        interrupt = functools.partial(os.kill, os.getpid(), signal.SIGINT)
        hub.fail(route=route, call=interrupt, delay_s=0.3, status=500)
        code, _, err = publish()
        assert code == 130
        state = "was changed" if route == "lfs-put" else "is not known: the same command looks"
        assert state in flat(err)
        assert "run the same command again to resume" in err
        hub.heal()
        assert publish()[0] == 0
        assert len(hub.repos[REPO].commits) == 2

    def test_a_traceback_does_not_show_a_token_either(
        self, hub: Hub, out: Path, publish: Run
    ) -> None:
        hub.fail(route="create", status=422, message=f"what is {TOKEN}?")
        code, _, err = publish("--debug")
        assert code == 1
        assert "Traceback" in err
        assert "what is ***?" in err

    @pytest.mark.parametrize(
        ("token", "said"),
        [
            (READ_TOKEN, "the token may not do this"),
            (OTHER_TOKEN, "the token may not do this"),
            ("hf_" + "Unknown7" * 4, "the Hub does not know who you are"),
        ],
    )
    def test_a_token_that_may_not_is_told(
        self,
        hub: Hub,
        out: Path,
        publish: Run,
        monkeypatch: pytest.MonkeyPatch,
        token: str,
        said: str,
    ) -> None:
        monkeypatch.setenv("HF_TOKEN", token)
        code, _, err = publish()
        assert code == 1
        assert said in err
        assert "a token" in err
        assert not hub.repos


def flat(text: str) -> str:
    """Without line breaks, which depend on the width."""
    return " ".join(text.split())
