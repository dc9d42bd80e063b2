"""Where a publication can go: the repos to choose from, and what a free account has room for."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backend.errors import HubError, SpecError
from backend.hub import client
from backend.hub.pages import LIMITS_PAGE
from backend.hub.patience import Patience
from backend.options import parse
from backend.progress import silent
from backend.publish import destination
from backend.publish.destination import check_destination, choices
from backend.publish.options import PublishOptions
from backend.publish.push import publish
from backend.publish.storage import shortage
from backend.recipes import parse_recipe
from backend.stages.prepare import prepare
from tests.support.loopback_hub import LoopbackHub

Make = Callable[..., Path]
NEW = PublishOptions(repo_id="me/new")
ME = "hf_write"
ORGS = {"acme": "write", "lab": "read", "team": "contributor", "gone": "no_access"}
FULL = (
    f"'me' holds 90 GB in private repos and 20 GB are to come, but a free account has 100 GB of private storage: delete"
    f" what is not needed any more, or choose a paid plan or another namespace, see {LIMITS_PAGE}"
)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "WAITS", (0.0, 0.0))


def full(hub: LoopbackHub, namespace: str = "me") -> None:
    """Fill 90 GB of a namespace's private storage; what everybody sees takes none of it."""
    hub.add_model(f"{namespace}/secret", {"config.json": "{}"}, private=True, used_storage=50 * 10**9)
    hub.add_model(f"{namespace}/open", {"config.json": "{}"}, used_storage=500 * 10**9)
    hub.add_dataset(f"{namespace}/rows", {"rows.csv": "a"}, private=True, used_storage=40 * 10**9)


def whoami(hub: LoopbackHub) -> int:
    return sum(request.path == "/api/whoami-v2" for request in hub.requests)


def test_there_is_a_repo_to_choose_in_every_namespace_that_one_may_write_to(hub: LoopbackHub) -> None:
    hub.add_token("hf_member", "me", orgs=ORGS)
    assert choices("tiny-nf4", (), "hf_member") == ["me/tiny-nf4", "acme/tiny-nf4", "team/tiny-nf4"]
    assert choices("tiny-nf4", ["mit", "llama3.2"], "hf_member")[1] == "acme/Llama-tiny-nf4"
    assert whoami(hub) == 1  # the Hub answers it seldom


@pytest.mark.parametrize(
    ("name", "repo"),
    [
        ("my model (2)", "me/my-model-2"),
        ("a--b..c_", "me/a-b.c"),
        ("模型", None),
        ("x" * 94, None),
        ("0-check", "me/0-check"),
    ],
)
def test_a_name_that_is_offered_is_one_that_a_repo_can_have(hub: LoopbackHub, name: str, repo: str | None) -> None:
    hub.add_token("hf_alone", "me")
    found = choices(name, (), "hf_alone")
    assert found == ([repo] if repo else [])
    assert not repo or parse(PublishOptions, {"repo_id": repo}).repo_id == repo


def test_nothing_is_offered_to_whom_the_hub_does_not_know_or_lets_read_alone(hub: LoopbackHub) -> None:
    hub.add_token("hf_may_read", "me", role="read", orgs={"acme": "admin"})
    assert [choices("tiny", (), token) for token in (None, "", "hf_stranger", "hf_may_read")] == [[], [], [], []]


@pytest.mark.parametrize("fault", [429, 500, "refused", "reset", "html", "truncate"])
def test_a_hub_that_is_out_of_order_offers_nothing_and_is_asked_again_the_next_time(
    hub: LoopbackHub, fault: int | str
) -> None:
    token = f"hf_at_{fault}"
    hub.add_token(token, "me")
    hub.fail("GET /api/whoami-v2", fault)
    assert choices("tiny", (), token) == []
    hub.come_back()
    assert choices("tiny", (), token) == ["me/tiny"]


