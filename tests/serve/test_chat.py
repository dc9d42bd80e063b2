"""How an answer ends: with a reason, or with its server; an answer that was cut off is never shown as a whole one."""

import json
import socket
import threading
from pathlib import Path

import pytest

from backend.errors import JobError
from backend.serve.chat import ChatOptions, stream
from backend.serve.server import Server

PIECE = {"choices": [{"index": 0, "delta": {"content": "half an"}, "finish_reason": None}]}
DONE = "data: [DONE]\n\n"
CLOSED = "0\r\n\r\n"  # the last chunk of a reply


def said(event: dict) -> str:
    """Write an event as servers do."""
    return f"data: {json.dumps({'id': '1', 'object': 'chat.completion.chunk', 'model': 'm', 'created': 1} | event)}\n\n"


def reason(name: str) -> str:
    """Write the event with which an answer ends for a reason."""
    return said({"choices": [{"index": 0, "delta": {}, "finish_reason": name}]})


def answered(folder: Path, events: str, end: str) -> list[str]:
    """Ask a server that says these events and ends its reply so; return the texts that were shown."""
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65_536)
                head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
                connection.sendall(f"{head}{len(events):x}\r\n{events}\r\n{end}".encode())

        threading.Thread(target=serve, daemon=True).start()
        port = listening.getsockname()[1]
        server = Server(folder=folder, engine="vllm", base_url=f"http://127.0.0.1:{port}/v1", key="none")
        return [each.text for each in stream(server, [{"role": "user", "content": "?"}], ChatOptions())]


@pytest.mark.parametrize("name", ["stop", "length"])
@pytest.mark.parametrize("end", [CLOSED, ""], ids=["closed", "cut"])
def test_an_answer_that_ended_for_a_reason_is_whole(tmp_path: Path, name: str, end: str) -> None:
    assert answered(tmp_path, said(PIECE) + reason(name) + DONE, end)[-1] == "half an"


@pytest.mark.parametrize(
    ("events", "end"),
    [
        (said(PIECE), CLOSED),
        (said(PIECE) + DONE, CLOSED),
        (said(PIECE), ""),
        (said(PIECE) + said({"error": {"message": "EngineCore died", "code": 500}}) + DONE, CLOSED),
        (said(PIECE) + reason("abort") + DONE, CLOSED),
        (said(PIECE) + reason("error") + DONE, CLOSED),
        ("", CLOSED),
    ],
    ids=["closed", "done", "cut", "engine", "aborted", "failed", "nothing"],
)
def test_an_answer_that_its_server_did_not_end_is_no_answer(tmp_path: Path, events: str, end: str) -> None:
    with pytest.raises(JobError, match="The server stopped while it answered"):
        answered(tmp_path, events, end)
