"""What the loopback Hub holds: repositories with their commits, collections, users, requests.

Everything is in memory and may be looked at, and set up, by a test.
"""

import fnmatch
import functools
import hashlib
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

MAX_REGULAR_BYTES = 10 << 20
"""From here on the Hub takes a file as LFS only."""
_LFS_PATTERNS = """
*.7z *.arrow *.bin *.bz2 *.ckpt *.ftz *.gz *.h5 *.joblib *.lfs.* *.mlmodel *.model *.msgpack
*.npy *.npz *.onnx *.ot *.parquet *.pb *.pickle *.pkl *.pt *.pth *.rar *.safetensors
saved_model/**/* *.tar.* *.tar *.tflite *.tgz *.wasm *.xz *.zip *.zst *tfevents*
"""
"""Of the .gitattributes of a new model repository; GGUF is not among them."""
ATTRIBUTES_NAME = ".gitattributes"
LFS_ATTRIBUTE = "filter=lfs diff=lfs merge=lfs -text"
ID_LETTERS = 24  # of a collection, behind its title


def git_blob_id(content: bytes) -> str:
    """The id that git gives a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """A file of a commit."""

    content: bytes
    is_lfs: bool

    @functools.cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def pointer(self) -> bytes:
        """What git holds of an LFS file."""
        text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\n"
        return f"{text}size {len(self.content)}\n".encode()

    @functools.cached_property
    def blob_id(self) -> str:
        return git_blob_id(self.pointer if self.is_lfs else self.content)

    @property
    def etag(self) -> str:
        """As the Hub says of a download, and compares with what it is asked to take."""
        return self.sha256 if self.is_lfs else self.blob_id


@dataclass(frozen=True, kw_only=True)
class Commit:
    """All files at one moment."""

    oid: str
    parent: str | None
    title: str
    message: str
    author: str
    date: str
    files: Mapping[str, StoredFile]

    def bytes_of(self, path: str) -> bytes:
        return self.files[path].content


@dataclass(kw_only=True)
class Repository:
    """`commits` are in the order in which they were made, on whatever branch."""

    name: str
    private: bool
    commits: list[Commit] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    """LFS contents by SHA-256, committed or not."""
    parts: dict[tuple[str, int], bytes] = field(default_factory=dict)
    """Of uploads in parts that are not complete, by SHA-256 and number."""

    def resolve(self, revision: str) -> Commit | None:
        """The commit that a branch, a tag or an id names."""
        oid = self.branches.get(revision) or self.tags.get(revision) or revision
        return next((commit for commit in self.commits if commit.oid == oid), None)

    def head(self, branch: str = "main") -> Commit:
        return next(commit for commit in self.commits if commit.oid == self.branches[branch])

    def history(self, commit: Commit) -> list[Commit]:
        """The commit and those before it, newest first."""
        older = self.resolve(commit.parent) if commit.parent else None
        return [commit, *(self.history(older) if older else [])]

    def commit(
        self,
        files: Mapping[str, StoredFile],
        *,
        title: str,
        message: str = "",
        author: str = "someone",
        branch: str = "main",
    ) -> Commit:
        """Make `files` all that the branch shows."""
        parent = self.branches.get(branch)
        facts = [len(self.commits), parent, title, {p: f.blob_id for p, f in files.items()}]
        made = Commit(
            oid=hashlib.sha1(json.dumps([self.name, facts]).encode()).hexdigest(),
            parent=parent,
            title=title,
            message=message,
            author=author,
            date=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z"),
            files=dict(files),
        )
        self.commits.append(made)
        self.branches[branch] = made.oid
        return made

    def change(self, branch: str = "main", **contents: bytes | None) -> Commit:
        """A commit of somebody else's: `name__md=b"..."` is the file `name.md`, None deletes it."""
        named = {name.replace("__", "."): content for name, content in contents.items()}
        files = dict(self.head(branch).files)
        for path, content in named.items():
            if content is None:
                del files[path]
            else:
                files[path] = StoredFile(content=content, is_lfs=False)
        return self.commit(files, title="Changed on the web", author="another", branch=branch)


@dataclass(kw_only=True)
class Collection:
    slug: str
    title: str
    owner: str
    private: bool
    items: list[tuple[str, str]] = field(default_factory=list)
    """Type and id."""


@dataclass(frozen=True, kw_only=True)
class User:
    """Whose a token is, and what it may do."""

    name: str
    role: str = "write"
    organizations: tuple[str, ...] = ()

    def owns(self, namespace: str) -> bool:
        return namespace == self.name or namespace in self.organizations


