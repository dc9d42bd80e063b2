"""The guard of a chat server: who may ask, what may be asked, and that nothing else reaches the engine."""

import asyncio
import json

import httpx
import pytest

from backend.serve.guard import BASE, COMPARED, KEY, MOST, MOST_WITH_PICTURES, PICTURES, Guard
from tests.support.pictures import data_url, encoded, shown

TURNS = [{"role": "user", "content": "hello"}]
RIGHT = {"Authorization": "Bearer right"}


@pytest.fixture
def ask(monkeypatch):
    """Send a request through the guard; gives its status, its words, and what reached the engine."""
    monkeypatch.setenv(KEY, "right")
    monkeypatch.setenv("WEIGHTSMITH_SERVER_MODEL", "tiny")
    reached = []

    async def engine(scope, receive, send):
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        reached.append((scope["path"], body))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    def asked(path, method="POST", headers=RIGHT, **more):
        async def go():
            transport = httpx.ASGITransport(app=Guard(engine))
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
                return await client.request(method, path, headers=headers, **more)

        reached.clear()
        answer = asyncio.run(go())
        return answer.status_code, answer.text, list(reached)

    return asked


def test_what_is_allowed_reaches_the_engine_as_it_was_sent(ask):
    request = {"model": "tiny", "messages": TURNS, "stream": True, "temperature": 0.5, "top_p": 0.9, "top_k": 40,
               "seed": 7, "stop": ["\n"], "max_tokens": 9, "stream_options": {"include_usage": True}}  # fmt: skip
    body = json.dumps(request).encode()
    assert ask("/v1/chat/completions", content=body) == (200, "{}", [("/v1/chat/completions", body)])
    assert ask("/v1/completions", json={"prompt": "Once", "max_tokens": 4})[0] == 200
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    assert ask("/v1/chat/completions", json={"messages": parts})[0] == 200


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("chat_template", "{{ cycler.__init__.__globals__ }}"),
        ("chat_template_kwargs", {}),
        ("response_format", {"type": "json_object"}),
        ("guided_regex", "(a+)+b"),
        ("structured_outputs", {"regex": "(a+)+b"}),
        ("tools", []),
        ("n", 10_000),
        ("logprobs", True),
        ("mm_processor_kwargs", {}),
        ("echo", True),
    ],
)
def test_any_other_field_is_refused_by_its_name(ask, field, value):
    status, words, reached = ask("/v1/chat/completions", json={"messages": TURNS, field: value})
    assert (status, reached) == (400, [])
    assert f"'{field}' is not taken here" in json.loads(words)["error"]["message"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"[]", "no JSON object"),
        (rb'{"messages": [{"role": "user", "content": "half of \ud83d"}]}', "no JSON"),
        (b'{"messages": [{"role": "user", "content": "\xed\xa0\xbd"}]}', "no JSON"),
        (rb'{"messages": [{"role": "user", "content": "x"}], "stop": ["\udc00"]}', "no JSON"),
        (b"{}", "messages must be a list"),
        (json.dumps({"messages": [{"role": "tool", "content": "x"}]}).encode(), r"messages[0].role"),
        (json.dumps({"messages": [{"role": "user", "content": "x", "name": "y"}]}).encode(), "nothing else"),
        (json.dumps({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {
            "url": "http://169.254.169.254/"}}]}]}).encode(), "pictures and files"),
        (json.dumps({"messages": TURNS, "max_tokens": 10**9}).encode(), "max_tokens must be"),
        (json.dumps({"messages": TURNS, "max_tokens": True}).encode(), "max_tokens must be"),
        (json.dumps({"messages": TURNS, "model": "/etc/passwd"}).encode(), "There is one model here, 'tiny'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_a_sentence(ask, body, words):
    status, said, reached = ask("/v1/chat/completions", content=body)
    assert (status, reached) == (400, [])
    assert words in json.loads(said)["error"]["message"]


SCORED = {"prompt": "Once", **COMPARED}


def test_the_check_alone_learns_how_likely_the_next_token_is_and_from_the_base_model_too(ask, monkeypatch):
    for request in (SCORED, SCORED | {"model": "/base"}):
        assert ask("/v1/completions", json=request)[0] == 400
    monkeypatch.setenv(BASE, "/base")
    for request in (SCORED, SCORED | {"model": "tiny"}, SCORED | {"model": "/base"}):
        body = json.dumps(request).encode()
        assert ask("/v1/completions", content=body) == (200, "{}", [("/v1/completions", body)])


@pytest.mark.parametrize(
    ("path", "request_"),
    [
        ("/v1/completions", SCORED | {"logprobs": 5}),
        ("/v1/completions", SCORED | {"max_tokens": 2}),
        ("/v1/completions", SCORED | {"prompt_logprobs": 0}),
        ("/v1/completions", SCORED | {"model": "other"}),
        ("/v1/completions", SCORED | {"prompt": [1, 2]}),
        ("/v1/completions", {"prompt": "Once", "model": "/base"}),
        ("/v1/chat/completions", {"messages": TURNS, "model": "/base"}),
        ("/v1/chat/completions", {"messages": TURNS, **COMPARED}),
    ],
)
def test_nothing_more_than_the_comparison_is_open_to_the_check(ask, monkeypatch, path, request_):
    monkeypatch.setenv(BASE, "/base")
    assert ask(path, json=request_)[::2] == (400, [])


def test_too_large_a_request_is_refused(ask):
    assert ask("/v1/completions", content=b"x" * (MOST + 1))[::2] == (413, [])


@pytest.fixture
def ask_seeing(ask, monkeypatch):
    """The same, of a model that reads pictures."""
    monkeypatch.setenv(PICTURES, "1")
    return ask


def test_pictures_reach_a_model_that_reads_them_as_they_were_sent(ask_seeing):
    for kind in ("png", "jpeg", "webp"):
        body = json.dumps({"messages": shown(data_url(encoded(kind), kind)) * 4}).encode()
        assert ask_seeing("/v1/chat/completions", content=body) == (200, "{}", [("/v1/chat/completions", body)])


def test_pictures_reach_no_model_that_reads_none(ask):
    status, words, reached = ask("/v1/chat/completions", json={"messages": shown(data_url(encoded()))})
    assert (status, reached) == (400, [])
    assert "pictures and files are not taken here" in words


URL = data_url(encoded())


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}, "no address is fetched"),
        ({"type": "image_url", "image_url": {"url": "https://huggingface.co/a.png"}}, "no address is fetched"),
        ({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}, "no address is fetched"),
        ({"type": "image_url", "image_url": {"url": "/etc/passwd"}}, "no address is fetched"),
        ({"type": "image_url", "image_url": {"url": URL.replace("png", "svg+xml")}}, "no address is fetched"),
        ({"type": "image_url", "image_url": {"url": URL.replace("image", "video")}}, "no address is fetched"),
        ({"type": "image_url", "image_url": {"url": URL.upper()}}, "no address is fetched"),
        ({"type": "image_url", "image_url": {"url": ["data:"]}}, "no address is fetched"),
        ({"type": "image_url", "image_url": {"url": URL[:-4] + "\n==="}}, "is not valid base64"),
        ({"type": "image_url", "image_url": {"url": URL[:-4] + "éééé"}}, "is not valid base64"),
        ({"type": "image_url", "image_url": {"url": data_url(encoded("gif"))}}, "is not a valid PNG, JPEG or WebP"),
        ({"type": "image_url", "image_url": {"url": data_url(encoded(size=(5000, 5000)))}}, "pixels, 16.8 million"),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 9_000_000}}, "more than 6 MB"),
        ({"type": "image_url", "image_url": {"url": URL, "detail": "high"}}, "and nothing else"),
        ({"type": "image_url", "image_url": {"url": URL}, "uuid": "x"}, "and nothing else"),
        ({"type": "image_url", "image_url": URL}, "and nothing else"),
        ({"type": "video_url", "video_url": {"url": URL}}, "and nothing else"),
        ({"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}, "and nothing else"),
        ({"type": "image_embeds", "image_embeds": ""}, "and nothing else"),
        ("text", "and nothing else"),
        (None, "and nothing else"),
    ],
)  # fmt: skip
def test_what_is_no_picture_that_is_taken_is_refused_in_a_sentence(ask_seeing, part, words):
    turn = {"role": "user", "content": [{"type": "text", "text": "What is it?"}, part]}
    status, said, reached = ask_seeing("/v1/chat/completions", json={"messages": [turn]})
    assert (status, reached) == (400, [])
    assert words in json.loads(said)["error"]["message"]


