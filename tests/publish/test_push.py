"""Publishing is one commit or a whole folder, checked before and after."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backend.artifacts.artifact import UNPUBLISHED
from backend.artifacts.sealing import open_artifact, verify
from backend.disk import PREFIX
from backend.errors import HubError, LoginError, SpecError
from backend.hub import client
from backend.progress import Report, silent
from backend.publish.card.loss_plot import LOSS_PLOT
from backend.publish.destination import check_destination
from backend.publish.options import PublishOptions
from backend.publish.push import publish
from tests.conftest import CANARY
from tests.support.loopback_hub import LoopbackHub
from tests.support.published import FILES

Make = Callable[..., Path]
NEW = PublishOptions(repo_id="me/new")
ME = "hf_write"

ADAPTER_FILES = FILES - {"config.json", "model.safetensors"} | {"adapter_config.json", "adapter_model.safetensors"}
ADAPTER_FILES |= {LOSS_PLOT}


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIGHTSMITH_HUB_PATIENCE_SECONDS", "6")  # the first pause is a 300th
    monkeypatch.setattr(client, "WAITS", (0.0, 0.0))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return up after a tenth of a second from now on."""
    return lambda: monkeypatch.setenv("WEIGHTSMITH_HUB_PATIENCE_SECONDS", "0.1")


def commit_posts(hub: LoopbackHub) -> int:
    return sum(request.path.startswith("/api/models/me/new/commit/") for request in hub.requests)


def test_an_artifact_becomes_one_commit_in_a_new_private_repo(hub: LoopbackHub, make_artifact: Make) -> None:
    folder = make_artifact()
    published = publish(folder, NEW, ME, silent())
    made = hub.commits("me/new")
    assert [c.title for c in made[:1]] == ["initial commit"]
    assert len(made) == 2
    assert published.commit == made[1].oid
    assert published.verified
    assert published.location == f"{hub.url}/me/new"
    assert set(published.files) == set(hub.files("me/new")) == FILES
    assert hub.repos["models", "me/new"].private
    assert hub.files("me/new")["model.safetensors"] == (folder / "model.safetensors").read_bytes()


def test_a_public_repo_and_an_organizations_are_made_when_asked(hub: LoopbackHub, make_artifact: Make) -> None:
    publish(make_artifact(), PublishOptions(repo_id="lab/open", private=False), ME, silent())
    assert not hub.repos["models", "lab/open"].private


def test_a_folder_holds_what_the_hub_would_get(hub: LoopbackHub, make_artifact: Make, tmp_path: Path) -> None:
    folder = make_artifact()
    target = tmp_path / "new" / "out"
    published = publish(folder, PublishOptions(to_folder=target), None, silent())
    publish(folder, NEW, ME, silent())
    here, there = {p.name: p.read_bytes() for p in target.iterdir()}, hub.files("me/new")
    assert published.location == str(target)
    assert set(here) == set(there)
    differing = {name for name in here if here[name] != there[name]}
    assert differing == {"README.md", "artifact.json"}  # the address in the card, and the card's hash in the manifest
    loads = (
        there["README.md"]
        .decode()
        .replace('"me/new"', '"."')
        .replace("serve me/new", "serve .")
        .replace("# new\n", "# tiny-nf4\n")
    )
    assert loads == here["README.md"].decode().replace("  # run this in the model's folder, or give its path", "")
    assert list(tmp_path.rglob(f"{PREFIX}*")) == []


def test_what_was_published_is_an_artifact_itself(make_artifact: Make, tmp_path: Path) -> None:
    folder, first, second = make_artifact(), tmp_path / "first", tmp_path / "second"
    publish(folder, PublishOptions(to_folder=first), None, silent())
    verify(first)
    assert open_artifact(first).options == open_artifact(folder).options
    publish(first, PublishOptions(to_folder=second), None, silent())
    assert "license_name: acme-1" in (second / "README.md").read_text()


@pytest.mark.parametrize("there", ["file", "full"])
def test_a_folder_that_is_taken_is_refused(make_artifact: Make, tmp_path: Path, there: str) -> None:
    target = tmp_path / "taken"
    if there == "file":
        target.write_text("mine")
    else:
        target.mkdir()
        (target / "mine.txt").write_text("mine")
    with pytest.raises(SpecError, match="exists already and is not empty: choose another folder"):
        publish(make_artifact(), PublishOptions(to_folder=target), None, silent())


def test_progress_is_told_in_bytes_to_the_end(hub: LoopbackHub, make_artifact: Make) -> None:
    events: list[dict[str, Any]] = []
    publish(make_artifact(), NEW, ME, Report(events.append))
    last = [e for e in events if e["event"] == "progress"][-1]
    assert last["done"] == last["total"] == sum(len(data) for data in hub.files("me/new").values())
    assert last["unit"] == "bytes"


