"""What the Hub refuses is put into words that differ with what there is to do, and never hold the token."""

import os
import socket
import subprocess
import sys

import httpx
import pytest
from huggingface_hub import constants

from backend.errors import HubError, LoginError
from backend.hub import client, transport
from backend.hub.files import HubFiles
from backend.hub.search import search
from backend.processes.child import ROOT
from tests.support.loopback_hub import LoopbackHub
from tests.support.paper_models import paper_model

TOKEN = "hf_canaryCANARYcanaryCANARY"


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "WAITS", (0.01, 0.01))


def refusal(hub: LoopbackHub, repo_id: str, token: str | None) -> HubError:
    with pytest.raises(HubError) as e:
        client.check_access(repo_id, token)
    text = str(e.value)
    assert "\n" not in text
    assert TOKEN not in text
    assert "Traceback" not in text
    return e.value


def test_each_refusal_has_its_own_words(hub: LoopbackHub) -> None:
    hub.add_model("acme/gated", paper_model(), gated=True)
    hub.add_model("acme/private", paper_model(), private=True)
    hub.add_token(TOKEN, "reader")
    hub.add_token("hf_old", "reader", expired=True)
    said = {
        "anonymous at a gate": refusal(hub, "acme/gated", None),
        "not granted": refusal(hub, "acme/gated", TOKEN),
        "anonymous, nothing there": refusal(hub, "acme/nothing", None),
        "nothing there": refusal(hub, "acme/nothing", TOKEN),
        "expired": refusal(hub, "acme/gated", "hf_old"),
    }
    assert len({str(e) for e in said.values()}) == len(said)
    assert {name for name, e in said.items() if isinstance(e, LoginError)} == {
        "anonymous at a gate",
        "anonymous, nothing there",
        "expired",
    }
    assert f"{hub.url}/acme/gated" in str(said["not granted"])
    assert "does not exist, or you have no access" in str(said["nothing there"])
    assert str(refusal(hub, "acme/private", TOKEN)).replace("private", "nothing") == str(said["nothing there"])
    assert "expired" in str(refusal(hub, "acme/gated", "hf_wrong"))


def test_a_token_that_may_not_see_gates_is_told_where_to_change_that(hub: LoopbackHub) -> None:
    hub.add_token(TOKEN, "reader")
    headers = {"X-Error-Code": "GatedRepo"}
    hub.fail("GET *auth-check", 403, headers=headers, message="Enable gated repositories in your fine-grained token")
    assert "token's settings" in str(refusal(hub, "acme/x", TOKEN))


@pytest.mark.parametrize(
    ("status", "words"), [(403, "read access"), (429, "five minutes"), (500, "answered 500"), (503, "answered 503")]
)
def test_a_status_is_explained(hub: LoopbackHub, status: int, words: str) -> None:
    hub.add_token(TOKEN, "reader")
    hub.fail("GET *auth-check", status, times=-1)
    assert words in str(refusal(hub, "acme/x", TOKEN))


@pytest.mark.parametrize("fault", [429, 500, 502, 503, "reset", "lost"])
def test_what_passes_by_itself_is_tried_again(hub: LoopbackHub, fault: int | str) -> None:
    commit = hub.add_model("acme/tiny", paper_model())
    hub.fail("GET /api/models/*", fault, times=2)
    assert client.resolve("acme/tiny", "main", None) == commit


def test_a_wait_that_the_hub_asks_for_is_kept_to_or_told(hub: LoopbackHub) -> None:
    hub.add_model("acme/tiny", paper_model())
    hub.fail("GET *auth-check", 429, headers={"Retry-After": "0"})
    client.check_access("acme/tiny", None)
    hub.fail("GET *auth-check", 429, headers={"Retry-After": "3000"})
    assert "3000 seconds" in str(refusal(hub, "acme/tiny", None))


def test_a_hub_that_never_answers_is_left_also_where_the_library_would_wait_for_ever(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub.add_model("acme/tiny", paper_model())
    monkeypatch.setattr(transport, "TIMEOUT", 0.2)
    hub.fail("GET *", "hang", times=-1)
    for ask in (client.model_info, client.list_files):
        with pytest.raises(HubError, match="cannot be reached"):
            ask("acme/tiny", commit, None)


@pytest.mark.parametrize("fault", ["html", "truncate"])
def test_an_answer_that_is_no_hubs_is_an_error_in_words(hub: LoopbackHub, fault: str) -> None:
    hub.add_model("acme/tiny", paper_model())
    hub.fail("GET /api/models/*", fault, times=-1)
    with pytest.raises(HubError, match="HF_ENDPOINT"):
        client.resolve("acme/tiny", None, None)


def test_a_hub_that_is_away_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        free = f"127.0.0.1:{s.getsockname()[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", f"http://{free}")
    with pytest.raises(HubError, match=f"{free} cannot be reached"):
        client.resolve("acme/tiny", None, None)


