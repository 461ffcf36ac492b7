"""The routes of the loopback Hub: their shape, who may ask, and how is answered.

The addresses, fields and refusals are those that huggingface_hub 2.4 sends and reads: its modules
hf_api, _commit_api, lfs and file_download.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from support.hub_state import Commit, Hub, Repository, Request, User

REPO = r"(?P<repo>[^/]+/[^/]+)"
REVISION = r"(?P<revision>[^/]+)"
API = f"/api/models/{REPO}"
LFS = f"/{REPO}\\.git/info/lfs"
OID = "(?P<oid>[0-9a-f]{64})"
SIGNATURE = "S1gned" * 8
"""In the addresses of the storage: as good as a token for one file."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    status: int = HTTPStatus.OK
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    is_file: bool = False
    """Parts of it may be asked for."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One request: `names` are of the parts of its address."""

    hub: Hub
    request: Request
    names: Mapping[str, str]
    query: Mapping[str, str]

    @property
    def json(self) -> Any:
        return json.loads(self.request.body)


class RefusedError(Exception):
    """The Hub says no, in the form of its API; nothing was done."""

    def __init__(self, status: int, message: str, *, code: str = "", **more: object) -> None:
        super().__init__(message)
        headers = {"Content-Type": "application/json", "X-Error-Message": message}
        if code:
            headers["X-Error-Code"] = code
        body = json.dumps({"error": message, **more}).encode()
        self.answer = Answer(status=status, headers=headers, body=body)


@dataclass(frozen=True)
class Route:
    """What is answered at an address."""

    name: str
    method: str
    pattern: str
    """Of the path; its named groups are `Asked.names`."""
    answer: Callable[[Asked], Answer]
    is_storage: bool = False


def user_of(asked: Asked) -> User | None:
    """Whose the token is; raises `RefusedError` for one that nobody has."""
    token = asked.request.token
    if token is None:
        return None
    if token not in asked.hub.users:
        raise RefusedError(HTTPStatus.UNAUTHORIZED, "Invalid credentials in Authorization header")
    return asked.hub.users[token]


def writer(asked: Asked, namespace: str, doing: str) -> User:
    """The user, who may write there; raises `RefusedError`."""
    user = user_of(asked)
    if user is None:
        raise RefusedError(HTTPStatus.UNAUTHORIZED, "Invalid username or password.")
    if user.role != "write" or not user.owns(namespace):
        raise RefusedError(HTTPStatus.FORBIDDEN, f"You don't have the rights to {doing}")
    return user


def repo_of(asked: Asked, *, writes: bool = False) -> Repository:
    """The repository of the address; raises `RefusedError` for one that the user cannot have."""
    user = user_of(asked)
    name = asked.names["repo"]
    repo = asked.hub.repos.get(name)
    owner = name.partition("/")[0]
    if repo is None or (repo.private and not (user and user.owns(owner))):
        # Whether it is missing or private is told to nobody.
        status = HTTPStatus.NOT_FOUND if user else HTTPStatus.UNAUTHORIZED
        raise RefusedError(status, "Repository not found", code="RepoNotFound")
    if writes:
        writer(asked, owner, f"write to {name}")
    return repo


def stored_repo(asked: Asked) -> Repository:
    """Of a request to the storage, which is allowed by its address alone."""
    if asked.request.token is not None or asked.query.get("X-Amz-Signature") != SIGNATURE:
        raise RefusedError(HTTPStatus.BAD_REQUEST, "Only one auth mechanism allowed")
    return asked.hub.repos[asked.names["repo"]]


def signed_url(asked: Asked, repo: Repository, name: str) -> str:
    """Where an object, or a part of one, lies in the storage."""
    return f"{asked.hub.storage_url}/{repo.name}/{name}?X-Amz-Signature={SIGNATURE}"


def commit_of(repo: Repository, revision: str) -> Commit:
    """What a branch, a tag or an id names."""
    found = repo.resolve(revision)
    if found is None:
        message = f"Invalid rev id: {revision}"
        raise RefusedError(HTTPStatus.NOT_FOUND, message, code="RevisionNotFound")
    return found


def json_answer(value: object, *, status: int = HTTPStatus.OK, **headers: str) -> Answer:
    given = {"Content-Type": "application/json", **headers}
    return Answer(status=status, headers=given, body=json.dumps(value).encode())


def page(asked: Asked, entries: list[Any]) -> Answer:
    """The entries from the cursor on, with a `Link` to the next."""
    start = int(asked.query.get("cursor", "0"))
    end = start + asked.hub.page_entries
    headers = {}
    if end < len(entries):
        query = "&".join(f"{k}={v}" for k, v in {**asked.query, "cursor": end}.items())
        headers["Link"] = f'<{asked.hub.url}{asked.request.path}?{query}>; rel="next"'
    return json_answer(entries[start:end], **headers)
