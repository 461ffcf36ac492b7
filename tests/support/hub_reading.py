"""What the loopback Hub answers to who reads: users, repositories, listings, downloads."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs

from support.hub_routes import (
    API,
    OID,
    REPO,
    REVISION,
    Answer,
    Asked,
    RefusedError,
    Route,
    commit_of,
    json_answer,
    page,
    repo_of,
    signed_url,
    stored_repo,
    user_of,
)
from support.hub_state import Commit, StoredFile, git_blob_id


def _whoami(asked: Asked) -> Answer:
    user = user_of(asked)
    if user is None:
        raise RefusedError(HTTPStatus.UNAUTHORIZED, "Invalid username or password.")
    token = {"displayName": "loopback", "role": user.role}
    organizations = [{"type": "org", "name": name} for name in user.organizations]
    auth = {"type": "access_token", "accessToken": token}
    return json_answer({"type": "user", "name": user.name, "orgs": organizations, "auth": auth})


def _info(asked: Asked) -> Answer:
    repo = repo_of(asked)
    commit = commit_of(repo, asked.names["revision"] or "main")
    siblings = [
        {"rfilename": path, **(_facts(file) if "blobs" in asked.query else {})}
        for path, file in sorted(commit.files.items())
    ]
    return json_answer(
        {
            "_id": git_blob_id(repo.name.encode())[:24],
            "id": repo.name,
            "modelId": repo.name,
            "author": repo.name.partition("/")[0],
            "sha": commit.oid,
            "lastModified": commit.date,
            "createdAt": repo.commits[0].date,
            "private": repo.private,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "siblings": siblings,
        }
    )


def _facts(file: StoredFile) -> dict[str, Any]:
    facts: dict[str, Any] = {"size": len(file.content), "blobId": file.blob_id}
    if file.is_lfs:
        sizes = {"size": len(file.content), "pointerSize": len(file.pointer)}
        facts["lfs"] = {"sha256": file.sha256, **sizes}
    return facts


def _refs(asked: Asked) -> Answer:
    repo = repo_of(asked)

    def listed(kind: str, refs: Mapping[str, str]) -> list[dict[str, str]]:
        return [
            {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": oid}
            for name, oid in refs.items()
        ]

    return json_answer(
        {
            "branches": listed("heads", repo.branches),
            "tags": listed("tags", repo.tags),
            "converts": [],
        }
    )


def _commits(asked: Asked) -> Answer:
    repo = repo_of(asked)
    commits = repo.history(commit_of(repo, asked.names["revision"]))
    return page(
        asked,
        [
            {
                "id": commit.oid,
                "title": commit.title,
                "message": commit.message,
                "authors": [{"user": commit.author}],
                "date": commit.date,
            }
            for commit in commits
        ],
    )


def _tree(asked: Asked) -> Answer:
    commit = commit_of(repo_of(asked), asked.names["revision"])
    folder = asked.names["path"].strip("/")
    start = f"{folder}/" if folder else ""
    below = [path for path in commit.files if path.startswith(start)]
    if folder and not below:
        raise _no_entry(folder)
    is_recursive = asked.query.get("recursive", "false").lower() == "true"
    entries = {}
    for path in below:
        names = path.removeprefix(start).split("/")
        for depth in range(1, len(names) + 1 if is_recursive else 2):
            entry = start + "/".join(names[:depth])
            entries[entry] = _entry(asked, commit, entry)
    return page(asked, [entries[path] for path in sorted(entries)])


def _paths_info(asked: Asked) -> Answer:
    commit = commit_of(repo_of(asked), asked.names["revision"])
    wanted = parse_qs(asked.request.body.decode())["paths"]
    return json_answer([_entry(asked, commit, path) for path in wanted if path in commit.files])


def _entry(asked: Asked, commit: Commit, path: str) -> dict[str, Any]:
    more: dict[str, Any] = {}
    if asked.query.get("expand", "false").lower() == "true":
        last = {"id": commit.oid, "title": commit.title, "date": commit.date}
        more = {"lastCommit": last}
    file = commit.files.get(path)
    if file is None:
        oid = git_blob_id(path.encode())
        return {"type": "directory", "path": path, "oid": oid, "size": 0, **more}
    size = len(file.content)
    if file.is_lfs:
        more["lfs"] = {"oid": file.sha256, "size": size, "pointerSize": len(file.pointer)}
    return {"type": "file", "path": path, "oid": file.blob_id, "size": size, **more}


def _no_entry(path: str) -> RefusedError:
    return RefusedError(HTTPStatus.NOT_FOUND, f"{path} does not exist", code="EntryNotFound")


def _resolve(asked: Asked) -> Answer:
    repo = repo_of(asked)
    commit = commit_of(repo, asked.names["revision"])
    file = commit.files.get(asked.names["path"])
    if file is None:
        raise _no_entry(asked.names["path"])
    headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{file.etag}"', "Accept-Ranges": "bytes"}
    if not file.is_lfs:
        return Answer(headers=headers, body=file.content, is_file=True)
    moved = {
        "Location": signed_url(asked, repo, file.sha256),
        "X-Linked-ETag": f'"{file.sha256}"',
        "X-Linked-Size": str(len(file.content)),
    }
    return Answer(status=HTTPStatus.FOUND, headers={**headers, **moved})


def _lfs_get(asked: Asked) -> Answer:
    oid = asked.names["oid"]
    headers = {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"}
    return Answer(headers=headers, body=stored_repo(asked).objects[oid], is_file=True)


def _agents(asked: Asked) -> Answer:
    """A list of coding agents that the client asks for where it runs inside of one."""
    raise RefusedError(HTTPStatus.NOT_FOUND, "no list here")


ROUTES = (
    Route("agents", "GET", "/api/agent-harnesses", _agents),
    Route("whoami", "GET", "/api/whoami-v2", _whoami),
    Route("info", "GET", f"{API}(/revision/{REVISION})?", _info),
    Route("refs", "GET", f"{API}/refs", _refs),
    Route("commits", "GET", f"{API}/commits/{REVISION}", _commits),
    Route("tree", "GET", f"{API}/tree/{REVISION}(/(?P<path>.+))?", _tree),
    Route("paths-info", "POST", f"{API}/paths-info/{REVISION}", _paths_info),
    Route("resolve", "GET", f"/{REPO}/resolve/{REVISION}/(?P<path>.+)", _resolve),
    Route("resolve", "HEAD", f"/{REPO}/resolve/{REVISION}/(?P<path>.+)", _resolve),
    Route("lfs-get", "GET", f"/{REPO}/{OID}", _lfs_get, is_storage=True),
    Route("lfs-get", "HEAD", f"/{REPO}/{OID}", _lfs_get, is_storage=True),
)