@pytest.mark.parametrize(
    ("token", "words"),
    [
        (None, "There is no token"),
        ("hf_unknown", "wrong or has expired"),
        ("hf_old", "wrong or has expired"),
        ("hf_reader", "The token of 'me' may only read"),
    ],
)
def test_a_token_that_will_not_do_is_told_before_anything_is_made(
    hub: LoopbackHub, make_artifact: Make, token: str | None, words: str
) -> None:
    hub.add_token("hf_old", "me", expired=True)
    hub.add_token("hf_reader", "me", role="read")
    with pytest.raises(LoginError, match=words):
        publish(make_artifact(), NEW, token, silent())
    with pytest.raises(LoginError, match=words):
        check_destination(NEW, token)
    assert not hub.repos


def test_a_namespace_of_others_is_refused(hub: LoopbackHub) -> None:
    with pytest.raises(SpecError, match="'me' does not belong to 'acme': choose from me, lab"):
        check_destination(PublishOptions(repo_id="acme/x"), ME)


def test_a_token_without_the_right_to_write_there_is_told_so(hub: LoopbackHub, make_artifact: Make) -> None:
    hub.add_token("hf_fine", "me", role="fineGrained", orgs={"lab": "read"})
    with pytest.raises(HubError, match=r"ask its admins for that at .*/organizations/lab/settings/members"):
        publish(make_artifact(), PublishOptions(repo_id="lab/x"), "hf_fine", silent())


def test_a_name_that_is_taken_is_refused_and_nothing_is_changed(hub: LoopbackHub, make_artifact: Make) -> None:
    before = hub.add_model("me/new", {"config.json": "{}"}, private=True)
    with pytest.raises(SpecError) as caught:
        publish(make_artifact(), NEW, ME, silent())
    assert str(caught.value) == (
        f"Could not publish to 'me/new'. It exists already, with commit {before[:8]}: choose another name, or ask"
        " for an update of it (update)."
    )
    assert hub.commits("me/new")[-1].oid == before
    with pytest.raises(SpecError, match="exists already"):
        check_destination(NEW, ME)


def test_an_empty_public_repo_is_not_used_for_what_should_be_private(hub: LoopbackHub, make_artifact: Make) -> None:
    hub.add_model("me/new", {})
    with pytest.raises(SpecError, match="exists already"):
        publish(make_artifact(), NEW, ME, silent())
    assert not hub.files("me/new")


@pytest.mark.parametrize("fault", ["lost", 503, "reset", "html", 429])
def test_a_commit_that_nobody_knows_of_is_there_exactly_once(
    hub: LoopbackHub, make_artifact: Make, fault: int | str
) -> None:
    hub.fail("POST */commit/*", fault)
    published = publish(make_artifact(), NEW, ME, silent())
    assert len(hub.commits("me/new")) == 2
    assert commit_posts(hub) == (1 if fault == "lost" else 2)
    assert published.commit == hub.commits("me/new")[-1].oid


@pytest.mark.parametrize("fault", ["lost", "reset", 503])
def test_a_repo_whose_making_nobody_knows_of_is_used_if_it_is_there(
    hub: LoopbackHub, make_artifact: Make, fault: int | str
) -> None:
    hub.fail("POST /api/repos/create", fault)
    publish(make_artifact(), NEW, ME, silent())
    assert set(hub.files("me/new")) == FILES


def test_when_nobody_can_tell_publishing_again_finds_what_arrived(
    hub: LoopbackHub, make_artifact: Make, impatient: Callable[[], None]
) -> None:
    folder = make_artifact()
    impatient()
    hub.fail("POST */commit/*", "lost")
    hub.fail("GET /api/models/me/new", lambda body: body)  # the one after the repo was made
    hub.fail("GET /api/models/me/new", 503, times=-1)
    with pytest.raises(HubError, match="Nobody can tell whether 'me/new' was published"):
        publish(folder, NEW, ME, silent())
    hub.faults.clear()
    publish(folder, NEW, ME, silent())
    assert len(hub.commits("me/new")) == 2


@pytest.mark.parametrize(
    "failing",
    [
        ("POST */commit/*", 401, LoginError, "wrong or has expired"),
        ("POST */commit/*", 403, LoginError, "may not write there"),
        ("POST */commit/*", 413, HubError, "too large"),
        ("POST */commit/*", 503, HubError, "answered 503"),
        ("POST */commit/*", "reset", HubError, "cannot be reached"),
        ("POST */preupload/*", 403, LoginError, "may not write there"),
        ("POST *.git/info/lfs/objects/batch", 402, HubError, "paid plan"),
        ("PUT /lfs/*", 403, LoginError, "may not write there"),
        ("POST /api/validate-yaml", 400, HubError, "README.md"),
    ],
)
def test_a_commit_that_fails_for_good_leaves_a_repo_that_can_be_used_again(
    hub: LoopbackHub, make_artifact: Make, impatient: Callable[[], None], failing: tuple[str, int | str, type, str]
) -> None:
    folder, (route, fault, kind, words) = make_artifact(), failing
    impatient()
    hub.fail(route, fault, times=-1)
    with pytest.raises(kind, match=words) as caught:
        publish(folder, NEW, ME, silent())
    assert str(caught.value).startswith("Could not publish to 'me/new'. ")
    assert f"The empty private repo {hub.url}/me/new remains" in str(caught.value)
    assert ME not in str(caught.value)
    assert not hub.files("me/new")
    hub.faults.clear()
    publish(folder, NEW, ME, silent())
    assert len(hub.commits("me/new")) == 2


