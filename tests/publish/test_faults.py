"""Every fault of the Hub at every request of a push: it succeeds or says why, and `main` is never half of anything.

The table is printed at the end of the run (pytest_terminal_summary in conftest.py).
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from backend.errors import AppError, HubError, JobError, LoginError
from backend.hub import client, transport
from backend.jobs.store import UNFINISHED, Job, JobState
from backend.jobs.supervisor import Supervisor
from backend.processes.child import ROOT
from backend.progress import Report, silent
from backend.publish.options import PublishOptions
from backend.publish.push import publish
from backend.settings import Settings
from tests.conftest import artifact_maker
from tests.support.loopback_hub import LoopbackHub
from tests.support.published import publication

pytestmark = pytest.mark.real

ME = "hf_write"
PUSHES, UPDATES = "Faults of the Hub during a push", "Faults of the Hub during an update"
NEW, UPDATE = PublishOptions(repo_id="me/new"), PublishOptions(repo_id="me/new", update=True)
OPENED = PublishOptions(repo_id="me/new", private=False, gated="auto")
OLD = {"README.md": "# Old\n", "config.json": "{}", "old.safetensors": "old weights"}

PLACES = {
    "whoami": "GET /api/whoami-v2",
    "create": "POST /api/repos/create",
    "pre-upload": "POST */preupload/*",
    "LFS batch": "POST *.git/info/lfs/objects/batch",
    "PUT": "PUT /lfs/*",
    "commit": "POST */commit/*",
    "read-back": "GET */tree/*",
    "settings": "PUT /api/models/*/settings",
}
UNHEARD = ("half a reply", "lost reply")
DONE = ("create", "PUT", "commit")
"""Where a lost reply does not matter: what was asked for is looked for."""

REFUSALS = (401, 403, 404, 409, 412, 413)
PASSING: dict[str, tuple[int | str, dict[str, str]]] = {
    "429": (429, {}),
    "429, Retry-After": (429, {"Retry-After": "1"}),
    "500": (500, {}),
    "503": (503, {}),
    "refused": ("refused", {}),
    "reset": ("reset", {}),
    "half a reply": ("truncate", {}),
    "lost reply": ("lost", {}),
    "hang": ("hang", {}),
}
LOOKED_FOR = ("Traceback", "Error", "Exception", "Errno", "httpx", "http_", "None", "<html", "\n", ME, "0x", "..")


@pytest.fixture(scope="module")
def folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return artifact_maker(tiny_model, tmp_path_factory.mktemp("faults"))()


@pytest.fixture(scope="module")
def complete(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[LoopbackHub], bool]:
    """Return whether the Hub holds all that is published: the files are those of a folder, but for the repo's name."""
    target = tmp_path_factory.mktemp("complete") / "new"
    publish(folder, PublishOptions(to_folder=target), None, silent())
    named = ("README.md", "artifact.json")
    expected = {path.name: path.read_bytes() for path in target.iterdir()}

    def holds_all(hub: LoopbackHub) -> bool:
        there = hub.files("me/new")
        return set(there) == set(expected) and all(there[n] == expected[n] for n in expected if n not in named)

    return holds_all


@pytest.fixture
def wait(monkeypatch: pytest.MonkeyPatch) -> Callable[[float, float], None]:
    """Set how long a push waits in all, and how long for one reply."""

    def set_(patience: float, reply: float) -> None:
        monkeypatch.setenv("WEIGHTSMITH_HUB_PATIENCE_SECONDS", str(patience))
        monkeypatch.setattr(client, "WAITS", (0.01, 0.02))
        monkeypatch.setattr(transport, "TIMEOUT", reply)

    return set_


Cell = Callable[..., tuple[AppError | None, list[str]]]


@pytest.fixture
def play(
    hub: LoopbackHub,
    folder: Path,
    complete: Callable[[LoopbackHub], bool],
    record_property: Callable[[str, object], None],
) -> Iterator[Cell]:
    """Push while something fails; see that nothing is left half done, and that publishing again completes it."""

    def once(place: str, row: str, kind: Any, update: bool = False, **fault: Any) -> tuple[AppError | None, list[str]]:
        if update:
            hub.add_model("me/new", OLD, private=True)
        options = OPENED if place == "settings" else UPDATE if update else NEW
        before = len(hub.commits("me/new")) if update else 1
        old = hub.files("me/new") if update else {}
        _arrange(hub, place, kind, fault)
        said, error = list[str](), None
        try:
            assert publish(folder, options, ME, Report(lambda event: said.append(event.get("text", "")))).verified
        except AppError as e:
            error = e
        state = "new" if _exists(hub) and complete(hub) else "old"
        table = UPDATES if update else PUSHES
        told = "published" if error is None else "signs in" if isinstance(error, LoginError) else "told"
        record_property("cell", [table, row, place, f"{told}, {state}"])
        assert state == "new" or not _exists(hub) or hub.files("me/new") == old
        assert not _exists(hub) or len(hub.commits("me/new")) == before + (state == "new")
        assert error is not None or state == "new"
        assert error is not None or options is not OPENED or _is_opened(hub)
        if error:
            _is_a_sentence(str(error))
        hub.faults.clear()
        hub.come_back()
        publish(folder, options, ME, silent())
        assert complete(hub)
        assert _is_opened(hub) == (options is OPENED)
        assert len(hub.commits("me/new")) == before + 1
        return error, said

    yield once
    hub.come_back()


