"""How contents come to the loopback Hub: preupload, LFS in one piece or in parts, the commit."""

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any

import yaml

from support.hub_routes import (
    API,
    LFS,
    OID,
    REPO,
    REVISION,
    Answer,
    Asked,
    RefusedError,
    Route,
    json_answer,
    repo_of,
    signed_url,
    stored_repo,
)
from support.hub_state import (
    ATTRIBUTES_NAME,
    LFS_ATTRIBUTE,
    MAX_REGULAR_BYTES,
    Commit,
    Repository,
    StoredFile,
    git_blob_id,
    is_ignored,
    is_lfs_path,
)


def _validate_yaml(asked: Asked) -> Answer:
    """The YAML at the head of a README: a mapping, or nothing with a warning."""
    found = re.match(r"---\r?\n(.*?\n)?---\r?\n", asked.json["content"], re.DOTALL)
    if found is None:
        warning = {"message": "empty or missing yaml metadata in repo card"}
        return json_answer({"errors": [], "warnings": [warning]})
    try:
        fields = yaml.safe_load(found[1] or "")
        problem = "" if isinstance(fields, dict) else "metadata is not an object"
    except yaml.YAMLError as error:
        problem = f"Invalid YAML: {error}"
    errors = [{"message": problem}] if problem else []
    status = HTTPStatus.BAD_REQUEST if errors else HTTPStatus.OK
    return json_answer({"errors": errors, "warnings": []}, status=status)


def _branch_head(repo: Repository, branch: str) -> Commit:
    """A tag or an id cannot be written to."""
    if branch not in repo.branches:
        message = f"Invalid rev id: {branch}"
        raise RefusedError(HTTPStatus.NOT_FOUND, message, code="RevisionNotFound")
    return repo.head(branch)


def _preupload(asked: Asked) -> Answer:
    """How each file is to be sent, and what is there under its name."""
    repo = repo_of(asked, writes=True)
    there = _branch_head(repo, asked.names["revision"]).files
    ignore = asked.json.get("gitIgnore")
    if ignore is None and ".gitignore" in there:
        ignore = there[".gitignore"].content.decode()

    def told(wanted: Mapping[str, Any]) -> dict[str, Any]:
        path = wanted["path"]
        sample = base64.b64decode(wanted["sample"])
        is_lfs = is_lfs_path(path, there) or wanted["size"] > MAX_REGULAR_BYTES or b"\0" in sample
        facts = {
            "path": path,
            "uploadMode": "lfs" if is_lfs else "regular",
            "shouldIgnore": is_ignored(path, ignore or ""),
        }
        return {**facts, "oid": there[path].etag} if path in there else facts

    return json_answer({"files": [told(wanted) for wanted in asked.json["files"]]})


