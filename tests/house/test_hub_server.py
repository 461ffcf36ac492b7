"""The loopback Hub of the tests, against the real client: what it keeps, gives and refuses."""

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import huggingface_hub.constants as hub_constants
import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError
from support.hub_client import hub_environment, use_hub
from support.hub_routes import SIGNATURE
from support.hub_server import OTHER_TOKEN, READ_TOKEN, TOKEN, serve_hub
from support.hub_state import Hub

REPO = "someone/small"
WEIGHTS = b"\0weights" * 5000
SMALL = {"README.md": b"---\nlicense: mit\n---\n# Small\n", "sub/config.json": b"{}"}
LARGE = {"model.safetensors": WEIGHTS, "sub/model.gguf": WEIGHTS[::-1]}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve_hub() as server:
        yield server


@pytest.fixture
def waits(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that the client would have waited between its retries."""
    return use_hub(monkeypatch, hub, tmp_path / "home", TOKEN)


@pytest.fixture
def api(waits: list[float]) -> HfApi:
    return HfApi()


def adding(files: dict[str, bytes]) -> list[CommitOperationAdd]:
    return [CommitOperationAdd(path, content) for path, content in files.items()]


def put(api: HfApi, files: dict[str, bytes], **options: str) -> str:
    made = api.create_commit(REPO, adding(files), commit_message="more", **options)
    return str(made.oid)


def error_of(status: int) -> "pytest.RaisesExc[HfHubHTTPError]":
    return pytest.raises(HfHubHTTPError, check=lambda e: e.response.status_code == status)


@pytest.mark.usefixtures("waits")
class TestRepositories:
    def test_one_is_made_private_and_once(self, hub: Hub, api: HfApi) -> None:
        assert api.whoami()["name"] == "someone"
        made = api.create_repo(REPO, private=True)
        assert (made.repo_id, str(made)) == (REPO, f"{hub.url}/{REPO}")
        assert hub.repos[REPO].private
        with error_of(409):
            api.create_repo(REPO)
        api.create_repo(REPO, exist_ok=True)
        info = api.model_info(REPO, files_metadata=True)
        assert (info.id, info.private, info.sha) == (REPO, True, hub.repos[REPO].head().oid)
        assert info.siblings is not None
        assert [file.rfilename for file in info.siblings] == [".gitattributes"]
        api.create_repo("some-lab/open", private=False)
        assert not hub.repos["some-lab/open"].private

    def test_who_may_do_what(self, hub: Hub, api: HfApi) -> None:
        hub.create(REPO, private=True)
        with error_of(403):
            api.create_repo("stranger/mine")
        for token, status in ((READ_TOKEN, 403), (OTHER_TOKEN, 404), ("hf_nobody", 401)):
            with error_of(status):
                HfApi(token=token).upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id=REPO)
        assert HfApi(token=READ_TOKEN).model_info(REPO).private
        with pytest.raises(RepositoryNotFoundError) as missing:
            HfApi(token=OTHER_TOKEN).model_info(REPO)
        with pytest.raises(RepositoryNotFoundError) as hidden:
            HfApi(token=False).model_info(REPO)
        assert (missing.value.response.status_code, hidden.value.response.status_code) == (404, 401)
        assert len(hub.repos[REPO].commits) == 1
        assert hub.tokens == {TOKEN, READ_TOKEN, OTHER_TOKEN, "hf_nobody", None}

    def test_branches_tags_and_history(self, hub: Hub, api: HfApi) -> None:
        first = hub.create(REPO, private=True).head().oid
        api.create_branch(REPO, branch="a/b")
        with error_of(409):
            api.create_branch(REPO, branch="a/b")
        second = put(api, {"x": b"1"}, revision="a/b")
        api.create_tag(REPO, tag="v1", revision="a/b")
        with error_of(409):
            api.create_tag(REPO, tag="v1")
        refs = api.list_repo_refs(REPO)
        assert {ref.name: ref.target_commit for ref in refs.branches} == {
            "main": first,
            "a/b": second,
        }
        assert [(ref.name, ref.target_commit) for ref in refs.tags] == [("v1", second)]
        listed = api.list_repo_commits(REPO, revision="v1")
        assert [(c.commit_id, c.title) for c in listed] == [
            (second, "more"),
            (first, "initial commit"),
        ]
        with error_of(404):
            put(api, {"x": b"1"}, revision="nowhere")

    def test_collections(self, hub: Hub, api: HfApi) -> None:
        hub.create(REPO, private=True)
        made = api.create_collection("R1, small", namespace="someone", private=True)
        assert made.slug.startswith("someone/r1--small-")
        same = api.create_collection("R1, small", namespace="someone", exists_ok=True)
        assert same.slug == made.slug
        for _ in range(2):
            api.add_collection_item(made.slug, REPO, "model", exists_ok=True)
        with error_of(409):
            api.add_collection_item(made.slug, REPO, "model")
        assert hub.collections[made.slug].items == [("model", REPO)]
        assert [item.item_id for item in api.get_collection(made.slug).items] == [REPO]


class TestCommits:
    @pytest.fixture(autouse=True)
    def repository(self, hub: Hub) -> None:
        hub.create(REPO, private=True)

    def test_a_folder_goes_there_and_comes_back(self, hub: Hub, api: HfApi, tmp_path: Path) -> None:
        for path, content in {**SMALL, **LARGE}.items():
            (tmp_path / "out" / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "out" / path).write_bytes(content)
        api.upload_folder(repo_id=REPO, folder_path=tmp_path / "out")

        _, commit = hub.repos[REPO].commits
        assert {path: file.is_lfs for path, file in commit.files.items()} == {
            ".gitattributes": False,
            **dict.fromkeys(SMALL, False),
            **dict.fromkeys(LARGE, True),
        }
        # .safetensors are LFS files from the start, and a binary file becomes one.
        assert b"sub/model.gguf filter=lfs" in commit.bytes_of(".gitattributes")
        got = Path(snapshot_download(REPO, local_dir=tmp_path / "got"))
        for path, content in {**SMALL, **LARGE}.items():
            assert (got / path).read_bytes() == content
        storage = [request for request in hub.requests if request.is_storage]
        assert [request.route for request in storage] == ["lfs-put"] * 2 + ["lfs-get"] * 2
        assert {request.token for request in storage} == {None}
        # Every address that the client asked for is one that the server has.
        assert "" not in {request.route for request in hub.requests}

    def test_what_is_there_is_not_sent_again(self, hub: Hub, api: HfApi) -> None:
        put(api, {**SMALL, **LARGE})
        hub.forget()
        put(api, {**SMALL, **LARGE})
        assert not hub.asked("lfs-put")
        assert not hub.asked("commit")
        put(api, {"copy.gguf": LARGE["sub/model.gguf"]})
        assert (len(hub.asked("lfs-batch")), len(hub.asked("lfs-put"))) == (2, 0)

    def test_large_files_in_parts(self, hub: Hub, api: HfApi, tmp_path: Path) -> None:
        hub.part_bytes = len(WEIGHTS) // 3
        put(api, LARGE)
        # A third is rounded down: three whole parts and a rest.
        assert len(hub.asked("lfs-put")) == 2 * 4
        assert len(hub.asked("lfs-complete")) == len(hub.asked("lfs-verify")) == 2
        assert hub.repos[REPO].head().bytes_of("model.safetensors") == WEIGHTS

    def test_deleting_and_ignoring(self, hub: Hub, api: HfApi) -> None:
        put(api, SMALL)
        delete = CommitOperationDelete("README.md", is_folder=False)
        api.create_commit(REPO, [delete], commit_message="less")
        assert set(hub.repos[REPO].head().files) == {".gitattributes", "sub/config.json"}
        with pytest.raises(EntryNotFoundError):
            api.create_commit(REPO, [delete], commit_message="less")
        put(api, {".gitignore": b"*.tmp\n"})
        put(api, {"a.tmp": b"1", "b.txt": b"2"})
        assert "a.tmp" not in hub.repos[REPO].head().files
        assert "b.txt" in hub.repos[REPO].head().files

    def test_somebody_else_was_first(self, hub: Hub, api: HfApi) -> None:
        repo = hub.repos[REPO]
        before = repo.head().oid
        repo.change(notes__txt=b"mine")
        with error_of(412):
            put(api, SMALL, parent_commit=before)
        assert set(repo.head().files) == {".gitattributes", "notes.txt"}
        put(api, SMALL, parent_commit=repo.head().oid)

    def test_listings(self, hub: Hub, api: HfApi) -> None:
        commit = put(api, {**SMALL, **LARGE})
        hub.page_entries = 2
        top = list(api.list_repo_tree(REPO))
        assert [entry.path for entry in top] == [
            ".gitattributes",
            "README.md",
            "model.safetensors",
            "sub",
        ]
        below = list(api.list_repo_tree(REPO, "sub", recursive=True, expand=True))
        assert [entry.path for entry in below] == ["sub/config.json", "sub/model.gguf"]
        (file,) = api.get_paths_info(REPO, ["sub/model.gguf", "nothing"], revision=commit)
        assert file.lfs is not None
        assert (file.size, file.lfs.sha256) == (
            len(WEIGHTS),
            hashlib.sha256(WEIGHTS[::-1]).hexdigest(),
        )
        with pytest.raises(EntryNotFoundError):
            list(api.list_repo_tree(REPO, "nothing"))

    def test_git_has_the_same_ids(self, hub: Hub, api: HfApi, tmp_path: Path) -> None:
        put(api, SMALL)
        content = SMALL["README.md"]
        made = subprocess.run(
            ["git", "hash-object", "--stdin"], input=content, capture_output=True, check=True
        )
        (file,) = api.get_paths_info(REPO, ["README.md"])
        assert file.blob_id == made.stdout.decode().strip()

    def test_invalid_metadata_of_a_card_is_refused(self, hub: Hub, api: HfApi) -> None:
        with pytest.raises(ValueError, match="Invalid metadata"):
            put(api, {"README.md": b"---\nlicense: [mit\n---\n"})
        with pytest.warns(UserWarning, match="empty or missing yaml"):
            put(api, {"README.md": b"# Nothing\n"})


class TestDownloads:
    @pytest.fixture(autouse=True)
    def files(self, hub: Hub, api: HfApi) -> None:
        hub.create(REPO, private=True)
        put(api, {**SMALL, **LARGE})
        hub.forget()

    def test_parts_of_a_file(self, hub: Hub) -> None:
        url = f"{hub.url}/{REPO}/resolve/main/model.safetensors"
        headers = {"Authorization": f"Bearer {TOKEN}"}
        moved = httpx2.get(url, headers=headers)
        assert (moved.status_code, moved.headers["X-Linked-Size"]) == (302, str(len(WEIGHTS)))
        at = moved.headers["Location"]
        for wanted, part in (
            ("bytes=100-", WEIGHTS[100:]),
            ("bytes=100-199", WEIGHTS[100:200]),
            ("bytes=-5", WEIGHTS[-5:]),
        ):
            answer = httpx2.get(at, headers={"Range": wanted})
            assert (answer.status_code, answer.content) == (206, part)
        assert httpx2.get(at, headers={"Range": "bytes=99999999-"}).status_code == 416
        # The storage takes signed addresses, and no token.
        assert httpx2.get(at.partition("?")[0]).status_code == 400
        assert httpx2.get(at, headers=headers).status_code == 400

    def test_a_download_that_breaks_continues(
        self, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(hub_constants, "DOWNLOAD_CHUNK_SIZE", 100)
        hub.fail(route="lfs-get", break_answer_at_bytes=1000)
        path = hf_hub_download(REPO, "model.safetensors", local_dir=tmp_path)
        assert Path(path).read_bytes() == WEIGHTS
        assert [request.status for request in hub.asked("lfs-get")] == [None, 206]


class TestFailures:
    @pytest.fixture(autouse=True)
    def repository(self, hub: Hub) -> None:
        hub.create(REPO, private=True)

    @pytest.mark.parametrize("status", [401, 403, 409, 413])
    @pytest.mark.parametrize("route", ["preupload", "lfs-batch", "lfs-put", "commit"])
    def test_a_refusal_reaches_the_client_and_nothing_was_done(
        self, hub: Hub, api: HfApi, route: str, status: int
    ) -> None:
        hub.fail(route=route, status=status, message="because I say so")
        with pytest.raises((HfHubHTTPError, RuntimeError)) as caught:
            put(api, {"model.gguf": WEIGHTS})
        told = caught.value
        error = told if isinstance(told, HfHubHTTPError) else told.__cause__
        assert isinstance(error, HfHubHTTPError)
        assert error.response.status_code == status
        assert error.server_message == "because I say so"
        assert len(hub.repos[REPO].commits) == 1
        assert bool(hub.repos[REPO].objects) == (route == "commit")
        put(api, {"model.gguf": WEIGHTS})
        assert hub.repos[REPO].head().bytes_of("model.gguf") == WEIGHTS

    def test_the_client_tries_again_as_long_as_it_is_asked(
        self, hub: Hub, api: HfApi, waits: list[float]
    ) -> None:
        hub.fail(route="lfs-batch", status=429, times=2, headers={"Retry-After": "7"})
        hub.fail(route="lfs-put", status=503)
        put(api, LARGE)
        # The client adds a second to what it is asked to wait.
        assert waits == [8.0, 8.0, 1]
        assert [request.status for request in hub.asked("lfs-batch")] == [429, 429, 200]

    @pytest.mark.parametrize(
        "failure", [{"break_upload_at_bytes": 9000}, {"lost": True}, {"status": 500}]
    )
    def test_uploads_that_break_are_tried_again_and_then_given_up(
        self, hub: Hub, api: HfApi, waits: list[float], failure: dict[str, int]
    ) -> None:
        content = {"model.gguf": WEIGHTS * 100}
        hub.fail(route="lfs-put", **failure)
        put(api, content)
        assert hub.repos[REPO].head().bytes_of("model.gguf") == WEIGHTS * 100
        assert len(waits) == 1
        hub.fail(route="lfs-put", times=None, **failure)
        with pytest.raises(RuntimeError, match=r"Error while uploading 'other.gguf'"):
            put(api, {"other.gguf": WEIGHTS})
        assert len(hub.repos[REPO].commits) == 2
        # What is lost is only the answer.
        kept = hashlib.sha256(WEIGHTS).hexdigest() in hub.repos[REPO].objects
        assert kept == ("lost" in failure)

    def test_a_lost_answer_of_a_commit_is_a_commit(self, hub: Hub, api: HfApi) -> None:
        hub.fail(route="commit", lost=True)
        with pytest.raises(httpx2.NetworkError):
            put(api, SMALL)
        assert len(hub.repos[REPO].commits) == 2

    def test_a_slow_answer(self, hub: Hub) -> None:
        hub.fail(route="whoami", delay_s=60)
        with pytest.raises(httpx2.ReadTimeout):
            httpx2.get(f"{hub.url}/api/whoami-v2", timeout=0.05)

    def test_the_nth_request_of_one_file(self, hub: Hub, api: HfApi) -> None:
        oid = hashlib.sha256(WEIGHTS).hexdigest()
        seen: list[int] = []
        hub.fail(
            route="lfs-put",
            matching=oid,
            skip=1,
            status=503,
            call=lambda: seen.append(len(hub.asked("lfs-put"))),
        )
        put(api, {"first.gguf": WEIGHTS})
        assert seen == []
        hub.repos[REPO].objects.clear()
        put(api, {"second.gguf": b"\0other"})
        put(api, {"third.gguf": WEIGHTS})
        assert seen == [3]

    def test_damaged_content_is_not_kept(self, hub: Hub) -> None:
        at = f"{hub.storage_url}/{REPO}/{hashlib.sha256(b'right').hexdigest()}"
        answer = httpx2.put(f"{at}?X-Amz-Signature={SIGNATURE}", content=b"wrong")
        assert answer.status_code == 400
        assert not hub.repos[REPO].objects


def test_another_process_finds_it(hub: Hub, tmp_path: Path) -> None:
    code = "from huggingface_hub import HfApi; print(HfApi().whoami()['name'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=hub_environment(hub, tmp_path, TOKEN),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("someone\n", "")


def test_what_it_lacks_it_says(hub: Hub) -> None:
    answer = httpx2.get(f"{hub.url}/api/models/{REPO}/xet-write-token/main")
    assert answer.status_code == 501