def _exists(hub: LoopbackHub) -> bool:
    return ("models", "me/new") in hub.repos


def _is_opened(hub: LoopbackHub) -> bool:
    repo = hub.repos["models", "me/new"]
    return (repo.private, repo.gated) == (False, "auto")


def _arrange(hub: LoopbackHub, place: str, kind: Any, fault: Mapping[str, Any]) -> None:
    """Have a place fail; what is asked both before and after the commit fails after it."""
    if place != "read-back":
        return hub.fail(PLACES[place], kind, **fault)

    def arm(body: bytes) -> bytes:
        hub.fail(PLACES[place], kind, **fault)
        return body

    return hub.fail(PLACES["commit"], arm)


def _is_a_sentence(text: str) -> None:
    assert not [word for word in LOOKED_FOR if word in text], text
    assert len(text) < 500, text
    assert text[0].isupper() or text[0] == "'", text


EVERYWHERE = pytest.mark.parametrize(
    ("place", "update"), [*((place, False) for place in PLACES), ("commit", True), ("read-back", True)]
)


@EVERYWHERE
@pytest.mark.parametrize("fault", PASSING)
def test_what_passes_by_itself_is_waited_for(
    play: Cell, wait: Callable[[float, float], None], place: str, fault: str, update: bool
) -> None:
    wait(10, 0.3 if fault == "hang" else 10)
    kind, headers = PASSING[fault]
    error, said = play(place, f"{fault}, once", kind, update, headers=headers)
    assert error is None
    waited = [line for line in said if "Trying again in" in line]
    assert waited or (place == "commit" and fault in UNHEARD) or (fault, place) == ("half a reply", "PUT")
    if "Retry-After" in fault:
        assert waited[0] == "The Hub is asked too often. Trying again in 1 s."


@EVERYWHERE
@pytest.mark.parametrize("fault", PASSING)
def test_what_does_not_pass_ends_in_words(
    play: Cell, wait: Callable[[float, float], None], place: str, fault: str, update: bool
) -> None:
    wait(0.2, 0.2 if fault == "hang" else 10)
    kind, headers = PASSING[fault]
    error, _ = play(place, f"{fault}, for ever", kind, update, headers=headers, times=-1)
    assert (error is None) == (fault in UNHEARD and place in DONE)


@EVERYWHERE
@pytest.mark.parametrize("status", REFUSALS)
def test_a_refusal_ends_in_words(
    play: Cell, wait: Callable[[float, float], None], place: str, status: int, update: bool
) -> None:
    wait(1, 10)
    error, _ = play(place, str(status), status, update)
    assert isinstance(error, LoginError) == (status in (401, 403) or (status, place) == (404, "whoami"))
    assert error


@EVERYWHERE
def test_a_page_in_place_of_an_answer_ends_well_or_in_words(
    play: Cell, wait: Callable[[float, float], None], place: str, update: bool
) -> None:
    wait(1, 10)
    play(place, "HTML", "html", update)


def _misnamed(body: bytes) -> bytes:
    """Change the first digit of each sha256."""
    return re.sub(rb'("oid": ?")(.)', lambda found: found[1] + (b"1" if found[2] == b"0" else b"0"), body)


@pytest.mark.parametrize(
    ("place", "update"),
    [("LFS batch", False), ("commit", False), ("read-back", False), ("commit", True), ("read-back", True)],
)
def test_a_wrong_hash_is_found(play: Cell, wait: Callable[[float, float], None], place: str, update: bool) -> None:
    wait(1, 10)
    error, _ = play(place, "wrong hash", _misnamed, update)
    assert isinstance(error, HubError)


def test_weights_that_the_hub_has_damaged_are_found(
    hub: LoopbackHub, folder: Path, record_property: Callable[[str, object], None]
) -> None:
    hub.fail(PLACES["PUT"], lambda body: body[:-1] + bytes([body[-1] ^ 1]))
    with pytest.raises(HubError, match=r"holds something else than was sent: model\.safetensors\. Delete") as caught:
        publish(folder, NEW, ME, silent())
    _is_a_sentence(str(caught.value))
    record_property("cell", [PUSHES, "wrong hash", "PUT", "told, damaged"])
    assert len(hub.commits("me/new")) == 2


