"""The doors: every route, as Anna, Ben, nobody, a forger, and a page of another website with Anna's cookie.

A route that is not in the table here fails: whoever adds one says who is answered what.
"""

import asyncio
import shutil
import socket
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import httpx
import pytest

from backend.settings import load_settings
from tests.support.doors import DUPLICATE, SIGN_IN, TABLE, sample
from tests.support.house import CANARY, SPACE_HOST, TOKENS, Visitor, event, identities, profile, routes, space_of_anna
from tests.support.processes import until
from ui.access import guard
from ui.visitor import visitor as visitor_from

space = pytest.fixture(scope="module")(space_of_anna)


def test_every_route_is_in_the_table_and_the_table_holds_no_other(space):
    assert {path for _, path in routes(space.app)} == set(TABLE)


@pytest.mark.parametrize("path", TABLE)
def test_a_route_answers_whom_it_should(space, path):
    before = space.state_of_anna()
    address, what = sample(space, path)
    for method in [method for method, found in routes(space.app) if found == path]:
        found = {who: visitor.ask(method, address, **(what if method == "POST" else {}))
                 for who, visitor in identities(space).items()}  # fmt: skip
        assert tuple(status for status, _ in found.values()) == TABLE[path], method
        assert not [who for who, (_, body) in found.items() if who != "anna" and CANARY.encode() in body]
    assert space.state_of_anna() == before


@pytest.mark.parametrize("path", ["{file}", "/etc/passwd", "{data}/jobs.sqlite", "http://127.0.0.1:1/x"])
def test_an_event_reads_no_file_that_the_visitor_has_not_uploaded(space, path):
    path = path.format(file=space.file, data=space.studio.settings.data)
    read = {block: fn for fn in space.page.fns.values() for block in fn.inputs if isinstance(block, gr.File)}
    assert {block.elem_id for block in read} == {"rows-upload", "calibration-upload", "data-upload", "compare-file"}
    for cookie in (space.cookies["ben"], ""):
        visitor = Visitor(space, cookie)
        for meta in ({"meta": {"_type": "gradio.FileData"}}, {}):
            given = {"path": path, "orig_name": "x.jsonl", **meta}
            for fn in read.values():
                data = [given if isinstance(block, gr.File) else None for block in fn.inputs]
                assert "No such file" in visitor.press(fn, data)


def test_who_may_not_upload_is_told_why_as_the_page_shows_it(space):
    refused = {user: Visitor(space, space.cookies.get(user, "")).http.post("/gradio_api/upload", content=b"")
               for user in ("nobody", "carl")}  # fmt: skip
    assert {reply.status_code for reply in refused.values()} == {403}
    assert SIGN_IN in refused["nobody"].text
    assert DUPLICATE in refused["carl"].text
    assert "detail" not in refused["carl"].text


def test_the_same_file_of_two_visitors_tells_neither_of_the_other(space):
    ben, content = Visitor(space, space.cookies["ben"]), b"anna and ben have both written this"
    alone = ben.upload("alone.txt", b"ben alone has written this")
    annas = Visitor(space, space.cookies["anna"]).upload("ours.txt", content)
    assert ben.ask("GET", f"/gradio_api/file={annas}")[0] == 404
    assert ben.upload("ours.txt", content) == annas
    assert [ben.ask("GET", f"/gradio_api/file={path}")[0] for path in (annas, alone)] == [200, 200]


def test_no_spelling_of_a_path_leads_from_a_file_of_ones_own_to_another(space):
    icons, ben = Path(gr.__file__).parent / "icons", Visitor(space, space.cookies["ben"])
    own = ben.upload("own.txt", b"ben's own")
    up = "/..".join([""] * 20)
    assert ben.ask("GET", f"/gradio_api/file={icons}/huggingface-logo.svg")[0] == 200
    for begun in (own, f"{own}%3F", f"{own}%23", f"{own}%00", icons, f"{icons}/huggingface-logo.svg%3F"):
        for middle in (up, up.replace("/", "%2F")):
            with socket.create_connection(("127.0.0.1", int(space.url.rpartition(":")[2]))) as line:
                asked = f"GET /gradio_api/file={begun}{middle}{space.file} HTTP/1.1\r\nHost: {SPACE_HOST}\r\n"
                line.sendall(f"{asked}Cookie: {space.cookies['ben']}\r\nConnection: close\r\n\r\n".encode())
                said = b"".join(iter(lambda: line.recv(65536), b""))
            assert said.split()[1] in (b"400", b"404"), begun
            assert CANARY.encode() not in said


def test_what_is_no_event_is_told_so(space):
    anna = Visitor(space, space.cookies["anna"])
    for body in (b"", b"[]", b"null", b"{", b"[" * 200_000):
        assert anna.ask("POST", "/gradio_api/queue/join", content=body)[0] == 400