def _lfs_batch(asked: Asked) -> Answer:
    """Where to send each object; nowhere when it is there."""
    repo = repo_of(asked, writes=True)
    wanted = asked.json
    assert (wanted["operation"], wanted["hash_algo"]) == ("upload", "sha256")
    part_bytes = asked.hub.part_bytes if "multipart" in wanted["transfers"] else None

    def told(thing: Mapping[str, Any]) -> dict[str, Any]:
        oid, size = thing["oid"], thing["size"]
        if oid in repo.objects:
            return {"oid": oid, "size": size}
        upload: dict[str, Any] = {"href": signed_url(asked, repo, oid)}
        if part_bytes and size > part_bytes:
            n_parts = -(-size // part_bytes)
            parts = {str(i): signed_url(asked, repo, f"{oid}/{i}") for i in range(1, n_parts + 1)}
            done = f"{asked.hub.url}/{repo.name}.git/info/lfs/complete/{oid}"
            upload = {"href": done, "header": {"chunk_size": str(part_bytes), **parts}}
        verify = {"href": f"{asked.hub.url}/{repo.name}.git/info/lfs/verify"}
        return {"oid": oid, "size": size, "actions": {"upload": upload, "verify": verify}}

    return json_answer({"transfer": "basic", "objects": [told(each) for each in wanted["objects"]]})


def _lfs_put(asked: Asked) -> Answer:
    repo = stored_repo(asked)
    _keep(repo, asked.names["oid"], asked.request.body)
    return Answer(headers={"ETag": f'"{asked.names["oid"]}"'})


def _lfs_put_part(asked: Asked) -> Answer:
    repo = stored_repo(asked)
    repo.parts[asked.names["oid"], int(asked.names["number"])] = asked.request.body
    return Answer(headers={"ETag": f'"{git_blob_id(asked.request.body)}"'})


def _lfs_complete(asked: Asked) -> Answer:
    oid = asked.names["oid"]
    repo = asked.hub.repos[asked.names["repo"]]
    contents = [repo.parts[oid, part["partNumber"]] for part in asked.json["parts"]]
    etags = [f'"{git_blob_id(content)}"' for content in contents]
    if [part["etag"] for part in asked.json["parts"]] != etags:
        raise RefusedError(HTTPStatus.BAD_REQUEST, "InvalidPart")
    _keep(repo, oid, b"".join(contents))
    return json_answer({})


def _lfs_verify(asked: Asked) -> Answer:
    repo = repo_of(asked, writes=True)
    content = repo.objects.get(asked.json["oid"])
    if content is None or len(content) != asked.json["size"]:
        raise RefusedError(HTTPStatus.NOT_FOUND, "the object is not there")
    return json_answer({})


def _keep(repo: Repository, oid: str, content: bytes) -> None:
    if hashlib.sha256(content).hexdigest() != oid:
        raise RefusedError(HTTPStatus.BAD_REQUEST, "BadDigest: the content has another SHA-256")
    repo.objects[oid] = content


def _commit(asked: Asked) -> Answer:
    """All operations or none."""
    repo = repo_of(asked, writes=True)
    branch = asked.names["revision"]
    head = _branch_head(repo, branch)
    (_, header), *operations = _operations(asked.request.body)
    parent = header.get("parentCommit")
    if parent and not head.oid.startswith(parent):
        message = "A commit has happened since. Please refresh and try again."
        raise RefusedError(HTTPStatus.PRECONDITION_FAILED, message)
    made = repo.commit(
        _changed(repo, head.files, operations),
        title=header["summary"],
        message=header.get("description", ""),
        author=asked.hub.users[asked.request.token or ""].name,
        branch=branch,
    )
    url = f"{asked.hub.url}/{repo.name}/commit/{made.oid}"
    return json_answer({"success": True, "commitOid": made.oid, "commitUrl": url})


def _operations(body: bytes) -> list[tuple[str, dict[str, Any]]]:
    lines = (json.loads(line) for line in body.splitlines())
    return [(line["key"], line["value"]) for line in lines]


def _changed(
    repo: Repository,
    there: Mapping[str, StoredFile],
    operations: Iterable[tuple[str, Mapping[str, Any]]],
) -> dict[str, StoredFile]:
    """The files after the operations; raises `RefusedError` for one that cannot be done."""
    files = dict(there)
    for key, value in operations:
        path = value["path"]
        if key == "file":
            assert value["encoding"] == "base64"
            content = base64.b64decode(value["content"])
            if len(content) > MAX_REGULAR_BYTES:
                message = "Your push was rejected because it contains files larger than 10 MiB."
                raise RefusedError(HTTPStatus.BAD_REQUEST, message)
            files[path] = StoredFile(content=content, is_lfs=False)
        elif key == "lfsFile":
            if value["oid"] not in repo.objects:
                message = "Your push was rejected because an LFS pointer pointed to a file that"
                raise RefusedError(HTTPStatus.BAD_REQUEST, f"{message} does not exist.")
            files[path] = StoredFile(content=repo.objects[value["oid"]], is_lfs=True)
            if not is_lfs_path(path, files):
                files[ATTRIBUTES_NAME] = _with_attribute(files, path)
        elif key == "deletedFile":
            if path not in files:
                message = f"A file with this name doesn't exist: {path}"
                raise RefusedError(HTTPStatus.NOT_FOUND, message, code="EntryNotFound")
            del files[path]
        elif key == "deletedFolder":
            files = {p: f for p, f in files.items() if not p.startswith(path.rstrip("/") + "/")}
        else:
            raise RefusedError(HTTPStatus.BAD_REQUEST, f"{key} is no operation")
    return files


def _with_attribute(files: Mapping[str, StoredFile], path: str) -> StoredFile:
    """.gitattributes that make `path` an LFS file too, as the Hub writes them."""
    before = files[ATTRIBUTES_NAME].content if ATTRIBUTES_NAME in files else b""
    return StoredFile(content=before + f"{path} {LFS_ATTRIBUTE}\n".encode(), is_lfs=False)


ROUTES = (
    Route("validate-yaml", "POST", "/api/validate-yaml", _validate_yaml),
    Route("preupload", "POST", f"{API}/preupload/{REVISION}", _preupload),
    Route("lfs-batch", "POST", f"{LFS}/objects/batch", _lfs_batch),
    Route("lfs-put", "PUT", f"/{REPO}/{OID}", _lfs_put, is_storage=True),
    Route("lfs-put", "PUT", f"/{REPO}/{OID}/(?P<number>[0-9]+)", _lfs_put_part, is_storage=True),
    Route("lfs-complete", "POST", f"{LFS}/complete/{OID}", _lfs_complete),
    Route("lfs-verify", "POST", f"{LFS}/verify", _lfs_verify),
    Route("commit", "POST", f"{API}/commit/{REVISION}", _commit),
)