def test_too_many_pictures_or_too_large_a_request_with_them_are_refused(ask_seeing):
    status, words, reached = ask_seeing("/v1/chat/completions", json={"messages": shown(URL) * 5})
    assert (status, reached) == (400, [])
    assert "has 5 pictures, 4 at most" in words
    assert ask_seeing("/v1/chat/completions", content=b"x" * (MOST_WITH_PICTURES + 1))[::2] == (413, [])


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/metrics"), ("GET", "/version"), ("POST", "/tokenize"), ("POST", "/v1/load_lora_adapter"),
        ("POST", "/sleep"), ("GET", "/docs"), ("POST", "/v1/embeddings"), ("GET", "/v1/chat/completions"),
    ],
)  # fmt: skip
def test_no_other_route_of_an_engine_is_open(ask, method, path):
    assert ask(path, method)[::2] == (404, [])
    assert ask(path, method, headers={})[::2] == (401, [])


def test_the_key_is_asked_for_everywhere_but_at_the_health_check(ask):
    assert ask("/health", "GET", headers={})[::2] == (200, [("/health", b"")])
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "right"}):
        assert ask("/v1/models", "GET", headers=headers)[::2] == (401, [])
    assert [m["id"] for m in json.loads(ask("/v1/models", "GET")[1])["data"]] == ["tiny"]
