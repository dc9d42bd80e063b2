"""A supervisor of its own for each test, and recipes for it."""

import pytest

from backend.jobs.supervisor import Supervisor
from backend.recipes import parse_recipe
from backend.settings import Settings
from tests.support.jobs import EVALUATE


@pytest.fixture
def settings(tmp_path):
    return Settings(data=tmp_path / "data", cancel_seconds=1)


@pytest.fixture
def supervisor(settings):
    started = Supervisor(settings)
    started.start()
    yield started
    started.stop()


@pytest.fixture
def recipe(hub, tiny_model):
    commit = hub.add_model("me/tiny", tiny_model)
    hub.add_dataset("me/prose", {"test.txt": "The quick brown fox jumps over the lazy dog. " * 20})
    stages = [{"stage": "quantize", "method": "nf4"}]
    return parse_recipe({"base_model": "me/tiny", "revision": commit, "stages": stages})


@pytest.fixture
def measured_recipe(recipe):
    stages = [*(stage.model_dump() for stage in recipe.stages), EVALUATE]
    return parse_recipe({**recipe.model_dump(exclude_none=True), "stages": stages})
