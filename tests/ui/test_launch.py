"""The way in on one's own machine: the printed address, a cookie, or beyond this machine a password."""

import asyncio
import time

import pytest
from starlette.requests import Request

from backend.errors import SpecError
from backend.settings import Settings, load_settings
from tests.support.doors import TABLE, sample
from tests.support.house import CANARY, Visitor, event, furnished, routes
from ui.access.launch import Launch

PASSWORD = "correct horse"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A studio on Anna's own machine."""
    with furnished(tmp_path_factory.mktemp("home"), None, "local") as house:
        house.cookie = let_in(house)
        anna = Visitor(house, house.cookie)
        house.file = anna.upload("rows.jsonl", CANARY.encode(), "annas0upload")
        anna.session = house.lasting
        assert CANARY in anna.press(event(house.page, "jobs_load"), [None])
        yield house


def key(house):
    return house.launch.address.partition("?key=")[2]


def let_in(house):
    """Open the printed address and give the cookie that comes with it."""
    reply = Visitor(house).http.get("/", params={"key": key(house)})
    assert reply.status_code == 200
    return reply.headers["set-cookie"].partition(";")[0]


def test_every_route_wants_the_cookie_and_no_other_page_may_use_it(home):
    before = home.state_of_anna()
    foreign = {"Origin": "http://localhost:3000", "Sec-Fetch-Site": "same-site"}
    rebound = {"Host": "evil.example"}
    visitors = [
        Visitor(home), Visitor(home, home.cookie[:-4] + "AAAA"), Visitor(home, home.cookie, **foreign),
        Visitor(home, home.cookie, **rebound),
    ]  # fmt: skip
    found = {path for _, path in routes(home.app)}
    assert found <= set(TABLE)
    for method, path in routes(home.app):
        address, what = sample(home, path)
        answers = [visitor.ask(method, address, **(what if method == "POST" else {})) for visitor in visitors]
        assert [status for status, _ in answers] == [401, 401, 403, 403], path
        assert not [body for _, body in answers if CANARY.encode() in body]
        if not path.startswith("/log"):
            status, _ = Visitor(home, home.cookie).ask(method, address, **(what if method == "POST" else {}))
            assert status == TABLE[path][0], path
    assert home.state_of_anna() == before


def test_no_event_happens_without_the_cookie(home):
    before = home.state_of_anna()
    for fn in home.page.fns.values():
        asked = {"fn_index": fn._id, "data": [None] * len(fn.inputs), "session_hash": home.lasting}
        assert Visitor(home).ask("POST", "/gradio_api/queue/join", json=asked)[0] == 401
    assert home.state_of_anna() == before


def test_the_key_becomes_a_cookie_and_is_in_no_later_address(home):
    reply = Visitor(home).http.get("/", params={"key": key(home)})
    attributes = reply.headers["set-cookie"].lower().split("; ")
    assert {"httponly", "samesite=strict", "path=/"} <= set(attributes)
    assert key(home) not in attributes[0] + reply.text
    assert 'content="0;url=/"' in reply.text
    assert reply.headers["cache-control"] == "no-store"


def test_an_address_of_an_earlier_start_opens_the_page_where_it_was_opened_before(home):
    assert Visitor(home, home.cookie).http.get("/", params={"key": "of yesterday"}).status_code == 200


@pytest.mark.parametrize("given", ["", "wrong", "é"])
def test_a_wrong_key_lets_nobody_in_and_says_where_the_right_one_stands(home, given):
    reply = Visitor(home).http.get("/", params={"key": given})
    assert reply.status_code == 401
    assert "set-cookie" not in reply.headers
    assert "printed where it was started" in reply.text


def test_each_start_has_another_key_and_a_browser_once_let_in_stays_so(tmp_path):
    settings = Settings(data=tmp_path)
    first, second = Launch(settings), Launch(settings)
    assert first.address != second.address
    assert first._pass == second._pass
    assert Launch(settings.model_copy(update={"data": tmp_path / "x"}).writable())._pass != first._pass
    assert (tmp_path / "cookie.key").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("host", "address"),
    [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]"), ("0.0.0.0", "127.0.0.1"), ("::", "127.0.0.1"), ("localhost",) * 2],
)
def test_the_printed_address_can_be_opened_here(tmp_path, host, address):
    assert Launch(Settings(data=tmp_path, host=host)).address.startswith(f"http://{address}:7860/?key=")


@pytest.mark.parametrize("name", ["localhost", "localhost:8080", "127.0.0.1", "127.0.0.2:1", "[::1]:7860"])
def test_this_machine_has_several_names_and_a_tunnel_another_port(home, name):
    assert Visitor(home, home.cookie, Host=name).ask("GET", "/")[0] == 200


@pytest.mark.parametrize("name", ["10.0.0.7:7860", "evil.example", "localhost.evil.example", "", "[::1", "a b"])
def test_no_other_name_leads_here(home, name):
    assert Visitor(home, home.cookie, Host=name).ask("GET", "/")[0] in (400, 403)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "studio.lan"])
def test_beyond_this_machine_there_is_a_password_or_no_start(tmp_path, host):
    with pytest.raises(SpecError, match=r"^Will not listen on '.*' unguarded\..*set WEIGHTSMITH_PASSWORD"):
        Settings(data=tmp_path, host=host).guarded()
    Settings(data=tmp_path, host=host, password=PASSWORD).guarded()