def test_nobody_cancels_an_event_of_somebody_else(space):
    queue = space.page._queue
    queue.event_ids_to_events["annas0event"] = SimpleNamespace(session_hash=space.lasting)
    for cookie in (space.cookies["ben"], ""):
        visitor = Visitor(space, cookie)
        said = {"session_hash": visitor.session, "fn_index": 0, "event_id": "annas0event"}
        assert visitor.ask("POST", "/gradio_api/cancel", json=said)[0] == 404
    assert queue.event_ids_to_events.pop("annas0event")


def test_a_body_that_is_too_large_is_refused_before_it_is_read(space):
    anna, most = Visitor(space, space.cookies["anna"]), space.studio.settings.max_upload_bytes
    before = set(Path(space.file).parents[1].iterdir())
    large = {"files": {"files": ("large.txt", b"x" * (most + 20_000))}}
    assert anna.ask("POST", "/gradio_api/upload", **large)[0] == 413
    assert anna.ask("POST", "/gradio_api/upload", content=iter([b"x"]))[0] == 411
    assert anna.ask("POST", "/gradio_api/queue/join", content=b"x" * 10_000_001)[0] == 413
    assert set(Path(space.file).parents[1].iterdir()) == before


@pytest.fixture
def ben(space):
    """Ben, of whose 3 MB nothing is left when he goes."""
    yield Visitor(space, space.cookies["ben"])
    for folder in {path.parent for path in Path(space.gradio.uploaded_file_dir).glob("*/*")}:
        if folder != Path(space.file).parent:
            shutil.rmtree(folder)


def megabyte(letter, size=900_000):
    return {"files": {"files": (f"{letter}.txt", letter.encode() * size)}}


def refused(visitor, letter):
    """Return why an upload was refused, or None."""
    reply = visitor.http.post("/gradio_api/upload", **megabyte(letter))
    return reply.text if reply.status_code == 413 else None


def test_all_uploads_of_one_person_together_are_capped(space, ben):
    assert [refused(ben, letter) for letter in "aabbc"] == [None] * 5
    words = "Your uploads take 2.70 MB of at most 3.00 MB here, and this one has 900 kB: delete jobs that failed"
    assert refused(ben, "d").startswith(words)
    assert refused(Visitor(space, space.cookies["anna"]), "d") is None
    uploaded = next(Path(space.gradio.uploaded_file_dir).glob("*/a.txt"))
    kept = space.studio.supervisor.uploads.keep(uploaded, "id-of-ben")
    assert kept.samefile(uploaded)
    uploaded.unlink()  # as Gradio does an hour later
    assert refused(ben, "d")
    kept.unlink()
    assert refused(ben, "d") is None


def test_of_two_uploads_at_once_that_are_too_much_the_second_is_refused(space, ben):
    assert refused(ben, "a") is refused(ben, "b") is None
    with socket.create_connection(("127.0.0.1", int(space.url.rpartition(":")[2]))) as line:
        body = httpx.Request("POST", space.url, **megabyte("c"))
        head = f"POST /gradio_api/upload HTTP/1.1\r\nHost: {SPACE_HOST}\r\nCookie: {space.cookies['ben']}\r\n"
        head += "".join(f"{name}: {body.headers[name]}\r\n" for name in ("Content-Type", "Content-Length"))
        line.sendall(f"{head}\r\n".encode() + body.read()[:500_000])
        begun = until(lambda: begun_uploads(space))
        assert refused(ben, "d")
    until(lambda: not any(path.exists() for path in begun))
    assert refused(ben, "d") is None


def begun_uploads(space):
    return [path for path in Path(space.gradio.uploaded_file_dir).iterdir() if path.is_file() and path.stat().st_size]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": f"{SPACE_HOST}.evil.example"}, 403),
        ({"Host": ""}, 403),
        ({"Origin": f"https://{SPACE_HOST}"}, 200),
        ({"Origin": "https://huggingface.co"}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "https://["}, 403),
        ({"Origin": f"https://{SPACE_HOST}.evil.example"}, 403),
        ({"Origin": f"https://evil.example/{SPACE_HOST}"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({}, 200),
    ],
)
def test_only_the_page_itself_speaks_for_its_visitor(space, headers, status):
    anna = Visitor(space, space.cookies["anna"], **headers)
    data = {"fn_index": event(space.page, "chat_forget")._id, "data": [], "session_hash": anna.session}
    assert anna.ask("POST", "/gradio_api/queue/join", json=data)[0] == status
    assert anna.ask("GET", f"/gradio_api/queue/data?session_hash={anna.session}")[0] == status


def test_a_link_to_the_page_may_stand_anywhere(space):
    assert Visitor(space, **{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}).ask("GET", "/")[0] == 200


