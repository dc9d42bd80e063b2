"""Transport: how every request to the Hub leaves, whoever in huggingface_hub makes it.

No request waits for ever, none follows a redirect into this machine's own network, and what may pass by itself is
raised at once: patience.py alone decides how often and how long it is tried again.
"""

import ipaddress
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from urllib.parse import urlsplit

import httpx2
from huggingface_hub import constants, set_client_factory
from huggingface_hub.utils._http import hf_raise_for_status, hf_request_event_hook

from backend.errors import HubError
from backend.strict_json import quoted

TIMEOUT = 60.0  # seconds without a byte
_reply: ContextVar[float | None] = ContextVar("_reply", default=None)
TRANSIENT = (408, 429, 500, 502, 503, 504)


FAULTS = (
    httpx2.HTTPError,
    httpx2.InvalidURL,
    OSError,
    ValueError,
    RuntimeError,
    # the rest: an answer that is no Hub's, such as a web page with status 200
    KeyError,
    TypeError,
    AttributeError,
    UnboundLocalError,
)
"""What huggingface_hub and hf_xet raise, each in its own dress."""


class Unreachable(httpx2.TransportError):
    """No answer, or half of one. It is none of the errors at which huggingface_hub tries again by itself."""


class Client(httpx2.Client):
    """Raises what may pass by itself before the library sees it, which would try again unheard for half a minute."""

    def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """Send a request; the library asks of many to wait for ever."""
        if (request.extensions.get("timeout") or {}).get("read") is None:
            request.extensions = {
                **request.extensions,
                "timeout": httpx2.Timeout(_reply.get() or TIMEOUT, pool=None).as_dict(),
            }
        try:
            response = super().send(request, **options)
            if response.status_code in TRANSIENT:
                response.read()
        except httpx2.TransportError as e:
            raise Unreachable(str(e)) from e
        if response.status_code in TRANSIENT:
            hf_raise_for_status(response)
        return response


@contextmanager
def reply_within(seconds: float | None) -> Iterator[None]:
    """Wait less long than TIMEOUT for what is asked in this block; None waits as long."""
    before = _reply.set(seconds)
    try:
        yield
    finally:
        _reply.reset(before)


def endpoint() -> str:
    """Return the Hub's address, from HF_ENDPOINT."""
    return constants.ENDPOINT


def _client() -> httpx2.Client:
    """Make the HTTP client of huggingface_hub; it drops the token when a redirect leaves the host.

    Raises:
        HubError: The environment names a proxy or certificates that cannot be used.
    """
    hooks = {"request": [hf_request_event_hook, _stay_outside]}
    try:
        return Client(event_hooks=hooks, follow_redirects=True, timeout=None)
    except (OSError, ValueError) as e:  # its text may repeat a proxy's password
        raise HubError(
            "The Hub cannot be reached as the environment says: check HTTPS_PROXY, ALL_PROXY and SSL_CERT_FILE."
        ) from e


def _stay_outside(request: httpx2.Request) -> None:
    """Refuse a redirect into this machine's own network, such as a cloud's metadata service, or to plain HTTP."""
    home, host = urlsplit(endpoint()), request.url.host
    if host == home.hostname:
        return
    try:
        inside = not ipaddress.ip_address(host).is_global
    except ValueError:
        inside = False
    if inside or (home.scheme == "https" and request.url.scheme != "https"):
        raise HubError(f"The Hub sent us on to {quoted(host)}, which is no place of its own: check HF_ENDPOINT.")


set_client_factory(_client)
