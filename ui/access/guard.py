"""Guard: which requests reach the page, and what the browser is told to refuse.

Gradio alone lets any website call with a visitor's session, and any visitor read what another has uploaded.
"""

import asyncio
import ipaddress
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from email.message import Message as Headed
from pathlib import Path
from urllib.parse import urlsplit

import gradio as gr
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backend.errors import LoginError
from backend.settings import Settings
from backend.strict_json import quoted
from ui.access.browser_event import Refused, Said, is_name, read_event
from ui.access.launch import Launch
from ui.access.ownership import Ownership
from ui.kit.format import size
from ui.visitor import Visitor, visitor_of

HUB = "huggingface.co"

OPEN = {
    "GET": re.compile(
        r"/|/theme\.css|/favicon\.ico|/robots\.txt|/(assets|static)/.+"
        r"|/gradio_api/(app_id|queue/data|upload_progress|heartbeat/\w+|file=.+)"
        r"|/login/(huggingface|callback)|/logout|/artifacts/.+|/changes"
    ),
    "POST": re.compile(r"/gradio_api/(queue/join|cancel|upload)"),
}
"""The routes that the page uses. All others of Gradio's are closed, and so is whatever its next version brings."""

_GUARDED = ("/gradio_api/", "/artifacts/", "/changes")
_JOIN = "/gradio_api/queue/join"
_UPLOAD = "/gradio_api/upload"
_FILE = "/gradio_api/file="
_HEARTBEAT = "/gradio_api/heartbeat/"
_STREAMS = ("/gradio_api/queue/data", _HEARTBEAT)
_MOST_STREAMS = 60  # of one visitor; a page that is open has two
_HOPS = 5  # between a visitor and a Space, at most
_ICONS = f"{Path(gr.__file__).parent}/icons/"

_SIGN = ("/login/", "/logout")
"""Routes that change who is signed in, though a browser asks for them as for a picture."""
_CALLED_BACK = "/login/callback"

_MOST_JSON = 10_000_000  # bytes; a conversation is sent as a whole with each question
_MOST_JSON_OF_STRANGERS = 2_000_000  # bytes; who may not chat sends at most a recipe
_SECONDS = 60  # in which an event arrives
_READERS = 2  # threads
_LONGEST_TYPE = 200  # characters of a Content-Type; a boundary has at most 70
_FORM = 10_000  # bytes of a form around its file

# Gradio needs inline scripts and eval. Nothing comes from, or goes to, another host: an image in an answer or a card
# would tell that host what is read here.
_POLICY = (
    "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; object-src 'none'; base-uri 'self';"
    " form-action 'self'; frame-ancestors "
)


