"""The Hub's HTTP routes over a LoopbackHub's repos; who may do what, and with which error, is decided here."""

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from tests.support.hub_repos import GITATTRIBUTES, Announced, Blob, Collection, Commit, Repo, card_faults, is_lfs

if TYPE_CHECKING:
    from tests.support.loopback_hub import LoopbackHub, Request, Token

    Route = Callable[[LoopbackHub, Request, Mapping[str, str]], "Reply"]


@dataclass
class Reply:
    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


class Denied(Exception):
    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.reply = fault(status, message, code)


def fault(status: int, message: str, code: str | None = None) -> Reply:
    reply = said({"error": message}, status)
    reply.headers["X-Error-Message"] = message
    if code:
        reply.headers["X-Error-Code"] = code
    return reply


def said(data: Any, status: int = 200) -> Reply:
    return Reply(json.dumps(data).encode(), status)


def answer(hub: "LoopbackHub", request: "Request") -> Reply:
    """Find the route of a request and answer it."""
    if request.token is not None and (request.token not in hub.tokens or hub.tokens[request.token].expired):
        token = hub.tokens.get(request.token)
        raise Denied(401, 'User Access Token "weightsmith" is expired' if token else INVALID)
    for methods, pattern, route in ROUTES:
        if request.method in methods and (found := pattern.fullmatch(request.path)):
            return route(hub, request, found.groupdict())
    raise Denied(404, f"Sorry, we can't find the page you are looking for: {request.method} {request.path}")


INVALID = "Invalid credentials in Authorization header"


def _user(hub: "LoopbackHub", request: "Request") -> "Token | None":
    return hub.tokens.get(request.token) if request.token else None


def _may_read(token: "Token | None", repo: Repo) -> bool:
    namespace = repo.id.partition("/")[0]
    return token is not None and (token.user in repo.granted or namespace in (token.user, *token.orgs))


def _writer(hub: "LoopbackHub", request: "Request", namespace: str) -> None:
    token = _user(hub, request)
    if token is None:
        raise Denied(401, "Invalid username or password.")
    allowed = namespace == token.user or token.orgs.get(namespace) in ("write", "admin")
    if not allowed:
        raise Denied(403, f'You don\'t have the rights to create a model under the namespace "{namespace}"')
    if token.role == "read":
        raise Denied(403, "This token has no write permission: use a token with the write role")


def _repo(hub: "LoopbackHub", request: "Request", at: Mapping[str, str], open_gate: bool = False) -> Repo:
    """Find a repo that the asker may see; a private one does not exist for others."""
    kind = (at.get("kind") or "models").rstrip("/")
    repo, token = hub.repos.get((kind, at["repo"])), _user(hub, request)
    if repo is None or (repo.private and not _may_read(token, repo)):
        anonymous = token is None
        raise Denied(
            401 if anonymous else 404,
            "Invalid username or password." if anonymous else "Repository not found",
            "RepoNotFound",
        )
    if open_gate and repo.gated and not _may_read(token, repo):
        words = f"Access to model {repo.id} is restricted and you are not in the authorized list."
        raise Denied(401 if token is None else 403, words, "GatedRepo")
    return repo


