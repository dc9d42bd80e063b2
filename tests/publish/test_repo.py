"""A repo is updated on request, opened when its commit is verified, and refused in words that say what to do."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backend import progress
from backend.errors import HubError, LoginError, SpecError
from backend.hub import client
from backend.options import parse
from backend.progress import Report, silent
from backend.publish import upload
from backend.publish.destination import check_destination
from backend.publish.options import PublishOptions
from backend.publish.push import publish
from tests.support.loopback_hub import LoopbackHub
from tests.support.published import FILES

Make = Callable[..., Path]
NEW = PublishOptions(repo_id="me/new")
ME = "hf_write"


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIGHTSMITH_HUB_PATIENCE_SECONDS", "6")  # the first pause is a 300th
    monkeypatch.setattr(client, "WAITS", (0.0, 0.0))


OLD = {"README.md": "# Old\n", "config.json": "{}", "old.safetensors": "old weights", "notes/old.txt": "old"}


UPDATE = PublishOptions(repo_id="me/new", update=True)


def test_an_update_replaces_what_a_repo_holds_in_one_commit(hub: LoopbackHub, make_artifact: Make) -> None:
    hub.add_model("me/new", OLD)
    said: list[dict[str, Any]] = []
    check_destination(UPDATE, ME)
    published = publish(make_artifact(), UPDATE, ME, Report(said.append))
    before, made = hub.commits("me/new")
    assert (made.parent, made.oid) == (before.oid, published.commit)
    assert set(hub.files("me/new")) == FILES
    assert ".gitattributes" in made.files
    assert not hub.repos["models", "me/new"].private
    assert any(e.get("text", "").endswith("any more: notes/old.txt, old.safetensors.") for e in said)
    publish(make_artifact("again"), UPDATE, ME, silent())
    assert len(hub.commits("me/new")) == 2


def test_an_update_of_what_is_not_there_makes_it(hub: LoopbackHub, make_artifact: Make) -> None:
    publish(make_artifact(), UPDATE, ME, silent())
    assert hub.repos["models", "me/new"].private
    assert set(hub.files("me/new")) == FILES


def test_a_public_repo_is_closed_before_the_update_that_is_to_be_private(hub: LoopbackHub, make_artifact: Make) -> None:
    hub.add_model("me/new", OLD)
    seen: list[bool] = []

    def look(body: bytes) -> bytes:
        seen.append(hub.repos["models", "me/new"].private)
        return body

    hub.fail("POST */commit/*", look)
    publish(make_artifact(), UPDATE.model_copy(update={"private": True}), ME, silent())
    assert seen == [True]


def test_an_update_that_somebody_was_faster_than_shows_both_commits(hub: LoopbackHub, make_artifact: Make) -> None:
    old = hub.add_model("me/new", OLD)

    def meanwhile(body: bytes) -> bytes:
        hub.add_model("me/new", {"theirs.txt": "theirs"})
        return body

    hub.fail("POST */commit/*", meanwhile)
    with pytest.raises(HubError) as caught:
        publish(make_artifact(), UPDATE, ME, silent())
    theirs = hub.commits("me/new")[-1]
    assert f"it was at commit {old[:8]} and is at {theirs.oid[:8]} now" in str(caught.value)
    assert set(hub.files("me/new")) == {"theirs.txt"}


def test_a_new_repo_is_opened_gated_and_listed_only_after_its_commit_is_verified(
    hub: LoopbackHub, make_artifact: Make
) -> None:
    options = PublishOptions(repo_id="me/new", private=False, gated="manual", collection="Tiny models")
    publish(make_artifact("a"), options, ME, silent())
    asked = [f"{r.method} {r.path.split('/')[-1]}" for r in hub.requests]
    assert json.loads(next(r for r in hub.requests if r.path == "/api/repos/create").body)["visibility"] == "private"
    committed = len(asked) - 1 - asked[::-1].index("POST main")
    assert asked[committed:][:3] == ["POST main", f"GET {hub.commits('me/new')[-1].oid}", "PUT settings"]
    repo = hub.repos["models", "me/new"]
    assert (repo.private, repo.gated) == (False, "manual")
    publish(make_artifact("b"), options.model_copy(update={"repo_id": "me/other"}), ME, silent())
    [made] = hub.collections.values()
    assert (made.title, made.private, made.items) == ("Tiny models", False, ["me/new", "me/other"])
    by_slug = PublishOptions(repo_id="lab/third", collection=made.slug)
    publish(make_artifact("c"), by_slug, ME, silent())
    assert made.items[-1] == "lab/third"


@pytest.mark.parametrize(
    ("route", "alone", "done"),
    [
        ("PUT */settings", "its visibility and its gate", (True, False, [])),
        ("POST /api/collections", "the collection 'Tiny'", (False, "auto", [])),
        ("POST /api/collections/*/items", "the collection 'Tiny'", (False, "auto", [[]])),
    ],
)
def test_what_fails_after_the_commit_is_told_alone_and_made_up_for(
    hub: LoopbackHub, make_artifact: Make, route: str, alone: str, done: tuple[bool, object, list[list[str]]]
) -> None:
    folder = make_artifact()
    options = PublishOptions(repo_id="me/new", private=False, gated="auto", collection="Tiny")
    hub.fail(route, 403)
    with pytest.raises(LoginError, match=f"^The weights are published at .*/me/new, but {alone} could not be set"):
        publish(folder, options, ME, silent())
    repo = hub.repos["models", "me/new"]
    assert (repo.private, repo.gated, [c.items for c in hub.collections.values()]) == done
    publish(folder, options, ME, silent())
    assert (repo.private, repo.gated, [c.items for c in hub.collections.values()]) == (False, "auto", [["me/new"]])
    assert len(hub.commits("me/new")) == 2


def test_options_of_a_repo_are_refused_for_a_folder(tmp_path: Path) -> None:
    for option in ({"update": True}, {"gated": "auto"}, {"collection": "Tiny"}):
        with pytest.raises(SpecError, match="is for a repo on the Hub"):
            parse(PublishOptions, {"to_folder": tmp_path / "out", **option})


def test_three_refusals_have_three_remedies(hub: LoopbackHub, make_artifact: Make) -> None:
    folder, said = make_artifact(), dict[str, str]()
    hub.add_token("hf_org", "me", orgs={"lab": "contributor"})
    hub.add_token("hf_fine", "me", role="fineGrained", orgs={"lab": "write"})
    for name, token, headers in (
        ("gated", "hf_fine", {"X-Error-Code": "GatedRepo"}),
        ("scope", "hf_fine", {}),
        ("rights", "hf_org", {}),
    ):
        hub.fail("POST */commit/*", 403, headers=headers)
        with pytest.raises(HubError) as caught:
            publish(folder, PublishOptions(repo_id="lab/new"), token, silent())
        said[name] = str(caught.value)
    assert f"ask for access at {hub.url}/lab/new" in said["gated"]
    assert "allow it at https://huggingface.co/settings/tokens" in said["scope"]
    assert "ask its admins for that at https://huggingface.co/organizations/lab/settings/members" in said["rights"]


def test_progress_is_told_within_a_large_file(
    hub: LoopbackHub, make_artifact: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_INTERVAL", 0.0)
    monkeypatch.setattr(upload, "SMALL", 50_000)
    folder, events = make_artifact(), list[dict[str, Any]]()
    publish(folder, NEW, ME, Report(events.append))
    weights = (folder / "model.safetensors").stat().st_size
    sent = [e["done"] for e in events if e.get("phase") == "uploading"]
    assert sent == sorted(sent)
    assert max(b - a for a, b in itertools.pairwise(sent)) <= 2**16 < weights / 2


def test_what_arrived_is_not_sent_again(hub: LoopbackHub, make_artifact: Make) -> None:
    folder = make_artifact()
    hub.fail("POST */commit/*", 401)
    with pytest.raises(LoginError):
        publish(folder, NEW, ME, silent())
    publish(folder, NEW, ME, silent())
    assert len([r for r in hub.requests if r.method == "PUT"]) == 1


def test_a_wait_that_the_hub_asks_for_is_told_or_kept_to(
    hub: LoopbackHub, make_artifact: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEIGHTSMITH_HUB_PATIENCE_SECONDS", "0.1")
    hub.fail("POST */commit/*", 429, headers={"Retry-After": "3000"})
    with pytest.raises(HubError, match="asked too often: try again in 3000 seconds"):
        publish(make_artifact(), NEW, ME, silent())
