"""Connections end when they are held for nothing, and who comes finds a place."""

import contextlib
import resource
import socket
import threading

import pytest

from tests.support.processes import until
from ui.access import connections
from ui.access.connections import allow_files, most_connections, server

ASKED = []


async def app(scope, receive, send):
    """Answer at once, but at /body after the body, at /long without an end, and at /refused without reading."""
    if scope["type"] != "http":
        return
    ASKED.append(scope["path"])
    if scope["path"] == "/body":
        while (await receive()).get("more_body"):
            pass
    await send(
        {
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"content-length", b"2")][: scope["path"] != "/long"],
        }
    )
    for _ in range(200 if scope["path"] == "/long" else 0):
        await send({"type": "http.response.body", "body": b"x" * 1_000_000, "more_body": True})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
def served(monkeypatch):
    """A server that has little patience and five places; gives its port."""
    for name, value in {"HEAD_SECONDS": 0.6, "BODY_SECONDS": 0.6, "LISTEN_SECONDS": 0.6, "LOOK_SECONDS": 0.1}.items():
        monkeypatch.setattr(connections, name, value)
    monkeypatch.setattr(connections, "MOST", 5)
    running = server(app, log_level="critical", lifespan="off", timeout_graceful_shutdown=1, timeout_keep_alive=60)
    with socket.create_server(("127.0.0.1", 0)) as port:
        thread = threading.Thread(target=running.run, kwargs={"sockets": [port]})
        thread.start()
        yield port.getsockname()[1]
        running.should_exit = True
        thread.join(20)


def connect(port, said=b""):
    line = socket.create_connection(("127.0.0.1", port), timeout=20)
    line.sendall(said)
    return line


def ended(line):
    """Wait until the other side has ended a connection, and give what it said."""
    said = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := line.recv(1 << 16):
            said += piece
    return said


HEAD = b"POST %s HTTP/1.1\r\nHost: here\r\nContent-Length: 9\r\n\r\n"


@pytest.mark.parametrize(
    "said",
    [b"", b"G", b"GET / HTTP/1.1\r\nHost: here\r\nX-Half: ", HEAD % b"/body", HEAD % b"/body" + b"1234"],
)
def test_who_says_half_of_what_they_want_is_hung_up_on(served, said):
    with connect(served, said) as line:
        assert ended(line) == b""


@pytest.mark.parametrize(
    "said", [b"GET / HTTP/1.1\r\nHost: here\r\n\r\n", HEAD % b"/refused", HEAD % b"/refused" + b"12"]
)
def test_an_answered_connection_is_not_kept_for_ever(served, said):
    with connect(served, said) as line:
        assert ended(line).endswith(b"ok")


def test_letters_that_drip_in_keep_no_head_open(served):
    with connect(served, b"GET / HTTP/1.1\r\n") as line, contextlib.suppress(ConnectionResetError, BrokenPipeError):
        while True:
            line.sendall(b"X")
            line.settimeout(0.05)
            with contextlib.suppress(TimeoutError):
                assert line.recv(100) == b""
                return


def test_who_does_not_listen_is_hung_up_on(served):
    with connect(served, b"GET /long HTTP/1.1\r\nHost: here\r\n\r\n") as line:
        threading.Event().wait(2)
        line.settimeout(20)
        assert len(ended(line)) < 200_000_000


def test_who_comes_finds_a_place_among_any_number_that_wait(served, monkeypatch):
    monkeypatch.setattr(connections, "HEAD_SECONDS", 60)
    held = [connect(served, b"GET / HTTP/1.1\r\nX-Half: ") for _ in range(40)]
    with connect(served, b"GET / HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n") as line:
        assert ended(line).endswith(b"ok")
    for line in held:
        line.close()


def test_a_request_that_is_being_answered_keeps_its_place(served, monkeypatch):
    monkeypatch.setattr(connections, "BODY_SECONDS", 60)
    before = len(ASKED)
    bodies = [connect(served, HEAD % b"/body" + b"1234") for _ in range(4)]
    until(lambda: len(ASKED) == before + 4)
    idle = [connect(served) for _ in range(20)]
    for line in bodies:
        line.sendall(b"56789")
        assert line.recv(100).startswith(b"HTTP/1.1 200")
    for line in (*bodies, *idle):
        line.close()


def test_there_are_fewer_connections_than_files(monkeypatch):
    allow_files()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert soft >= min(hard, 1024)
    assert 0 < most_connections() <= soft // 3