def test_a_token_that_expires_midway_waits_for_the_same_user(
    hub: LoopbackHub, folder: Path, complete: Callable[[LoopbackHub], bool], tmp_path: Path
) -> None:
    hub.add_token("hf_first", "me")
    hub.add_token("hf_second", "me")
    hub.add_token("hf_theirs", "you")

    def expire(body: bytes) -> bytes:
        hub.add_token("hf_first", "me", expired=True)
        return body

    hub.fail(PLACES["PUT"], expire)
    supervisor = Supervisor(Settings(data=tmp_path / "data", cancel_seconds=1))
    supervisor.start()
    try:
        job_id = supervisor.submit(publication(folder, NEW), "owner", "hf_first")
        job = _ended(supervisor, job_id)
        assert (job.state, "hf_first" in str(job.error)) == (JobState.WAITING_FOR_LOGIN, False)
        assert "sign in again" in str(job.error)
        with pytest.raises(JobError):
            supervisor.retry(job_id, "somebody else", "hf_theirs")
        assert supervisor.get(job_id, "owner").state == JobState.WAITING_FOR_LOGIN
        supervisor.retry(job_id, "owner", "hf_theirs")  # of another user of the Hub
        assert _ended(supervisor, job_id).state == JobState.ERROR
        assert hub.files("me/new") == {}
        supervisor.retry(job_id, "owner", "hf_second")
        assert _ended(supervisor, job_id).state == JobState.COMPLETED
    finally:
        supervisor.stop()
    assert complete(hub)
    assert len(hub.commits("me/new")) == 2
    assert len([request for request in hub.requests if request.method == "PUT"]) == 1


def test_a_job_that_meets_a_full_storage_is_retried_without_sending_anything_twice(
    hub: LoopbackHub, folder: Path, complete: Callable[[LoopbackHub], bool], tmp_path: Path
) -> None:
    hub.fail(PLACES["commit"], 403, message="Private repository storage limit reached, please upgrade your plan")
    supervisor = Supervisor(Settings(data=tmp_path / "data", cancel_seconds=1))
    supervisor.start()
    try:
        job_id = supervisor.submit(publication(folder, NEW), "owner", ME)
        job = _ended(supervisor, job_id)
        assert job.state == JobState.ERROR  # not one that waits for a login
        assert "The private storage of 'me' is full" in str(job.error)
        supervisor.retry(job_id, "owner", ME)
        assert _ended(supervisor, job_id).state == JobState.COMPLETED
    finally:
        supervisor.stop()
    assert complete(hub)
    assert len([request for request in hub.requests if request.method == "PUT"]) == 1


def _ended(supervisor: Supervisor, job_id: str) -> Job:
    deadline = time.monotonic() + 60
    while (job := supervisor.get(job_id, "owner")).state in UNFINISHED and time.monotonic() < deadline:
        time.sleep(0.05)
    return job


@pytest.mark.parametrize(
    ("kind", "times", "words"),
    [
        (401, -1, "LoginError: Could not publish to 'me/new'. Your token for the Hub is wrong or has expired"),
        (403, -1, "LoginError: Could not publish to 'me/new'. Your token may not write there"),
        (503, -1, "HubError: Could not publish to 'me/new'. The Hub answered 503"),
        ("hang", -1, "HubError: Could not publish to 'me/new'. The Hub at 127.0.0.1"),
        ("html", -1, "HubError: Could not publish to 'me/new'. What answered for 'me/new'"),
        (503, 1, "True"),
    ],
)
def test_what_the_hub_says_to_xet_is_heard(
    folder: Path, tmp_path: Path, kind: int | str, times: int, words: str
) -> None:
    code = (
        "import sys; from pathlib import Path; from backend.errors import HubError; from backend.hub import transport;"
        "from backend.progress import silent; from backend.publish.options import PublishOptions;"
        "from backend.publish.push import publish; transport.TIMEOUT = 0.3\n"
        "try: print(publish(Path(sys.argv[1]), PublishOptions(repo_id='me/new'), 'hf_write', silent()).verified)\n"
        "except HubError as e: print(f'{type(e).__name__}: {e}')"
    )
    with LoopbackHub(xet=tmp_path / "xet") as hub:
        hub.fail("GET */xet-write-token/*", kind, times=times)
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "0"}
        environment["WEIGHTSMITH_HUB_PATIENCE_SECONDS"] = "1"
        command = [sys.executable, "-c", code, str(folder)]
        run = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert run.stdout.startswith(words), run.stdout + run.stderr
        assert len(hub.commits("me/new")) == 1 + (words == "True")