class Guard:
    """The ASGI layer in front of everything; answers stream through it.

    Args:
        app: What is behind it.
        settings: Of the machine's owner.
        launch: Lets in who started the app; None on a Space, which everybody may look at.
        session_of: Gives the session that a queued event of Gradio's belongs to.
        kept: Gives what is kept of a visitor's uploads beside what Gradio has of them.
        knows: Says whether the page has an event of this number.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        launch: Launch | None,
        session_of: Callable[[str], str | None],
        kept: Callable[[str], Iterable[Path]],
        knows: Callable[[int], bool] = lambda index: True,
    ) -> None:
        self._app = app
        self._settings = settings
        self._launch = launch
        self._session_of = session_of
        self._kept = kept
        self._knows = knows
        self._streams = Counter[str]()
        self._readers = ThreadPoolExecutor(_READERS, "events")
        self._ownership = Ownership()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or hand it on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            send = self._with_headers(send)
            try:
                await self._pass(Request(scope, receive), send)
            except Refused as e:
                # Gradio shows what an upload is answered as it stands, and of what an event is answered the detail.
                plain = scope["path"] == _UPLOAD
                told = PlainTextResponse(e.words, e.status) if plain else JSONResponse({"detail": e.words}, e.status)
                await told(scope, receive, send)
            except ClientDisconnect:  # before it had said everything
                return
        else:  # the page uses no web socket
            await send({"type": "websocket.close", "code": 1008})

    async def _pass(self, request: Request, send: Send) -> None:
        # Not request.url: its path ends at a question mark that was sent as %3F, which routes do not do.
        scope = request.scope
        receive = request.receive
        path = request.scope["path"]
        self._check_host(request)
        self._check_origin(request)
        if self._launch and (answer := await self._launch.answer(request)):
            return await answer(scope, receive, send)
        method = "GET" if request.method == "HEAD" else request.method
        if method not in OPEN or not OPEN[method].fullmatch(path):
            raise Refused(404, "There is nothing here.")
        visitor = visitor_of(self._settings, scope)
        who = visitor.owner
        if path == _UPLOAD:
            return await self._take(request, send, visitor)
        if method == "POST":
            self._check_length(request, _MOST_JSON if visitor.may_run else _MOST_JSON_OF_STRANGERS)
            body = await self._body(request)
            # Not in the event loop: it is everybody's, and what is read here somebody has made up.
            said = await asyncio.get_running_loop().run_in_executor(self._readers, read_event, body)
            self._check_event(said, path, who)
            receive = _again(body, receive)
        elif path.startswith(_FILE):
            self._check_file(path.removeprefix(_FILE), who)
        else:
            names = [request.query_params.get(name) for name in ("session_hash", "upload_id")]
            self._check_sessions([*names, path.removeprefix(_HEARTBEAT) if _HEARTBEAT in path else None], who)
        if method == "GET" and path.startswith(_STREAMS) and self._settings.on_space:
            return await self._stream(who or _address(request), scope, receive, send)
        await self._app(scope, receive, send)

    async def _stream(self, whose: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer without an end, so often at a time for one visitor that others find a place."""
        if self._streams[whose] >= _MOST_STREAMS:
            raise Refused(429, "You have too many tabs of this page open: close some of them.")
        self._streams[whose] += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._streams[whose] -= 1
            if not self._streams[whose]:
                del self._streams[whose]

    async def _take(self, request: Request, send: Send, visitor: Visitor) -> None:
        """Let an upload in, if its sender may and there is room for it beside what is theirs already."""
        try:
            who = visitor.member()
        except LoginError as e:
            raise Refused(403, str(e)) from e
        self._check_sessions([request.query_params.get("upload_id")], who)
        length = self._check_length(request, self._settings.max_upload_bytes + _FORM)
        most = self._settings.upload_quota_bytes
        taken = self._ownership.taken(who, self._kept(who))
        if most is not None and taken + length > most + _FORM:
            raise Refused(
                413,
                f"Your uploads take {size(taken)} of at most {size(most)} here, and this one has {size(length)}: delete"
                " jobs that failed or were canceled, or come back in an hour, when files that no job needs are gone.",
            )
        # No await until here: of two uploads at once the second finds the first on its way.
        with self._ownership.coming(length, who) as arrived:
            await self._app(request.scope, _whole(request), self._noting(request, send, who, arrived))

    def _check_host(self, request: Request) -> None:
        """Refuse a name that somebody else could have pointed to this machine.

        The port is not compared: behind a tunnel or a container's mapping the browser sees another.
        """
        name = _name(request.headers.get("host", ""))
        if name in self._settings.known_hosts:
            return
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            address = None
        if address is None or (self._settings.loopback and not address.is_loopback):
            raise Refused(403, f"The studio is not known as {quoted(name)}: set WEIGHTSMITH_HOSTS to that name.")

    def _check_origin(self, request: Request) -> None:
        """Refuse what a page of another website sends with the visitor's cookie."""
        origin = request.headers.get("origin")
        site = request.headers.get("sec-fetch-site", "none")
        if origin is not None:
            place = origin.partition("://")[2].lower()
            ours = place == request.headers.get("host", "").lower()
            named = _name(place) in self._settings.known_hosts - {"localhost"}
            if not (ours or named or (self._settings.on_space and origin == f"https://{HUB}")):
                raise Refused(403, "This request comes from the page of another website.")
        elif site not in ("none", "same-origin") and (
            request.method not in ("GET", "HEAD") or request.scope["path"].startswith(_GUARDED)
        ):
            raise Refused(403, "This request comes from the page of another website.")
        if request.scope["path"].startswith(_SIGN):
            self._check_pressed(request, site)

    def _check_pressed(self, request: Request, site: str) -> None:
        """Refuse to sign anybody in or out for a picture or a frame, and for a link of another website.

        The Hub sends back from its own page who has signed in there. Browsers that say nothing are of before 2023.
        """
        mode, shown_as = (request.headers.get(f"sec-fetch-{name}") for name in ("mode", "dest"))
        pressed = mode in (None, "navigate") and shown_as in (None, "document", "iframe")
        if not pressed or (site not in ("none", "same-origin") and request.scope["path"] != _CALLED_BACK):
            raise Refused(403, "Use the button on the page to sign in or out.")

    def _check_length(self, request: Request, most: int) -> int:
        """Refuse a body that is too large before any of it is read, and return its size in bytes."""
        length = request.headers.get("content-length", "")
        if not length.isdecimal() or "transfer-encoding" in request.headers:
            raise Refused(411, "The length of the body is missing.")
        if int(length) > most:
            raise Refused(413, f"This is larger than {most} bytes: send less.")
        return int(length)

    async def _body(self, request: Request) -> bytes:
        try:
            async with asyncio.timeout(_SECONDS):
                return await request.body()
        except TimeoutError as e:
            raise Refused(408, f"This took longer than {_SECONDS} s to arrive: send it again.") from e

    def _check_event(self, said: Said, path: str, who: str | None) -> None:
        """Refuse an event that the page does not have, one in another's session, and one that reads another's file."""
        self._check_sessions([said.session], who)
        if said.event is not None and self._session_of(said.event) not in (None, said.session):
            raise Refused(404, "No such event.")
        if path == _JOIN and said.number is not None and not self._knows(said.number):
            raise Refused(404, "No such event: reload the page.")
        if not all(self._ownership.has_file(path, who) for path in said.paths):
            raise Refused(404, "No such file: upload it again.")

    def _check_sessions(self, sessions: Sequence[object], who: str | None) -> None:
        named = [session for session in sessions if session is not None]
        if not all(is_name(session) and self._ownership.enter(session, who) for session in named):
            raise Refused(404, "No such session: reload the page.")

    def _check_file(self, path: str, who: str | None) -> None:
        """Refuse a file that the visitor has not uploaded; Gradio's own icons are everybody's."""
        icon = path.startswith(_ICONS) and "/" not in path.removeprefix(_ICONS)
        if not icon and not self._ownership.has_file(path, who):
            raise Refused(404, "There is nothing here.")

    def _noting(self, request: Request, send: Send, who: str, arrived: Callable[[], None]) -> Send:
        """Note whose the uploaded files are before the browser hears where they lie."""
        headers = MutableHeaders(scope=request.scope)
        del headers["accept-encoding"]  # the answer is read here
        started: list[Message] = []
        said = bytearray()

        async def note(message: Message) -> None:
            if message["type"] == "http.response.start":
                started.append(message)
                return
            said.extend(message.get("body", b""))
            if message.get("more_body"):
                return
            if started[0]["status"] == 200:
                self._ownership.add_files(json.loads(bytes(said)), who)
            arrived()
            await send(started[0])
            await send({"type": "http.response.body", "body": bytes(said)})

        return note

    def _with_headers(self, send: Send) -> Send:
        framed = f"'self' https://{HUB}" if self._settings.on_space else "'self'"

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = _POLICY + framed
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "same-origin"
                headers["Cross-Origin-Resource-Policy"] = "same-origin"
                headers.setdefault("Cache-Control", "private")  # a proxy of many visitors knows no cookie
            await send(message)

        return send_with_headers


