"""Launch: on your own machine the page opens for whoever started it, by the key in its address or a password.

Any program and any website on the machine can reach a port of it; the key and the password they do not know.
"""

import asyncio
import hmac
import ipaddress
import math
import secrets
import time
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from backend.disk import write_whole
from backend.settings import Settings

ENTER = "/enter"
_MOST_FORM = 2000  # bytes
_FORM_SECONDS = 10  # in which a form arrives
_SECRET_BYTES = 32
_LONGEST = 30  # seconds between two tries of a password


class Launch:
    """Lets in whoever started the app; the key is new at each start, and a browser that was let in stays so."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._key = secrets.token_urlsafe(24)
        self._password = settings.password.get_secret_value() if settings.password else ""
        # Cookies know no port: two studios on one machine would take each other's away.
        self._cookie = f"weightsmith-{settings.port}"
        self._pass = hmac.new(_secret(settings.data), self._password.encode(), "sha256").hexdigest()
        self._failures, self._next = 0, 0.0

    @property
    def address(self) -> str:
        """Where the page opens."""
        host = self._settings.host
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            pass  # a name
        else:
            if address.is_unspecified:
                host = "127.0.0.1"
            elif address.version == 6:
                host = f"[{host}]"
        return f"http://{host}:{self._settings.port}/?key={self._key}"

    async def answer(self, request: Request) -> Response | None:
        """Return what a browser is told that was not let in, or is being so; None where it was."""
        known = _same(request.cookies.get(self._cookie, ""), self._pass)
        if request.method == "GET" and request.scope["path"] == "/" and "key" in request.query_params:
            right = known or _same(request.query_params["key"], self._key)
            return self._welcome(request) if right else self._page(401)
        if request.method == "POST" and request.scope["path"] == ENTER and self._password:
            return await self._enter(request)
        return None if known else self._page(401)

    async def _enter(self, request: Request) -> Response:
        length = request.headers.get("content-length", "")
        if not length.isdecimal() or int(length) > _MOST_FORM or "transfer-encoding" in request.headers:
            return self._page(413)
        try:
            async with asyncio.timeout(_FORM_SECONDS), request.form(max_files=0, max_fields=2) as form:
                given = str(form.get("password", ""))
        except TimeoutError:
            return self._page(408)
        except (HTTPException, MultiPartException):
            return self._page(400, "Not a valid form.")
        # No await from here on: of forms that arrive together the second finds that the first was wrong.
        wait = self._next - time.monotonic()
        if wait > 0:
            words = f"That was too soon after a wrong password: try again in {math.ceil(wait)} s."
            return self._page(429, words, {"Retry-After": str(math.ceil(wait))})
        if _same(given, self._password):
            self._failures = 0
            return self._welcome(request)
        self._next = time.monotonic() + min(2**self._failures, _LONGEST)
        self._failures += 1
        return self._page(403, "That is not the password.")

    def _welcome(self, request: Request) -> Response:
        # Not a redirect: where a link in another website led here the browser would not send the cookie with it.
        page = HTMLResponse(_PAGE.format('<meta http-equiv="refresh" content="0;url=/">', "Opening …"))
        secure = request.url.scheme == "https"
        page.set_cookie(self._cookie, self._pass, path="/", httponly=True, samesite="strict", secure=secure)
        page.headers["Cache-Control"] = "no-store"
        return page

    def _page(self, status: int, fault: str = "", headers: dict[str, str] | None = None) -> Response:
        fault = f'<p role="alert">{fault}</p>' if fault else ""
        page = _PAGE.format("", fault + (_ASK if self._password else _WHERE))
        return HTMLResponse(page, status, {"Cache-Control": "no-store", **(headers or {})})


_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8">{}<title>Weightsmith</title>
<style>body{{font:16px/1.5 system-ui;max-width:34rem;margin:20vh auto;padding:0 1rem}}</style>
<h1>Weightsmith</h1>{}</html>"""
_WHERE = (
    "<p>Open the address that Weightsmith printed where it was started: <code>http://…/?key=…</code>. It contains"
    " the key that lets this browser in.</p>"
)
_ASK = (
    f'<form method="post" action="{ENTER}"><label>Password <input type="password" name="password" autofocus'
    ' autocomplete="current-password"></label> <button>Open</button></form><p>It is the value of'
    " <code>WEIGHTSMITH_PASSWORD</code> where Weightsmith was started. The address printed there opens the page, too."
    "</p>"
)


def _same(given: str, wanted: str) -> bool:
    """Compare in a time that tells nothing of where two texts differ."""
    return hmac.compare_digest(given.encode(), wanted.encode())


def _secret(data: Path) -> bytes:
    """Return what this folder's cookies are made of: it outlives a restart, so that open pages do."""
    path = data / "cookie.key"
    kept = path.read_bytes() if path.is_file() else b""
    if len(kept) != _SECRET_BYTES:  # cut by a crash, it could be guessed
        kept = secrets.token_bytes(_SECRET_BYTES)
        write_whole(path, kept, 0o600)
    return kept