@dataclass(kw_only=True)
class Request:
    """One that arrived."""

    method: str
    route: str
    """Name of the route; "" for one that the server does not know."""
    path: str
    token: str | None
    is_storage: bool
    """To the storage's address, which must never see a token."""
    user_agent: str
    body: bytes = b""
    status: int | None = None
    """Of the answer; None: the connection was broken."""


@dataclass(kw_only=True)
class Failure:
    """What goes wrong with requests of a route; several fields together happen in this order."""

    route: str
    matching: str = ""
    """In the path."""
    skip: int = 0
    """Requests that pass before."""
    times: int | None = 1
    """How often; None: always."""
    call: Callable[[], object] | None = None
    """Called when the request's head has arrived."""
    delay_s: float = 0
    break_upload_at_bytes: int | None = None
    """The connection is reset when so much of the request's body has arrived."""
    status: int | None = None
    """Answered in place of what was asked, which is not done."""
    message: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    lost: bool = False
    """It is done, and the connection is reset in place of the answer."""
    break_answer_at_bytes: int | None = None
    """It is done, and the connection is reset when so much of the answer's body was sent."""
    hits: int = 0

    def applies(self, request: Request) -> bool:
        """Whether this request fails; counts it."""
        if self.route != request.route or self.matching not in request.path:
            return False
        if self.skip:
            self.skip -= 1
            return False
        if self.times is not None and self.hits >= self.times:
            return False
        self.hits += 1
        return True


@dataclass(kw_only=True, repr=False)
class Hub:
    """The server's state; `users` are by token."""

    url: str
    storage_url: str
    users: dict[str, User]
    repos: dict[str, Repository] = field(default_factory=dict)
    collections: dict[str, Collection] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    part_bytes: int | None = None
    """LFS files larger than this are asked for in parts of this size."""
    page_entries: int = 1000
    """Of a listing."""
    lock: threading.RLock = field(default_factory=threading.RLock)
    closing: threading.Event = field(default_factory=threading.Event)

    def fail(self, **what: object) -> Failure:
        """Let requests fail from now on: the fields of `Failure`."""
        rule = Failure(**what)  # type: ignore[arg-type]
        self.failures.append(rule)
        return rule

    def heal(self) -> None:
        """No more failures."""
        self.failures.clear()

    def asked(self, route: str) -> list[Request]:
        """Requests of a route so far."""
        return [request for request in self.requests if request.route == route]

    def forget(self) -> None:
        """The requests so far."""
        self.requests.clear()

    @property
    def tokens(self) -> set[str | None]:
        """That were sent; None for none."""
        return {request.token for request in self.requests}

    def create(self, name: str, *, private: bool) -> Repository:
        """A new repository with the Hub's first commit."""
        made = Repository(name=name, private=private)
        lines = "".join(f"{pattern} {LFS_ATTRIBUTE}\n" for pattern in _LFS_PATTERNS.split())
        attributes = StoredFile(content=lines.encode(), is_lfs=False)
        made.commit({ATTRIBUTES_NAME: attributes}, title="initial commit")
        self.repos[name] = made
        return made

    def create_collection(self, owner: str, title: str, *, private: bool = True) -> Collection:
        """A new, empty collection."""
        letters = "".join(c if c.isalnum() else "-" for c in title.lower()).strip("-")
        mark = hashlib.sha256(f"{owner}/{title}".encode()).hexdigest()[:ID_LETTERS]
        made = Collection(
            slug=f"{owner}/{letters}-{mark}", title=title, owner=owner, private=private
        )
        self.collections[made.slug] = made
        return made


def is_lfs_path(path: str, files: Mapping[str, StoredFile]) -> bool:
    """Whether the .gitattributes among `files` makes a path an LFS file."""
    if ATTRIBUTES_NAME not in files:
        return False
    lines = files[ATTRIBUTES_NAME].content.decode().splitlines()
    return any(
        _matches(path, pattern)
        for pattern, *attributes in (line.split() for line in lines if line.strip())
        if "filter=lfs" in attributes
    )


def is_ignored(path: str, ignore: str) -> bool:
    """Whether a .gitignore's text names a path; names and wildcards only."""
    lines = (line.strip() for line in ignore.splitlines())
    return any(_matches(path, line) for line in lines if line and not line.startswith("#"))


def _matches(path: str, pattern: str) -> bool:
    name = path if "/" in pattern else path.rsplit("/", 1)[-1]
    return fnmatch.fnmatchcase(name, pattern)
