"""What an open page hears of: what is new, whose it is, and nothing where nothing is."""

import math
import re
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from backend.errors import JobError
from backend.jobs.store import JobState
from backend.jobs.supervisor import Supervisor
from backend.recipes import parse_recipe
from backend.serve.chat import paced
from backend.serve.servers import Servers
from backend.settings import Settings
from backend.spec import Preview
from backend.stages.kinds import Publication
from ui.changes import SEEN, add_changes
from ui.page import build_page
from ui.studio import Studio
from ui.visitor import LOCAL

NF4 = parse_recipe({"base_model": "demo", "stages": [{"stage": "quantize", "method": "nf4"}]})
UPLOAD = Publication.model_validate({"folder": "/made", "options": {"repo_id": "me/made"}})
LOOK = Preview.model_validate({"base_model": "demo", "options": {"stage": "finetune", "dataset": "demo"}})


@pytest.fixture
def studio(tmp_path):
    """A studio whose jobs nobody runs."""
    settings = Settings(data=tmp_path)
    supervisor = Supervisor(settings)
    supervisor._lanes = []
    supervisor.start()
    yield Studio(settings, supervisor, Servers(settings))
    supervisor.stop()


@pytest.fixture
def ask(studio):
    """Ask as a page does, and give what it is told; None where nothing is new."""
    app = FastAPI()
    add_changes(app, studio)
    http, since = TestClient(app), [""]

    def again():
        answer = http.get("/changes", params={"since": since[0]})
        if answer.status_code == 204:
            return None
        since[0] = answer.json()["version"]
        return answer.json()

    return again


def runs(studio):
    job_id = studio.supervisor.submit(NF4, LOCAL, None)
    assert studio.supervisor._store.claim(("recipe",)).id == job_id
    return job_id


NEWS = {
    "a job that waits": (lambda studio: studio.supervisor.submit(NF4, LOCAL, None), {"jobs"}),
    "a look at rows": (lambda studio: studio.supervisor.preview(LOOK, LOCAL, None), {"rows", "calibration"}),
    "a publication": (lambda studio: studio.supervisor._store.add(UPLOAD, LOCAL), {"jobs", "publications"}),
    "a server": (lambda studio: studio.join(Path("/m"), LOCAL), {"server"}),
    "the installation of vLLM": (
        lambda studio: setattr(studio.installations["vllm"], "_said", "Installing vLLM."),
        {"server"},
    ),
}


@pytest.mark.parametrize("what", NEWS)
def test_a_page_hears_of_what_is_new_once_and_of_nothing_else(studio, ask, what):
    happen, topics = NEWS[what]
    before = ask()
    assert ask() is None
    happen(studio)
    after = ask()["versions"]
    assert {name for name in SEEN if after.get(name) != before["versions"].get(name)} == topics
    assert ask() is None


def test_what_is_somebody_elses_is_not_told(studio, ask):
    ask()
    studio.supervisor.submit(NF4, "ben", None)
    studio.supervisor.preview(LOOK, "ben", None)
    studio.join(Path("/m"), "ben")
    assert ask() is None


def test_a_stranger_on_a_space_is_told_of_nothing(studio, ask, monkeypatch):
    studio.supervisor.submit(NF4, LOCAL, None)
    monkeypatch.setenv("SPACE_ID", "me/space")
    told = ask()
    assert (told["versions"], told["running"]) == ({}, {})


def test_how_far_a_job_is_comes_with_the_answer_and_has_nothing_shown_anew(studio, ask):
    job_id = runs(studio)
    before, hear = ask(), studio.supervisor._hear
    hear(job_id, {"event": "progress", "phase": "<b>reading</b>", "done": 1, "total": 4, "unit": "files"})
    after = ask()
    assert after["versions"] == before["versions"]
    row, words, bar = after["running"][job_id]
    assert "Running · 25%" in row
    assert words == "Running, started just now"
    assert 'aria-valuenow="25"' in bar
    assert "&lt;b&gt;reading" in bar
    for event in ({"event": "log", "text": "x"}, {"event": "metrics", "step": 1}):
        hear(job_id, event)
        before, after = after, ask()
        assert {n for n in SEEN if after["versions"].get(n) != before["versions"].get(n)} == {"training", "log"}
    studio.supervisor._store.finish(job_id, JobState.COMPLETED)
    assert ask()["running"] == {}


def test_the_bar_that_is_put_in_later_has_its_place_in_the_job(studio, ask):
    job_id = runs(studio)
    page = build_page(studio)
    show = next(fn for fn in page.fns.values() if fn.targets[0][0] == named(page, "hear-jobs"))
    view = str(show.fn(job_id, None, None))
    _, words, bar = ask()["running"][job_id]
    assert f'data-standing="{job_id}">{words}<' in view
    assert f'data-going="{job_id}">{bar}<' in view


def named(page, elem_id):
    return next(block._id for block in page.blocks.values() if getattr(block, "elem_id", None) == elem_id)


def test_everything_that_can_be_new_has_an_event_and_a_place_where_it_is_seen(studio):
    page = build_page(studio)
    names = {getattr(block, "elem_id", None) for block in page.blocks.values()}
    assert {f"hear-{what}" for what in SEEN} == {name for name in names if re.match("hear-", name or "")}
    assert {place.removeprefix("#") for place in SEEN.values()} - {"body"} <= names


def grows(*pieces):
    for piece in pieces:
        if isinstance(piece, Exception):
            raise piece
        yield piece


@pytest.mark.parametrize(("pieces", "seconds", "shown"), [
    ("abcd", 0, "abcd"), ("abcd", math.inf, "ad"), ("a", math.inf, "a"), ("", math.inf, ""), ("ab", math.inf, "ab"),
])  # fmt: skip
def test_of_what_grows_the_first_and_the_last_are_always_shown(pieces, seconds, shown):
    assert "".join(paced(grows(*pieces), seconds)) == shown


def test_what_came_before_a_fault_is_shown_before_it():
    pieces = paced(grows("a", "b", "c", JobError("It stopped.")), math.inf)
    assert [next(pieces), next(pieces)] == ["a", "c"]
    with pytest.raises(JobError, match="stopped"):
        next(pieces)


def test_who_stops_looking_stops_what_grows():
    closed = []

    def endless():
        try:
            while True:
                yield "x"
        finally:
            closed.append(True)

    looking = paced(endless(), 0)
    assert next(looking) == "x"
    looking.close()
    assert closed
