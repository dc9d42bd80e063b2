"""The seam of executors: all that a job runs goes through one, and what it says of its machine is what is estimated."""

import signal

import pytest

from backend.artifacts.sealing import open_artifact
from backend.errors import HardwareError, JobError, LoginError
from backend.executors.contract import Machine
from backend.executors.local import Local, this_machine
from backend.jobs.runner import Canceled, Interrupted, Run
from backend.machine.speeds import Speeds
from backend.models.inspection import inspect
from backend.processes.child import Silent
from backend.recipes import parse_recipe
from backend.settings import Settings
from backend.stages.estimate import check_room, estimate
from backend.stages.work import stage_folder

TOKEN = "hf_" + "x" * 30
GIB = 2**30


class Watched:
    """An executor that notes what it is given before another runs it."""

    def __init__(self, executor):
        self.executor, self.given = executor, []

    def run(self, part, network, token, listen, canceled):
        self.given.append((part.indices, network, token))
        return self.executor.run(part, network, token, listen, canceled)


class Ending:
    """An executor whose workers end in one way."""

    def __init__(self, code, *events):
        self.code, self.events = code, events

    def run(self, part, network, token, listen, canceled):
        for event in self.events:
            listen(event)
        if isinstance(self.code, Exception):
            raise self.code
        return self.code


@pytest.fixture
def settings(tmp_path):
    return Settings(data=tmp_path / "data").writable()


@pytest.fixture
def recipe(tiny_model):
    stages = [{"stage": "quantize", "method": "nf4"}]
    return parse_recipe({"base_model": str(tiny_model), "stages": stages}, paths=True)


def test_every_step_goes_through_the_executor_with_no_more_than_it_needs(hub, tiny_model, settings):
    hub.add_token(TOKEN, "me")
    stages = [{"stage": "quantize", "method": "nf4"}]
    commit = hub.add_model("me/tiny", tiny_model)
    recipe = parse_recipe({"base_model": "me/tiny", "revision": commit, "stages": stages})
    watched, job = Watched(Local(settings.data, settings)), settings.jobs / "x"
    Run(job, recipe, watched, settings).go(TOKEN, lambda event: None)
    assert watched.given == [((0,), "online", TOKEN), ((1,), "offline", None)]
    assert open_artifact(stage_folder(job, recipe, 1)).stage == "quantize"


@pytest.mark.parametrize(
    ("executor", "kind", "words"),
    [
        (Ending(Silent()), Interrupted, "The step 'quantize' gave no sign of life for 60 s and was stopped."),
        (Ending(128 + signal.SIGKILL), Interrupted, "'quantize' was killed by the system, most likely out of memory"),
        (Ending(128 + signal.SIGTERM), Interrupted, "The step 'quantize' was ended by SIGTERM."),
        (Ending(1, {"event": "error", "text": "It broke.", "login": False}), JobError, "It broke."),
        (Ending(1, {"event": "error", "text": "Sign in.", "login": True}), LoginError, "Sign in."),
        (Ending(1), JobError, "failed unexpectedly"),
        (Ending(0), JobError, "ended without a result"),
    ],
)
def test_an_end_means_the_same_wherever_a_step_runs(executor, kind, words, recipe, settings):
    heard = []
    with pytest.raises(kind, match=words):
        Run(settings.jobs / "x", recipe, executor, settings).go(None, heard.append)
    assert [event["name"] for event in heard if event["event"] == "step"] == ["fetch"]


def test_an_executor_is_told_of_a_cancel(recipe, settings):
    class Long:
        def run(self, part, network, token, listen, canceled):
            assert not canceled()
            run.cancel()
            assert canceled()
            return 128 + signal.SIGTERM

    run = Run(settings.jobs / "x", recipe, Long(), settings)
    with pytest.raises(Canceled):
        run.go(None, lambda event: None)


def test_a_worker_here_ends_when_it_is_canceled(recipe, settings):
    run = Run(settings.jobs / "x", recipe, Local(settings.data, settings), settings)
    run.cancel()
    with pytest.raises(Canceled):
        run.go(None, lambda event: None)


def test_an_estimate_is_of_the_machine_that_it_is_given(recipe, tiny_model, tmp_path):
    facts = inspect(str(tiny_model))
    slow = Machine(64 * GIB, disk=GIB, speeds=Speeds(start_seconds=1000.0))
    assert estimate(recipe, facts, tmp_path, machine=slow).seconds > 1000
    needed = estimate(recipe, facts, tmp_path)
    assert needed.seconds < 1000
    check_room(needed, facts, slow)
    with pytest.raises(HardwareError, match="memory"):
        check_room(needed, facts, Machine(1000, disk=GIB))
    with pytest.raises(HardwareError, match="are free"):
        check_room(needed, facts, Machine(GIB, disk=1000))


def test_this_machine_says_what_it_has(settings):
    machine = Local(settings.data, settings).machine()
    assert machine == this_machine(settings.data, settings)
    assert machine.memory > 0
    assert machine.disk > 0
    assert machine.room in (machine.gpu, machine.memory)
