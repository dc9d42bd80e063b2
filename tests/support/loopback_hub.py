"""A Hub on loopback for the real huggingface_hub client: it reads, writes, and fails when told to.

In a test, take the fixture `hub` (see conftest.py), which is this process's Hub, emptied:

    commit = hub.add_model("acme/tiny", tiny_model, gated=True)      # a folder, or {"config.json": "{}"}
    hub.add_token("hf_reader", "reader", role="read", orgs={"acme": "read"})
    hub.grant("acme/tiny", "reader")                                 # opens a gated or private repo to a user
    hub.fail("POST */commit/*", "lost")                              # see fail()
    assert hub.files("me/new")["config.json"] == b"{}"
    assert [r.path for r in hub.requests if r.method == "POST"] == […]

`hf_write` is there from the start: user `me`, role write, member of the org `lab`.

For an app in its own process, start the Hub as one and give the app its address:

    python -m tests.support.loopback_hub --port 0 --model acme/tiny=FOLDER --token hf_x=me:write
    {"url": "http://127.0.0.1:41234"}          # then HF_ENDPOINT=that, HF_HUB_DISABLE_XET=1

Revisions are `main`, tags (`hub.tag()`) and commits. There are no pull requests, and no Xet but for what `xet` says.
"""

import argparse
import json
import socket
import struct
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from tests.support import hub_routes, hub_spaces
from tests.support.hub_repos import GITATTRIBUTES, Blob, Collection, Commit, Repo, blobs
from tests.support.hub_routes import Denied, Reply

hub_routes.ROUTES[:0] = hub_spaces.ROUTES

Kind = int | str | Callable[[bytes], bytes]

AWAY = 0.1  # seconds that a Hub refuses connections


@dataclass(frozen=True)
class Token:
    user: str
    role: str = "write"  # read, write or fineGrained
    orgs: Mapping[str, str] = field(default_factory=dict)  # organization → roleInOrg
    pro: bool = False
    plans: Mapping[str, str] = field(default_factory=dict)  # organization → team, enterprise, …; others are free
    expired: bool = False


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    body: bytes
    token: str | None


@dataclass
class Fault:
    route: str
    kind: Kind
    times: int
    headers: Mapping[str, str]
    message: str


