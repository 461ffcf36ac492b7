"""A loopback server with as much of the Hub's protocol as downloading a snapshot takes.

The real `huggingface_hub` client talks to it: revision lookup, tree, and `resolve` by HEAD and by
GET with Range. So does the real `datasets`, for repositories added as `datasets/owner/name`. It
records what it was asked and with which token.
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

REPO = r"(?P<repo>(datasets/)?[^/]+/[^/]+)"
API_REPO = r"/api/(models/)?" + REPO
ROUTES = {
    "info": re.compile(API_REPO + r"(/revision/(?P<revision>[^/]+))?"),
    "tree": re.compile(API_REPO + r"/tree/(?P<revision>[^/]+)(/(?P<path>.+))?"),
    "file": re.compile("/" + REPO + r"/resolve/(?P<revision>[^/]+)/(?P<path>.+)"),
}

POLL_S = 0.02  # how long stopping the server may take


@dataclass
class FakeRepo:
    """A repository: branches to commits, commits to folders."""

    branches: dict[str, str]
    commits: dict[str, Path]
    token: str | None = None
    """What a reader must send."""
    gated: bool = False
    lfs: dict[str, str] = field(default_factory=dict)
    """SHA-256 that the tree gives of large files, by path."""

    def folder(self, revision: str) -> tuple[str, Path] | None:
        commit = self.branches.get(revision, revision)
        return (commit, self.commits[commit]) if commit in self.commits else None


@dataclass
class FakeHub:
    """The server's state."""

    url: str = ""
    repos: dict[str, FakeRepo] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    tokens: set[str | None] = field(default_factory=set)

    def add(self, repo: str, folder: Path, *, commit: str, branch: str = "main") -> FakeRepo:
        """Publish a folder as a commit that a branch points to."""
        entry = self.repos.setdefault(repo, FakeRepo(branches={}, commits={}))
        entry.branches[branch] = commit
        entry.commits[commit] = folder
        return entry

    def downloaded(self) -> set[str]:
        """Names of the files whose bytes were asked for."""
        return {
            path.rsplit("/", 1)[1]
            for method, path in self.requests
            if method == "GET" and "/resolve/" in path
        }


@contextmanager
def serve() -> Iterator[FakeHub]:
    """Run the server on a free port of the loopback interface."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(body=True)

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def log_message(self, *args: object) -> None:
            pass

        def _answer(self, *, body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append((self.command, path))
            sent = self.headers.get("Authorization")
            token = sent.removeprefix("Bearer ") if sent else None
            hub.tokens.add(token)
            for kind, pattern in ROUTES.items():
                found = pattern.fullmatch(path)
                if found is None:
                    continue
                repo = hub.repos.get(found["repo"])
                if repo is None or (repo.token and token != repo.token and not repo.gated):
                    return self._refuse(HTTPStatus.UNAUTHORIZED, "RepoNotFound")
                if repo.gated and token != repo.token:
                    return self._refuse(HTTPStatus.FORBIDDEN, "GatedRepo")
                at = repo.folder(found["revision"] or "main")
                if at is None:
                    return self._refuse(HTTPStatus.NOT_FOUND, "RevisionNotFound")
                commit, folder = at
                if kind == "file":
                    return self._file(commit, folder / found["path"], body=body)
                below = folder / (found.groupdict().get("path") or "")
                if not below.is_dir():
                    return self._refuse(HTTPStatus.NOT_FOUND, "EntryNotFound")
                files = sorted(p for p in below.rglob("*") if p.is_file())
                names = [str(p.relative_to(folder)) for p in files]
                if kind == "info":
                    siblings = [{"rfilename": name} for name in names]
                    return self._json({"id": found["repo"], "sha": commit, "siblings": siblings})
                return self._json(
                    [
                        {"type": "file", "path": n, "size": p.stat().st_size, "oid": etag(p)}
                        | lfs_facts(repo, n, p)
                        for n, p in zip(names, files, strict=True)
                    ]
                )
            return self._refuse(HTTPStatus.NOT_FOUND, "RepoNotFound")

        def _refuse(self, status: HTTPStatus, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _json(self, value: object) -> None:
            data = json.dumps(value).encode()
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _file(self, commit: str, file: Path, *, body: bool) -> None:
            if not file.is_file():
                return self._refuse(HTTPStatus.NOT_FOUND, "EntryNotFound")
            data = file.read_bytes()
            total = len(data)
            wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            start = int(wanted[1]) if wanted else 0
            self.send_response(HTTPStatus.PARTIAL_CONTENT if wanted else HTTPStatus.OK)
            if wanted:
                self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(total - start))
            self.send_header("ETag", f'"{etag(file)}"')
            self.send_header("X-Repo-Commit", commit)
            self.end_headers()
            if body:
                self.wfile.write(data[start:])
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(POLL_S,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def lfs_facts(repo: FakeRepo, name: str, file: Path) -> dict[str, object]:
    """What the tree adds for a large file."""
    if name not in repo.lfs:
        return {}
    size = file.stat().st_size
    return {"lfs": {"oid": repo.lfs[name], "size": size, "pointerSize": 134}}


def etag(file: Path) -> str:
    """The id that git gives a file's contents."""
    data = file.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