def test_somebody_elses_commit_is_not_overwritten(hub: LoopbackHub, make_artifact: Make) -> None:
    def meanwhile(body: bytes) -> bytes:
        hub.add_model("me/new", {"theirs.txt": "theirs"})
        return body

    hub.fail("POST */commit/*", meanwhile)
    with pytest.raises(HubError, match="Somebody else has changed it meanwhile"):
        publish(make_artifact(), NEW, ME, silent())
    assert set(hub.files("me/new")) == {"theirs.txt"}


@pytest.mark.parametrize(
    ("route", "harm", "named"),
    [
        ("PUT /lfs/*", lambda body: body[:-1] + bytes([body[-1] ^ 1]), "model.safetensors"),
        (
            "POST */commit/*",
            lambda body: body.replace(b'"path": "config.json"', b'"path": "confiq.json"'),
            "config.json",
        ),
        ("GET */tree/*", lambda body: body.replace(b'"path": "recipe.yaml"', b'"path": "recipe.yml"'), "recipe.yaml"),
    ],
)
def test_reading_back_finds_what_the_hub_holds_wrongly(
    hub: LoopbackHub, make_artifact: Make, route: str, harm: Callable[[bytes], bytes], named: str
) -> None:
    hub.fail(route, harm, times=-1)
    with pytest.raises(HubError, match=f"holds something else than was sent: .*{named}"):
        publish(make_artifact(), NEW, ME, silent())


def test_a_changed_artifact_is_not_published(hub: LoopbackHub, make_artifact: Make) -> None:
    folder = make_artifact()
    weights = folder / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(SpecError, match=r"'model.safetensors' in '1-quantize' has changed"):
        publish(folder, NEW, ME, silent())
    assert not hub.repos


def test_a_folder_is_not_published_into_itself(make_artifact: Make) -> None:
    folder = make_artifact()
    before = sorted(folder.iterdir())
    with pytest.raises(SpecError, match="lies within what is published"):
        publish(folder, PublishOptions(to_folder=folder / "out"), None, silent())
    assert sorted(folder.iterdir()) == before


def test_of_an_adapter_no_row_of_its_data_leaves(hub: LoopbackHub, make_adapter: Make, tmp_path: Path) -> None:
    folder, target = make_adapter(), tmp_path / "out"
    publish(folder, PublishOptions(to_folder=target), None, silent())
    publish(folder, NEW, ME, silent())
    here, there = {p.name: p.read_bytes() for p in target.iterdir()}, hub.files("me/new")
    assert set(here) == set(there) == ADAPTER_FILES
    assert any(CANARY in (folder / name).read_text() for name in UNPUBLISHED)
    sent = [*here.values(), *there.values(), *(request.body for request in hub.requests)]
    assert not [data for data in sent if CANARY.encode() in data or str(tmp_path).encode() in data]
    assert not UNPUBLISHED & set(open_artifact(target).files)
    publish(target, PublishOptions(to_folder=tmp_path / "again"), None, silent())
    assert {path.name for path in (tmp_path / "again").iterdir()} == ADAPTER_FILES


def test_the_token_is_in_nothing_that_is_sent_but_its_header(hub: LoopbackHub, make_artifact: Make) -> None:
    publish(make_artifact(), NEW, ME, silent())
    for request in hub.requests:
        assert ME.encode() not in request.body
        assert ME not in f"{request.path}{request.query}"
    assert all(ME.encode() not in data for data in hub.files("me/new").values())


def test_weights_go_through_xet_where_the_library_has_it(make_artifact: Make, tmp_path: Path) -> None:
    folder = make_artifact()
    code = (
        "import sys; from pathlib import Path; from backend.progress import silent;"
        "from backend.publish.options import PublishOptions; from backend.publish.push import publish;"
        "publish(Path(sys.argv[1]), PublishOptions(repo_id='me/new'), 'hf_write', silent())"
    )
    with LoopbackHub(xet=tmp_path / "xet") as hub:
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "0"}
        run = subprocess.run(
            [sys.executable, "-c", code, str(folder)],
            env=environment,
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert run.returncode == 0, run.stderr
        weights = hub.commits("me/new")[1].files["model.safetensors"]
        assert weights.sha256 == open_artifact(folder).files["model.safetensors"].sha256
        assert not [request for request in hub.requests if "/lfs/" in request.path]
    assert sum(path.stat().st_size for path in (tmp_path / "xet").rglob("*") if path.is_file()) > weights.size / 2


def test_publishing_needs_no_torch_and_no_page(make_artifact: Make, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from backend.progress import silent;"
        "from backend.publish.options import PublishOptions; from backend.publish.push import publish;"
        "publish(Path(sys.argv[1]), PublishOptions(to_folder=Path(sys.argv[2])), None, silent());"
        "assert not {'torch', 'transformers', 'gradio', 'sqlite3'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", code, str(make_artifact()), str(tmp_path / "out")]
    run = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