@pytest.mark.parametrize(
    ("site", "mode", "shown_as", "path", "status"),
    [
        ("same-origin", "navigate", "document", "/logout", 307),
        ("same-origin", "navigate", "iframe", "/logout", 307),
        ("none", "navigate", "document", "/login/huggingface", 302),
        ("cross-site", "navigate", "document", "/login/callback", 307),
        ("same-origin", "no-cors", "image", "/logout", 403),
        ("same-origin", "cors", "empty", "/logout", 403),
        ("same-origin", "no-cors", "script", "/login/huggingface", 403),
        ("cross-site", "no-cors", "image", "/login/callback", 403),
        ("cross-site", "navigate", "document", "/logout", 403),
        ("same-site", "navigate", "iframe", "/logout", 403),
        ("cross-site", "navigate", "iframe", "/login/huggingface", 403),
    ],
)
def test_only_who_presses_the_button_is_signed_in_or_out(space, site, mode, shown_as, path, status):
    headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode, "Sec-Fetch-Dest": shown_as}
    assert Visitor(space, space.cookies["anna"], **headers).ask("GET", path)[0] == status


def test_a_sign_in_that_has_expired_is_none(space):
    cookie = space.provider.sign_in(space.url, SPACE_HOST, "anna", TOKENS["anna"], seconds=-1)
    assert Visitor(space, cookie).ask("GET", f"/gradio_api/file={space.file}")[0] == 404


def test_no_proxy_keeps_what_is_annas_for_others(space):
    anna = Visitor(space, space.cookies["anna"])
    for path in ("/", "/changes", f"/artifacts/{space.key}/model.safetensors", f"/gradio_api/file={space.file}"):
        reply = anna.http.get(path)
        assert reply.status_code == 200
        assert {"private", "no-store"} & set(reply.headers["cache-control"].split(", ")), path


EDGE, INNER = "203.0.114.7", "10.16.3.80"


@pytest.mark.parametrize(
    ("first", "second", "together"),
    [
        (EDGE, EDGE, True),
        (EDGE, "203.0.114.8", False),
        (f"{EDGE}, {INNER}", f"203.0.114.8, {INNER}", False),
        (f"{EDGE}, {INNER}", f"{EDGE}, 10.16.3.81", True),
        (f"1.1.1.1, {EDGE}", f"8.8.8.8, {EDGE}", True),
        (f"2606:4700::1111, {INNER}", f"2606:4700::1112, {INNER}", False),
        (INNER, INNER, True),
        ("", "", True),
        ("unknown", "unknown", True),
        ("1.1.1.1," * 4000 + EDGE, EDGE, True),
    ],
)
def test_a_stranger_has_so_many_streams_wherever_the_proxies_stand(space, monkeypatch, first, second, together):
    monkeypatch.setattr(guard, "_MOST_STREAMS", 1)
    answered = []

    async def answer(said):
        answered.append(said.get("status"))

    async def both():
        open_, ends = asyncio.Event(), asyncio.Event()

        async def streaming(scope, receive, send):
            open_.set()
            await ends.wait()
            await send({"type": "http.response.start", "status": 200, "headers": []})

        door = guard.Guard(streaming, space.studio.settings, None, lambda event: None, lambda who: ())
        scopes = [_stream_of(forwarded) for forwarded in (first, second)]
        held = asyncio.create_task(door(scopes[0], None, answer))
        await open_.wait()
        other = asyncio.create_task(door(scopes[1], None, answer))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        ends.set()
        await asyncio.gather(held, other)
        assert not door._streams

    asyncio.run(both())
    assert (429 in answered) == together


def _stream_of(forwarded):
    headers = {"host": SPACE_HOST, "x-forwarded-for": forwarded}
    return {
        "type": "http", "method": "GET", "path": "/gradio_api/heartbeat/abc", "query_string": b"", "scheme": "http",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": (INNER, 1), "server": ("127.0.0.1", 7860), "session": {},
    }  # fmt: skip


def test_the_hub_alone_may_frame_the_page_and_no_other_host_is_loaded_from(space):
    policy = Visitor(space).http.get("/").headers["content-security-policy"]
    assert policy.endswith("frame-ancestors 'self' https://huggingface.co")
    assert "default-src 'self' data: blob:" in policy


@pytest.mark.parametrize("members", ["*", "ANNA ben-org", "carl"])
def test_who_may_run_jobs_is_a_setting(space, monkeypatch, members):
    monkeypatch.setenv("WEIGHTSMITH_MEMBERS", members)
    allowed = {user for user in TOKENS if visitor_from(load_settings(), profile(user)).may_run}
    assert allowed == {"*": {"anna", "ben", "carl"}, "ANNA ben-org": {"anna", "ben"}, "carl": {"carl"}}[members]
    assert not visitor_from(load_settings(), None).may_run


def test_by_default_the_owner_of_the_space_runs_jobs(space, monkeypatch):
    monkeypatch.delenv("WEIGHTSMITH_MEMBERS")
    assert load_settings().members == ("anna",)