class LoopbackHub:
    """Repos, tokens, faults and the log of one Hub; a context manager that serves them on 127.0.0.1.

    Args:
        port: 0 takes a free one.
        xet: An absolute folder that hf_xet uploads to; what went there is known by sha256 and size, not by its bytes.
    """

    page_size = 1000

    def __init__(self, port: int = 0, xet: Path | None = None) -> None:
        self.xet = xet
        self.lock = threading.RLock()
        self.stopped = threading.Event()
        self._place: socket.socket | None = None  # held while it is away
        self.reset()
        self._server = _Server(_bound(port), self)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def reset(self) -> None:
        """Empty it: no repo, no fault, no logged request, one token."""
        self.repos: dict[tuple[str, str], Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.served = 0  # bytes of all answers' bodies
        self.tokens = {"hf_write": Token("me", "write", {"lab": "admin"})}
        self.page_size = LoopbackHub.page_size
        self.collections: dict[str, Collection] = {}
        self.come_back()

    def start(self) -> "LoopbackHub":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def go_away(self, seconds: float | None) -> None:
        """Refuse every connection, for some seconds or until come_back(); the port stays ours."""
        with self.lock:
            if self._place is None:
                self._place = _bound(self.port)
                self._server.shutdown()
                self._server.server_close()
                if seconds is not None:
                    threading.Timer(seconds, self.come_back).start()

    def come_back(self) -> None:
        """Answer again after go_away()."""
        with self.lock:
            if self._place is not None:
                self._server = _Server(self._place, self)
                self._place = None
                self.start()

    def stop(self) -> None:
        self.come_back()
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> "LoopbackHub":
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def add_model(self, repo_id: str, source: Path | Mapping[str, bytes | str], **options: object) -> str:
        """Add a model, or a commit to one that is there.

        Args:
            repo_id: `namespace/name`, or `name` as gpt2 has it.
            source: A folder, or file names with their contents.
            options: `gated`, `private`, `downloads`, `used_storage`; `card`: text of a README.md that takes the place
                of the folder's.
        """
        return self._add("models", repo_id, source, **options)

    def add_dataset(self, repo_id: str, source: Path | Mapping[str, bytes | str], **options: object) -> str:
        """Add a data set; see add_model()."""
        return self._add("datasets", repo_id, source, **options)

    def _add(
        self,
        kind: str,
        repo_id: str,
        source: Path | Mapping[str, bytes | str],
        card: str | None = None,
        **fields: object,
    ) -> str:
        files = {".gitattributes": Blob(GITATTRIBUTES, False), **blobs(source)}
        if card is not None:
            files["README.md"] = Blob(card.encode(), False)
        with self.lock:
            repo = self.repos.setdefault((kind, repo_id), Repo(kind, repo_id))
            for name, value in fields.items():
                if name not in ("gated", "private", "downloads", "used_storage"):
                    raise TypeError(name)
                setattr(repo, name, value)
            return repo.commit(files, "Add files").oid

    def add_token(self, token: str, user: str, **fields: object) -> None:
        """Add a token: `role` (read, write, fineGrained), `orgs` (name → role in it), `expired`; `pro`, `plans`."""
        self.tokens[token] = Token(user, **fields)  # type: ignore[arg-type]

    def grant(self, repo_id: str, user: str, kind: str = "models") -> None:
        """Open a gated or private repo to a user."""
        self.repos[kind, repo_id].granted.add(user)

    def tag(self, repo_id: str, name: str, commit: str, kind: str = "models") -> None:
        self.repos[kind, repo_id].tags[name] = commit

    @property
    def away(self) -> bool:
        """Whether it refuses connections now."""
        return self._place is not None

    def commits(self, repo_id: str, kind: str = "models") -> list[Commit]:
        """Every commit, oldest first; a repo that a client created starts with one of the Hub's own."""
        return list(self.repos[kind, repo_id].commits)

    def files(self, repo_id: str, kind: str = "models") -> dict[str, bytes]:
        """What main holds, without the Hub's own .gitattributes."""
        head = self.repos[kind, repo_id].head.files
        return {name: blob.read() for name, blob in head.items() if name != ".gitattributes"}

    def fail(
        self, route: str, kind: Kind, times: int = 1, headers: Mapping[str, str] | None = None, message: str = ""
    ) -> None:
        """Make requests fail.

        Args:
            route: A shell pattern over `METHOD /path`: "POST */commit/*", "GET /api/whoami-v2", "PUT /lfs/*".
            kind: A status, answered before anything is done; `reset` (closed with half of the request's body read),
                `refused` (closed, and no connection taken for AWAY seconds, or until reset() where it is for ever),
                `lost` (done, but no reply), `hang` (nothing, until the fault is over or the Hub stops), `html` (200
                with a page), `truncate` (half the reply); or a function that changes the bytes of a request body, or
                of a reply where there is none.
            times: How often; -1 for ever.
            headers: Of the reply, such as {"Retry-After": "1"}.
            message: Of the reply, where it has a status.
        """
        self.faults.append(Fault(route, kind, times, headers or {}, message))

    def take_fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            fault = next((f for f in self.faults if f.times and fnmatchcase(f"{method} {path}", f.route)), None)
            if fault and fault.times > 0:
                fault.times -= 1
            return fault


def _bound(port: int) -> socket.socket:
    """Hold a port; whoever connects before it listens is refused."""
    place = socket.socket()
    for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):  # also while the server before it still listens
        place.setsockopt(socket.SOL_SOCKET, option, 1)
    place.bind(("127.0.0.1", port))
    return place


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, place: socket.socket, hub: LoopbackHub) -> None:
        self.hub = hub
        super().__init__(place.getsockname(), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket, self.server_address = place, place.getsockname()
        self.server_activate()

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    timeout = 60

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def do_GET(self) -> None:
        hub, path = self.server.hub, unquote(urlsplit(self.path).path)
        if hub.away:
            return self._drop()
        fault = hub.take_fault(self.command, path)
        request = self._request(half=bool(fault and fault.kind == "reset"))
        hub.requests.append(request)
        if fault and self._refused(fault):
            return
        changes = fault.kind if fault and callable(fault.kind) else None
        if changes and request.body:
            request = Request(**{**vars(request), "body": changes(request.body)})
        try:
            with hub.lock:
                reply = hub_routes.answer(hub, request)
        except Denied as e:
            reply = e.reply
        if changes and not request.body:
            reply.body = changes(reply.body)
        if fault and fault.kind == "lost":
            return self._drop()
        self._send(reply, truncated=bool(fault and fault.kind == "truncate"))

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _request(self, half: bool) -> Request:
        url = urlsplit(self.path)
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b"".join(iter(self._chunk, b""))
        else:
            length = int(self.headers.get("Content-Length", 0))
            body = self.rfile.read(length // 2 if half else length)
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        headers = {k.lower(): v for k, v in self.headers.items()}
        query = parse_qs(url.query)
        return Request(self.command, unquote(url.path), query, headers, body, token if scheme == "Bearer" else None)

    def _chunk(self) -> bytes:
        data = self.rfile.read(int(self.rfile.readline().split(b";")[0], 16))
        self.rfile.readline()
        return data

    def _refused(self, fault: Fault) -> bool:
        """Fail before anything is done."""
        hub = self.server.hub
        if fault.kind == "reset":
            self._drop()
        elif fault.kind == "refused":
            self._drop()
            hub.go_away(None if fault.times < 0 else AWAY)
        elif fault.kind == "hang":
            while fault in hub.faults and not hub.stopped.wait(0.1):
                pass
            self._drop()
        elif fault.kind == "html":
            self._send(Reply(b"<html><body>Be right back</body></html>", headers={"Content-Type": "text/html"}))
        elif isinstance(fault.kind, int):
            reply = hub_routes.fault(fault.kind, fault.message or f"Told to answer {fault.kind}")
            reply.headers.update(fault.headers)
            self._send(reply)
        else:
            return False
        return True

    def _drop(self) -> None:
        """Close so that the client sees a reset."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def _send(self, reply: Reply, truncated: bool = False) -> None:
        self.send_response(reply.status)
        for name, value in {"Content-Type": "application/json", **reply.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        if self.command != "HEAD":
            with self.server.hub.lock:
                self.server.hub.served += len(reply.body)
            self.wfile.write(reply.body[: len(reply.body) // 2] if truncated else reply.body)
        if truncated:
            self.wfile.flush()
            self._drop()

    def log_message(self, format: str, *args: object) -> None:
        """The log is `hub.requests`."""


def main() -> None:
    """Serve folders until standard input closes or the process is ended."""
    parser = argparse.ArgumentParser(description="A Hub on loopback.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--xet", type=Path, help="Folder that hf_xet uploads to.")
    for flag in ("model", "private", "gated", "dataset"):
        parser.add_argument(f"--{flag}", action="append", default=[], metavar="ID=FOLDER")
    parser.add_argument("--token", action="append", default=[], metavar="TOKEN=USER:ROLE")
    parser.add_argument("--fail", action="append", default=[], metavar="PATTERN=KIND", help="Once, a status or a word.")
    args = parser.parse_args()
    hub = LoopbackHub(args.port, args.xet)
    for flag in ("model", "private", "gated", "dataset"):
        for repo_id, _, folder in (given.partition("=") for given in getattr(args, flag)):
            options = {flag: True} if flag in ("private", "gated") else {}
            (hub.add_dataset if flag == "dataset" else hub.add_model)(repo_id, Path(folder), **options)
    for token, _, owner in (given.partition("=") for given in args.token):
        user, _, role = owner.partition(":")
        hub.add_token(token, user, role=role or "write")
    for pattern, _, kind in (given.rpartition("=") for given in args.fail):
        hub.fail(pattern, int(kind) if kind.isdigit() else kind)
    with hub:
        sys.stdout.write(json.dumps({"url": hub.url}) + "\n")
        sys.stdout.flush()
        threading.Event().wait()


if __name__ == "__main__":
    main()