def _name(host: str) -> str:
    """Return the name or address in a Host header, without the port and the brackets of an IPv6 address."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _address(request: Request) -> str:
    """Return where an anonymous visitor of a Space comes from, as the Hub's proxies say: each adds whom it heard.

    The last of the open network is the visitor; behind it stand the proxies, and before it what the visitor made up.
    """
    told = [part.strip() for part in request.headers.get("x-forwarded-for", "").rsplit(",", _HOPS)[-_HOPS:]]
    near = request.client.host if request.client else ""
    return f"from {next(filter(_is_public, reversed(told)), told[-1][:60] or near)}"


def _is_public(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False


def _whole(request: Request) -> Receive:
    """Return what receives an upload to its end; one that breaks off ends as a malformed form.

    Of a malformed form Gradio deletes what it has written. Half a file of who hangs up it would forget, on the disk.
    """
    # What reads a header's parts takes a time that grows with the square of their number.
    if len(request.headers.get("content-type", "")) > _LONGEST_TYPE:
        raise Refused(400, "Not a valid form.")
    head = Headed()
    head["Content-Type"] = request.headers.get("content-type", "")
    malformed = f"\r\n--{head.get_boundary('')}\r\n\0\r\n".encode()
    ended = False

    async def receive_whole() -> Message:
        nonlocal ended
        said = await request.receive()
        if said["type"] == "http.disconnect" and not ended:
            said = {"type": "http.request", "body": malformed, "more_body": False}
        ended = ended or not said.get("more_body", False)
        return said

    return receive_whole


def _again(body: bytes, receive: Receive) -> Receive:
    """Return what receives a body again that was read before; later messages, such as a disconnect, follow it."""
    given: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return given.pop() if given else await receive()

    return receive_again