def test_a_space_needs_neither(tmp_path, monkeypatch):
    monkeypatch.setenv("SPACE_ID", "anna/studio")
    Settings(data=tmp_path, host="0.0.0.0").guarded()


def test_a_password_is_printed_nowhere_and_no_short_one_taken(tmp_path, monkeypatch):
    assert PASSWORD not in repr(Settings(data=tmp_path, password=PASSWORD))
    monkeypatch.setenv("WEIGHTSMITH_PASSWORD", "short")
    with pytest.raises(SpecError, match="WEIGHTSMITH_PASSWORD") as caught:
        load_settings()
    assert "short" not in str(caught.value).replace("shorter", "")


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A studio that others of the network open with a password, by a name too."""
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in {"HOST": "0.0.0.0", "PASSWORD": PASSWORD, "HOSTS": "studio.lan"}.items():
            patch.setenv(f"WEIGHTSMITH_{variable}", value)
        with furnished(tmp_path_factory.mktemp("network"), "studio.lan", "local") as house:
            yield house


def test_the_password_lets_in_and_a_wrong_one_slows(network):
    visitor = Visitor(network, Origin="http://studio.lan")
    asked = visitor.http.get("/")
    assert asked.status_code == 401
    assert 'type="password"' in asked.text
    assert visitor.http.post("/enter", data={"password": "wrong"}).status_code == 403
    slowed = visitor.http.post("/enter", data={"password": PASSWORD})
    assert slowed.status_code == 429
    assert "set-cookie" not in slowed.headers
    time.sleep(int(slowed.headers["retry-after"]))
    entered = visitor.http.post("/enter", data={"password": PASSWORD})
    assert entered.status_code == 200
    cookie = entered.headers["set-cookie"].partition(";")[0]
    assert PASSWORD not in entered.headers["set-cookie"]
    assert Visitor(network, cookie).ask("GET", "/")[0] == 200
    assert Visitor(network, cookie, Host="192.168.1.5:7860").ask("GET", "/")[0] == 200
    assert Visitor(network, cookie, Host="evil.example").ask("GET", "/")[0] == 403


FORM = b'--a\r\nContent-Disposition: form-data; name="%s"\r\n\r\nx\r\n'


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data", b"password=x"),
        ("multipart/form-data; boundary=a", FORM % b'password"; filename="x' + b"--a--"),
        ("multipart/form-data; boundary=a", FORM % b"a" + FORM % b"b" + FORM % b"password" + b"--a--"),
        ("application/x-www-form-urlencoded", b"a=1&b=2&password=x"),
    ],
)
def test_what_is_no_form_with_a_password_is_told_so_and_is_no_guess(network, kind, body):
    visitor = Visitor(network, Origin="http://studio.lan")
    before = network.launch._failures
    reply = visitor.http.post("/enter", content=body, headers={"Content-Type": kind})
    assert (reply.status_code, network.launch._failures) == (400, before)
    assert "Not a valid form." in reply.text


def test_another_website_cannot_try_passwords(network):
    visitor = Visitor(network, Origin="https://evil.example")
    assert visitor.http.post("/enter", data={"password": PASSWORD}).status_code == 403
    assert visitor.http.post("/enter", data={"password": PASSWORD}).status_code == 403  # and none is counted


def enter(launch, word, wait=None, **headers):
    """Return the status that a form is answered, which arrives when `wait` is over."""
    body = f"password={word}".replace(" ", "+").encode()
    given = {"content-length": str(len(body)), "content-type": "application/x-www-form-urlencoded", **headers}
    said = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive():
        if wait:
            await wait()
        return said.pop()

    scope = {
        "type": "http", "method": "POST", "path": "/enter", "query_string": b"", "scheme": "http",
        "headers": [(name.encode(), value.encode()) for name, value in given.items()], "server": ("127.0.0.1", 7860),
    }  # fmt: skip
    return launch.answer(Request(scope, receive))


def test_a_name_that_leads_nowhere_is_repeated_in_a_line_at_most(network):
    reply = Visitor(network, Host="x" * 20_000).http.get("/")
    assert reply.status_code == 403
    assert len(reply.text) < 300


@pytest.mark.parametrize("right", [0, 1, 29])
def test_of_forms_that_arrive_together_one_password_is_compared(tmp_path, right):
    launch = Launch(Settings(data=tmp_path, password=PASSWORD))

    async def together():
        arrived = asyncio.Event()
        words = [PASSWORD if i == right else f"guess {i}" for i in range(30)]
        tries = [asyncio.create_task(enter(launch, word, arrived.wait)) for word in words]
        await asyncio.sleep(0)
        arrived.set()
        return [reply.status_code for reply in await asyncio.gather(*tries)]

    found = asyncio.run(together())
    assert found.count(403) == 1
    assert found.count(429) == 29 - (right == 0)
    assert (found[right] == 200) is (right == 0)


def test_a_form_of_no_known_length_is_not_read(tmp_path):
    launch = Launch(Settings(data=tmp_path, password=PASSWORD))
    for headers in ({"content-length": "2001"}, {"content-length": ""}, {"transfer-encoding": "chunked"}):
        assert asyncio.run(enter(launch, PASSWORD, **headers)).status_code == 413