def test_a_revision_is_resolved_to_its_commit_or_refused(hub: LoopbackHub) -> None:
    first = hub.add_model("acme/tiny", paper_model())
    hub.add_model("acme/tiny", paper_model(README__md="new"))
    hub.tag("acme/tiny", "v1", first)
    assert client.resolve("acme/tiny", "v1", None) == first
    assert client.resolve("acme/tiny", None, None) != first
    for strange in ("v9", "../..", "x" * 5000, "refs/pr/1"):
        with pytest.raises(HubError) as e:
            client.resolve("acme/tiny", strange, None)
        assert len(str(e.value)) < 300


def test_the_machine_owners_token_is_never_used_for_others(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = hub.add_model("acme/tiny", paper_model())
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    client.check_access("acme/tiny", None)
    files = HubFiles("acme/tiny", client.resolve("acme/tiny", None, None), None)
    files.read("config.json", 0, 10)
    assert files.commit == commit
    search("tiny")
    assert {r.token for r in hub.requests} == {None}


def test_a_range_of_a_file_is_all_that_is_fetched(hub: LoopbackHub) -> None:
    model = paper_model()
    files = HubFiles("acme/tiny", hub.add_model("acme/tiny", model), None)
    weights = model["model.safetensors"]
    assert files.read("model.safetensors", 8, 40) == weights[8:40]
    assert files.read("model.safetensors", len(weights) - 5, len(weights) + 100) == weights[-5:]
    assert files.read("model.safetensors", 5, 5) == b""
    hub.fail("GET *model.safetensors", lambda body: body[:3])
    with pytest.raises(HubError, match="3 bytes"):
        files.read("model.safetensors", 8, 40)


def test_the_token_does_not_follow_a_redirect_to_another_host(hub: LoopbackHub) -> None:
    hub.add_token(TOKEN, "reader")
    files = HubFiles("acme/tiny", hub.add_model("acme/tiny", paper_model()), TOKEN)
    files.entries()
    with LoopbackHub() as elsewhere:
        commit = elsewhere.add_model("acme/tiny", paper_model())
        place = f"{elsewhere.url.replace('127.0.0.1', 'localhost')}/acme/tiny/resolve/{commit}/config.json"
        hub.fail("GET *resolve*", 302, headers={"Location": place})
        assert files.read("config.json", 0, 1) == b"{"
        assert [r.token for r in elsewhere.requests] == [None]
        assert all("canary" not in str(r.headers).lower() for r in elsewhere.requests)


@pytest.mark.parametrize("place", ["http://169.254.169.254/latest/meta-data", "http://10.0.0.1/x", "http://[::1]:1/x"])
def test_a_redirect_into_the_own_network_is_not_followed(hub: LoopbackHub, place: str) -> None:
    files = HubFiles("acme/tiny", hub.add_model("acme/tiny", paper_model()), None)
    files.entries()
    hub.fail("GET *resolve*", 302, headers={"Location": place}, times=-1)
    with pytest.raises(HubError, match="no place of its own"):
        files.read("config.json", 0, 1)


def test_search_finds_models_that_write_text_by_downloads(hub: LoopbackHub) -> None:
    hub.add_model("acme/tiny-llama", paper_model(), downloads=3)
    hub.add_model("acme/tiny-gated", paper_model(), downloads=9, gated=True)
    hub.add_model("acme/tiny-vision", {"README.md": "---\npipeline_tag: image-classification\n---\n"}, downloads=99)
    reads = "---\npipeline_tag: image-text-to-text\n---\n"
    hub.add_model("acme/tiny-qwen3.5", paper_model() | {"README.md": reads}, downloads=5)
    hits = search("tiny")
    assert [(h.id, h.downloads, h.gated) for h in hits] == [
        ("acme/tiny-gated", 9, True), ("acme/tiny-qwen3.5", 5, False), ("acme/tiny-llama", 3, False),
    ]  # fmt: skip
    assert hits[0].updated
    assert len(search("tiny", limit=1)) == 1
    assert search("nothing like it") == []


def test_a_hub_that_is_not_there_is_named_within_seconds_also_while_paging():
    code = "from backend.hub.search import search; search('llama')"
    env = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=20
    )
    assert "127.0.0.1:9 cannot be reached" in done.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HTTPS_PROXY", "gopher://user:secret@127.0.0.1"),
        ("all_proxy", "socks6://user:secret@127.0.0.1"),
        ("SSL_CERT_FILE", "/nowhere/secret.pem"),
    ],
)
def test_a_way_to_the_hub_that_the_environment_names_in_vain_is_said_in_a_sentence(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(HubError, match="check HTTPS_PROXY, ALL_PROXY and SSL_CERT_FILE") as e:
        transport._client()
    assert "secret" not in str(e.value)


@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
def test_a_socks_proxy_is_taken_also_by_what_gradio_makes_as_it_is_imported(monkeypatch, scheme):
    monkeypatch.setenv("ALL_PROXY", f"{scheme}://127.0.0.1:9")
    transport._client().close()
    httpx.Client().close()