def _commit(repo: Repo, revision: str | None) -> Commit:
    commit = repo.at(revision or "main")
    if commit is None:
        raise Denied(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    return commit


def whoami(hub: "LoopbackHub", request: "Request", at: Mapping[str, str]) -> Reply:
    token = _user(hub, request)
    if token is None:
        raise Denied(401, "Invalid username or password.")
    orgs = [
        {"type": "org", "name": name, "fullname": name, "roleInOrg": role}
        | ({"plan": token.plans[name]} if name in token.plans else {})
        for name, role in token.orgs.items()
    ]
    access = {"displayName": "weightsmith", "role": token.role}
    auth = {"type": "access_token", "accessToken": access}
    return said(
        {
            "type": "user",
            "id": "0",
            "name": token.user,
            "fullname": token.user,
            "isPro": token.pro,
            "orgs": orgs,
            "auth": auth,
        }
    )


def listing(hub: "LoopbackHub", request: "Request", at: Mapping[str, str]) -> Reply:
    asked = {key: values[0] for key, values in request.query.items()}
    found = []
    for (kind, repo_id), repo in hub.repos.items():
        if kind != at["kind"] or (repo.private and not _may_read(_user(hub, request), repo)):
            continue
        info = repo.info(repo.head)
        wanted = [f for given in request.query.get("filter", []) for f in given.split(",")]
        wanted += request.query.get("pipeline_tag", [])
        if (
            asked.get("search", "").lower() in repo_id.lower()
            and asked.get("author", info["author"]) == info["author"]
            and all(tag in (*info["tags"], info.get("pipeline_tag"), info.get("library_name")) for tag in wanted)
            and asked.get("gated", str(repo.gated)).lower() == str(repo.gated).lower()
        ):
            found.append(info)
    if sort := asked.get("sort"):
        found.sort(key=lambda info: info.get(sort) or 0, reverse=True)
    if wanted := request.query.get("expand"):
        found = [{key: info[key] for key in ("_id", "id", *wanted) if key in info} for info in found]
    return _page(hub, request, found, int(asked.get("limit", hub.page_size)))


def _page(hub: "LoopbackHub", request: "Request", items: list[Any], size: int) -> Reply:
    start = int(request.query.get("cursor", ["0"])[0])
    reply = said(items[start : start + size])
    if start + size < len(items):
        kept = [f"{key}={value}" for key, values in request.query.items() if key != "cursor" for value in values]
        url = f"{hub.url}{request.path}?{'&'.join([*kept, f'cursor={start + size}'])}"
        reply.headers["Link"] = f'<{url}>; rel="next"'
    return reply


def info(hub: "LoopbackHub", request: "Request", at: Mapping[str, str]) -> Reply:
    repo = _repo(hub, request, at)
    commit = _commit(repo, at.get("rev"))
    data = repo.info(commit)
    if "blobs" in request.query:
        data["siblings"] = [
            {"rfilename": name, "size": b.size, "blobId": b.git_oid}
            | ({"lfs": {"sha256": b.sha256, "size": b.size, "pointerSize": len(b.pointer)}} if b.lfs else {})
            for name, b in sorted(commit.files.items())
        ]
    return said(data)


def tree(hub: "LoopbackHub", request: "Request", at: Mapping[str, str]) -> Reply:
    commit = _commit(_repo(hub, request, at), at["rev"])
    under = f"{at['path']}/" if at.get("path") else ""
    recursive = request.query.get("recursive", ["false"])[0].lower() in ("true", "1")
    entries: dict[str, Any] = {}
    for name, blob in sorted(commit.files.items()):
        if name.startswith(under):
            parts = name[len(under) :].split("/")
            for i in range(1, len(parts) if recursive else min(2, len(parts))):
                folder = under + "/".join(parts[:i])
                oid = hashlib.sha1(folder.encode()).hexdigest()
                entries.setdefault(folder, {"type": "directory", "oid": oid, "size": 0, "path": folder})
            if recursive or len(parts) == 1:
                entries[name] = blob.listing(name)
    if under and not entries:
        raise Denied(404, f"{at['path']} does not exist on this revision", "EntryNotFound")
    size = int(request.query.get("limit", [str(hub.page_size)])[0])
    return _page(hub, request, list(entries.values()), min(size, hub.page_size))


def paths_info(hub: "LoopbackHub", request: "Request", at: Mapping[str, str]) -> Reply:
    commit = _commit(_repo(hub, request, at), at["rev"])
    paths = parse_qs(request.body.decode()).get("paths", [])
    return said([commit.files[path].listing(path) for path in paths if path in commit.files])


def refs(hub: "LoopbackHub", request: "Request", at: Mapping[str, str]) -> Reply:
    repo = _repo(hub, request, at)
    tags = [{"name": name, "ref": f"refs/tags/{name}", "targetCommit": oid} for name, oid in repo.tags.items()]
    main = {"name": "main", "ref": "refs/heads/main", "targetCommit": repo.head.oid}
    return said({"branches": [main], "tags": tags, "converts": [], "pullRequests": []})


def history(hub: "LoopbackHub", request: "Request", at: Mapping[str, str]) -> Reply:
    repo = _repo(hub, request, at)
    last = repo.commits.index(_commit(repo, at["rev"]))
    author = [{"user": repo.id.partition("/")[0]}]
    commits = [
        {"id": c.oid, "title": c.title, "message": c.description, "authors": author, "date": c.date}
        for c in reversed(repo.commits[: last + 1])
    ]
    return _page(hub, request, commits, hub.page_size)


def auth_check(hub: "LoopbackHub", request: "Request", at: Mapping[str, str]) -> Reply:
    _repo(hub, request, at, open_gate=True)
    return said({})


def resolve(hub: "LoopbackHub", request: "Request", at: Mapping[str, str]) -> Reply:
    """Answer a download: the whole file or a range of it."""
    commit = _commit(_repo(hub, request, at, open_gate=True), at["rev"])
    blob = commit.files.get(at["path"])
    if blob is None:
        denied = Denied(404, "Entry not found", "EntryNotFound")
        denied.reply.headers["X-Repo-Commit"] = commit.oid
        raise denied
    headers = {"ETag": f'"{blob.etag}"', "X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
    headers |= {"Content-Type": "application/octet-stream"}
    if blob.lfs:
        headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(blob.size)}
    body, status = blob.read(), 200
    if wanted := re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", "")):
        first, last = wanted.groups()
        start = int(first) if first else max(0, blob.size - int(last))
        end = min(int(last), blob.size - 1) if first and last else blob.size - 1
        if start > end:
            return Reply(status=416, headers={"Content-Range": f"bytes */{blob.size}"})
        body, status = body[start : end + 1], 206
        headers["Content-Range"] = f"bytes {start}-{end}/{blob.size}"
    return Reply(body, status, headers)


def create(hub: "LoopbackHub", request: "Request", at: Mapping[str, str]) -> Reply:
    asked, token = json.loads(request.body), _user(hub, request)
    if token is None:
        raise Denied(401, "Invalid username or password.")
    namespace = asked.get("organization") or token.user
    kind, repo_id = f"{asked.get('type') or 'model'}s", f"{namespace}/{asked['name']}"
    url = f"{hub.url}/{'' if kind == 'models' else f'{kind}/'}{repo_id}"
    _writer(hub, request, namespace)
    if (kind, repo_id) in hub.repos:
        reply = fault(409, "You already created this model repo")
        reply.body = json.dumps({"error": "You already created this model repo", "url": url}).encode()
        return reply
    repo = hub.repos[kind, repo_id] = Repo(kind, repo_id, private=asked.get("visibility") == "private")
    repo.commit({".gitattributes": Blob(GITATTRIBUTES, False)}, "initial commit")
    return said({"url": url, "name": repo_id, "id": "0"})


def validate_yaml(hub: "LoopbackHub", request: "Request", at: Mapping[str, str]) -> Reply:
    content = json.loads(request.body)["content"]
    errors = [{"message": message} for message in card_faults(content)]
    warned = [] if content.startswith("---") else [{"message": "empty or missing yaml metadata in repo card"}]
    return said({"warnings": warned, "errors": errors}, 400 if errors else 200)


def preupload(hub: "LoopbackHub", request: "Request", at: Mapping[str, str]) -> Reply:
    repo = _repo(hub, request, at)
    _writer(hub, request, repo.id.partition("/")[0])
    files, commit = [], _commit(repo, at["rev"])
    for file in json.loads(request.body)["files"]:
        there = commit.files.get(file["path"])
        mode = "lfs" if is_lfs(file["path"], file["size"]) else "regular"
        oid = there.etag if there else None
        files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    return said({"files": files, "commitOid": commit.oid})


def lfs_batch(hub: "LoopbackHub", request: "Request", at: Mapping[str, str]) -> Reply:
    repo = _repo(hub, request, at)
    _writer(hub, request, repo.id.partition("/")[0])
    objects = []
    for wanted in json.loads(request.body)["objects"]:
        if wanted["oid"] not in hub.objects:
            href = f"{hub.url}/lfs/{wanted['oid']}"
            wanted["actions"] = {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}
        objects.append(wanted)
    return said({"transfer": "basic", "objects": objects})


def lfs_put(hub: "LoopbackHub", request: "Request", at: Mapping[str, str]) -> Reply:
    hub.objects[at["oid"]] = request.body
    return Reply(headers={"ETag": f'"{at["oid"]}"'})


def lfs_verify(hub: "LoopbackHub", request: "Request", at: Mapping[str, str]) -> Reply:
    if len(hub.objects.get(at["oid"], b"")) != json.loads(request.body)["size"]:
        raise Denied(404, "The object is not there, or has another size")
    return said({})


def xet_token(hub: "LoopbackHub", request: "Request", at: Mapping[str, str]) -> Reply:
    if hub.xet is None:
        raise Denied(404, "This Hub has no Xet: set HF_HUB_DISABLE_XET=1")
    _writer(hub, request, _repo(hub, request, at).id.partition("/")[0])
    url = f"local://{hub.xet}"
    reply = said({"casUrl": url, "accessToken": "xet", "exp": 4102444800})
    reply.headers |= {"X-Xet-Cas-Url": url, "X-Xet-Access-Token": "xet", "X-Xet-Token-Expiration": "4102444800"}
    return reply


def commit(hub: "LoopbackHub", request: "Request", at: Mapping[str, str]) -> Reply:
    repo = _repo(hub, request, at)
    _writer(hub, request, repo.id.partition("/")[0])
    lines = [json.loads(line) for line in request.body.splitlines() if line]
    header = next(line["value"] for line in lines if line["key"] == "header")
    if header.get("parentCommit") not in (None, repo.head.oid):
        raise Denied(412, "A commit has happened since. Please refresh and try again.")
    files = dict(repo.head.files)
    for key, value in ((line["key"], line["value"]) for line in lines):
        for name, blob in _changes(hub, key, value, list(files)):
            files.pop(name, None)
            if blob:
                files[name] = blob
    readme = files.get("README.md")
    if readme and (faults := card_faults(readme.read().decode())):
        raise Denied(400, f"Invalid metadata in README.md. {' '.join(faults)}")
    made = repo.commit(files, header["summary"], header.get("description", ""))
    return said({"success": True, "commitOid": made.oid, "commitUrl": f"{hub.url}/{repo.id}/commit/{made.oid}"})


def settings(hub: "LoopbackHub", request: "Request", at: Mapping[str, str]) -> Reply:
    """Set who sees a repo, and who must ask for it."""
    repo = _repo(hub, request, at)
    _writer(hub, request, repo.id.partition("/")[0])
    asked = json.loads(request.body)
    repo.gated = asked.get("gated", repo.gated)
    repo.private = asked.get("visibility", "private" if repo.private else "public") == "private"
    return said({"private": repo.private, "gated": repo.gated})


def collections(hub: "LoopbackHub", request: "Request", at: Mapping[str, str]) -> Reply:
    """List collections, or make one; a second of the same title is refused with the slug of the first."""
    if request.method == "GET":
        owners = request.query.get("owner", [])
        found = [c.data() for c in hub.collections.values() if not owners or c.slug.partition("/")[0] in owners]
        return _page(hub, request, found, hub.page_size)
    asked = json.loads(request.body)
    _writer(hub, request, asked["namespace"])
    name = re.sub(r"[^a-z0-9]+", "-", asked["title"].lower()).strip("-")
    unique = hashlib.sha1(f"{asked['namespace']} {asked['title']}".encode()).hexdigest()[:24]
    slug = f"{asked['namespace']}/{name}-{unique}"
    if slug in hub.collections:
        return said({"error": "This collection exists already", "slug": slug}, 409)
    hub.collections[slug] = Collection(slug, asked["title"], asked["private"])
    return said(hub.collections[slug].data() | {"position": 0})


def collection(hub: "LoopbackHub", request: "Request", at: Mapping[str, str]) -> Reply:
    """Show a collection, or put a model into it."""
    found = hub.collections.get(at["slug"])
    if found is None:
        raise Denied(404, "Collection not found")
    if request.method == "POST":
        _writer(hub, request, found.slug.partition("/")[0])
        name = json.loads(request.body)["item"]["id"]
        if name in found.items:
            raise Denied(409, "Item already in collection")
        found.items.append(name)
    return said(found.data() | {"position": 0})


def _changes(hub: "LoopbackHub", key: str, value: Any, names: list[str]) -> Iterator[tuple[str, Blob | None]]:
    if key == "file":
        yield value["path"], Blob(base64.b64decode(value["content"]), False)
    elif key == "lfsFile" and value["oid"] in hub.objects:
        yield value["path"], Blob(hub.objects[value["oid"]], True)
    elif key == "lfsFile" and hub.xet:
        yield value["path"], Announced(b"", True, (value["oid"], value["size"]))
    elif key == "lfsFile":
        raise Denied(400, f"The LFS object of {value['path']} was not uploaded")
    elif key == "deletedFile":
        yield value["path"], None
    elif key == "deletedFolder":
        yield from ((name, None) for name in names if name.startswith(value["path"].rstrip("/") + "/"))


_API = r"/api/(?P<kind>models|datasets|spaces)/(?P<repo>[^/]+(?:/[^/]+)?)"
_RAW = r"/(?P<kind>datasets/|spaces/)?(?P<repo>[^/]+(?:/[^/]+)?)"

ROUTES: "list[tuple[tuple[str, ...], re.Pattern[str], Route]]" = [
    (methods, re.compile(pattern), route)
    for methods, pattern, route in (
        (("GET",), r"/api/whoami-v2", whoami),
        (("GET",), r"/api/(?P<kind>models|datasets|spaces)", listing),
        (("GET",), rf"{_API}/revision/(?P<rev>.+)", info),
        (("GET",), rf"{_API}/tree/(?P<rev>refs/[^/]+/[^/]+|[^/]+)(?:/(?P<path>.+))?", tree),
        (("POST",), rf"{_API}/paths-info/(?P<rev>.+)", paths_info),
        (("GET",), rf"{_API}/refs", refs),
        (("GET",), rf"{_API}/commits/(?P<rev>.+)", history),
        (("GET",), rf"{_API}/auth-check(?:/write)?", auth_check),
        (("GET",), rf"{_API}/xet-write-token/(?P<rev>.+)", xet_token),
        (("PUT",), rf"{_API}/settings", settings),
        (("GET", "POST"), r"/api/collections", collections),
        (("GET",), r"/api/collections/(?P<slug>[^/]+/[^/]+)", collection),
        (("POST",), r"/api/collections/(?P<slug>[^/]+/[^/]+)/items", collection),
        (("GET",), _API, info),
        (("POST",), rf"{_API}/preupload/(?P<rev>.+)", preupload),
        (("POST",), rf"{_API}/commit/(?P<rev>.+)", commit),
        (("POST",), r"/api/repos/create", create),
        (("POST",), r"/api/validate-yaml", validate_yaml),
        (("POST",), rf"{_RAW}\.git/info/lfs/objects/batch", lfs_batch),
        (("PUT",), r"/lfs/(?P<oid>[0-9a-f]{64})", lfs_put),
        (("POST",), r"/lfs/(?P<oid>[0-9a-f]{64})/verify", lfs_verify),
        (("GET", "HEAD"), rf"{_RAW}/resolve/(?P<rev>refs/[^/]+/[^/]+|[^/]+)/(?P<path>.+)", resolve),
    )
]