def test_a_hub_that_takes_its_time_is_not_waited_for(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(body: bytes) -> bytes:
        time.sleep(1)
        return body

    hub.add_token("hf_slow", "me")
    hub.fail("GET /api/whoami-v2", slow, times=-1)
    monkeypatch.setattr(destination, "HASTY", Patience((), reply=0.1))
    assert choices("tiny", (), "hf_slow") == []
    monkeypatch.setattr(destination, "HASTY", Patience((), reply=10))
    assert choices("tiny", (), "hf_slow") == ["me/tiny"]


def test_a_free_account_is_told_what_it_holds_what_is_to_come_and_what_it_may_hold(hub: LoopbackHub) -> None:
    full(hub)
    assert shortage("me", 20 * 10**9, ME) == FULL
    assert whoami(hub) == 1
    assert shortage("me", 10 * 10**9, ME) is None
    assert whoami(hub) == 1
    assert shortage("lab", 20 * 10**9, ME) is None


def test_who_pays_is_not_told(hub: LoopbackHub) -> None:
    for namespace in ("me", "free", "paid"):
        full(hub, namespace)
    hub.add_token("hf_pro", "me", pro=True, orgs={"free": "write", "paid": "write"}, plans={"paid": "team"})
    told = {namespace: shortage(namespace, 20 * 10**9, "hf_pro") for namespace in ("me", "free", "paid")}
    assert told == {"me": None, "free": FULL.replace("me", "free", 1), "paid": None}


@pytest.mark.parametrize("route", ["GET /api/models", "GET /api/datasets", "GET /api/spaces", "GET /api/whoami-v2"])
@pytest.mark.parametrize("fault", [401, 403, 404, 500, "refused", "html"])
def test_what_cannot_be_found_out_is_no_shortage(hub: LoopbackHub, route: str, fault: int | str) -> None:
    full(hub)
    hub.fail(route, fault)
    assert shortage("me", 20 * 10**9, ME) is None
    hub.come_back()
    assert shortage("me", 20 * 10**9, ME) == FULL


def test_a_shortage_is_told_and_nothing_is_refused(hub: LoopbackHub) -> None:
    full(hub)
    told: list[str] = []
    check_destination(NEW, ME, 20 * 10**9, told.append)
    assert told == [FULL]
    check_destination(NEW.model_copy(update={"private": False}), ME, 20 * 10**9, told.append)
    assert told == [FULL, FULL]  # private until it was read back
    update = PublishOptions(repo_id="me/open", update=True)
    check_destination(update, ME, 20 * 10**9, told.append)
    assert told == [FULL, FULL]
    check_destination(update.model_copy(update={"private": True}), ME, 20 * 10**9, told.append)
    assert told == [FULL, FULL, FULL]


def test_a_recipe_that_publishes_is_measured_before_it_starts(
    hub: LoopbackHub, tiny_model: Path, tmp_path: Path
) -> None:
    hub.add_model("acme/tiny", tiny_model)
    hub.add_model("me/secret", {"config.json": "{}"}, private=True, used_storage=100 * 10**9)
    recipe: dict[str, Any] = {"base_model": "acme/tiny", "stages": [{"stage": "quantize", "method": "nf4"}]}
    told: list[str] = []
    prepare(parse_recipe(recipe), tmp_path, ME, tell=told.append)
    assert told == []
    prepare(parse_recipe(recipe | {"publish": {"repo_id": "me/new"}}), tmp_path, ME, tell=told.append)
    assert len(told) == 1
    assert told[0].startswith("'me' holds 100 GB in private repos and ")


@pytest.mark.parametrize("place", ["POST */preupload/*", "POST *.git/info/lfs/objects/batch", "POST */commit/*"])
@pytest.mark.parametrize(
    ("said", "words"),
    [
        (
            "Private repository storage limit reached, please upgrade your plan to increase your private storage limit",
            r"The private storage of 'me' is full: https://.*/storage-limits says how to free some or",
        ),
        (
            "Your storage patterns tripped our internal systems! Please contact us at website@huggingface.co so we can"
            " verify your account and unlock more storage for your use-case.",
            r"The Hub takes no more files of 'me' before .*: write to website@huggingface.co, then publish again",
        ),
    ],
)
def test_a_full_storage_is_called_so_and_nothing_is_sent_twice(
    hub: LoopbackHub, make_artifact: Make, place: str, said: str, words: str
) -> None:
    folder = make_artifact()
    hub.fail(place, 403, message=said)
    with pytest.raises(HubError, match=words) as caught:
        publish(folder, NEW, ME, silent())
    assert type(caught.value) is HubError  # signing in again would not help
    assert "The empty private repo" in str(caught.value)
    publish(folder, NEW, ME, silent())
    assert len(hub.commits("me/new")) == 2
    assert sum(request.method == "PUT" for request in hub.requests) == 1


def test_a_token_that_may_not_write_is_told_apart_from_a_storage_that_is_full(
    hub: LoopbackHub, make_artifact: Make
) -> None:
    hub.fail("POST */commit/*", 403)
    with pytest.raises(HubError, match="Your token may not write there"):
        publish(make_artifact(), PublishOptions(repo_id="me/storage-limit"), ME, silent())


@pytest.mark.parametrize(
    ("variants", "fault"), [(["tiny"], "lacks its namespace"), (["me/x", "a b/c"], "not a repo id")]
)
def test_a_variant_that_is_no_repo_is_refused(variants: list[str], fault: str) -> None:
    with pytest.raises(SpecError, match=rf"variants: .*{fault}"):
        parse(PublishOptions, {"repo_id": "me/x", "variants": variants})


def test_the_card_of_a_repo_links_to_its_variants(hub: LoopbackHub, make_artifact: Make, tmp_path: Path) -> None:
    folder, given = make_artifact(), ("me/new", "acme/tiny-int8", "acme/tiny-int8")
    publish(folder, parse(PublishOptions, {"repo_id": "me/new", "variants": given}), ME, silent())
    link = "* [acme/tiny-int8](https://huggingface.co/acme/tiny-int8)"
    card = hub.files("me/new")["README.md"].decode()
    assert card.count("acme/tiny-int8") == 2
    assert link in card.splitlines()
    assert "* [me/new]" not in card
    publish(folder, parse(PublishOptions, {"to_folder": tmp_path / "out", "variants": given[1:]}), None, silent())
    assert link in (tmp_path / "out" / "README.md").read_text().splitlines()
