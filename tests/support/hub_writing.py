"""What else is written on the loopback Hub: repositories, branches, tags, collections."""

from http import HTTPStatus
from typing import Any

from support.hub_routes import (
    API,
    REVISION,
    Answer,
    Asked,
    RefusedError,
    Route,
    commit_of,
    json_answer,
    repo_of,
    user_of,
    writer,
)
from support.hub_state import Collection

SLUG = "(?P<slug>[^/]+/[^/]+)"


def _create(asked: Asked) -> Answer:
    wanted = asked.json
    user = user_of(asked)
    namespace = wanted.get("organization") or (user.name if user else "")
    writer(asked, namespace, f'create a model under the namespace "{namespace}"')
    name = f"{namespace}/{wanted['name']}"
    url = f"{asked.hub.url}/{name}"
    if name in asked.hub.repos:
        raise RefusedError(HTTPStatus.CONFLICT, "You already created this model repo", url=url)
    private = wanted.get("private") or wanted.get("visibility") == "private"
    asked.hub.create(name, private=bool(private))
    return json_answer({"url": url, "name": name})


def _branch(asked: Asked) -> Answer:
    repo = repo_of(asked, writes=True)
    name = asked.names["revision"]
    if name in repo.branches:
        raise RefusedError(HTTPStatus.CONFLICT, "Reference already exists")
    repo.branches[name] = commit_of(repo, asked.json.get("startingPoint") or "main").oid
    return json_answer({})


def _tag(asked: Asked) -> Answer:
    repo = repo_of(asked, writes=True)
    name = asked.json["tag"]
    if name in repo.tags:
        raise RefusedError(HTTPStatus.CONFLICT, "Tag already exists")
    repo.tags[name] = commit_of(repo, asked.names["revision"]).oid
    return json_answer({})


def _collection_create(asked: Asked) -> Answer:
    wanted = asked.json
    writer(asked, wanted["namespace"], "create a collection")
    for there in asked.hub.collections.values():
        if (there.owner, there.title) == (wanted["namespace"], wanted["title"]):
            message = "This collection already exists"
            raise RefusedError(HTTPStatus.CONFLICT, message, slug=there.slug)
    made = asked.hub.create_collection(
        wanted["namespace"], wanted["title"], private=bool(wanted.get("private"))
    )
    return json_answer(_collection_fields(made))


def _collection(asked: Asked) -> Answer:
    return json_answer(_collection_fields(_find_collection(asked)))


def _collection_add(asked: Asked) -> Answer:
    found = _find_collection(asked)
    writer(asked, found.owner, "add an item")
    item = (asked.json["item"]["type"], asked.json["item"]["id"])
    if item in found.items:
        raise RefusedError(HTTPStatus.CONFLICT, "This item is already in the collection")
    if item[1] not in asked.hub.repos:
        raise RefusedError(HTTPStatus.NOT_FOUND, f"{item[1]} does not exist")
    found.items.append(item)
    return json_answer(_collection_fields(found))


def _find_collection(asked: Asked) -> Collection:
    user = user_of(asked)
    found = asked.hub.collections.get(asked.names["slug"])
    if found is None or (found.private and not (user and user.owns(found.owner))):
        raise RefusedError(HTTPStatus.NOT_FOUND, "Collection not found")
    return found


def _collection_fields(found: Collection) -> dict[str, Any]:
    items = [
        {"_id": f"{i:024x}", "id": name, "type": kind, "position": i}
        for i, (kind, name) in enumerate(found.items)
    ]
    return {
        "slug": found.slug,
        "title": found.title,
        "owner": {"name": found.owner, "type": "user"},
        "private": found.private,
        "items": items,
        "lastUpdated": "2026-11-23T00:00:00.000Z",
        "position": 0,
        "theme": "blue",
        "upvotes": 0,
    }


ROUTES = (
    Route("create", "POST", "/api/repos/create", _create),
    Route("branch", "POST", f"{API}/branch/{REVISION}", _branch),
    Route("tag", "POST", f"{API}/tag/{REVISION}", _tag),
    Route("collection-create", "POST", "/api/collections", _collection_create),
    Route("collection", "GET", f"/api/collections/{SLUG}", _collection),
    Route("collection-add", "POST", f"/api/collections/{SLUG}/items", _collection_add),
)
