"""How many processes the steps of a job take, and what each of them is given."""

import json

import pytest

from backend.artifacts.artifact import Artifact, now
from backend.artifacts.sealing import open_artifact, partial, seal
from backend.hub.ids import DEMO
from backend.jobs.foreground import finished
from backend.recipes import parse_recipe
from backend.settings import Settings
from backend.stages.prepare import prepare

TOKEN = "hf_" + "x" * 30
ISOLATED = "Isolation:"  # begins what a worker says that has given up the network


def recipe(model, *stages):
    return parse_recipe({"base_model": str(model), "stages": list(stages)}, paths=True)


NF4, MERGE = {"stage": "quantize", "method": "nf4"}, {"stage": "merge"}
GPTQ = {"stage": "quantize", "method": "gptq"}


def course(spec, settings):
    """Return what a run says: the name of each step as it begins, and where a worker gives up the network."""
    said = []
    with finished(prepare(spec, settings.data, None), TOKEN, said.append, settings.writable()) as job:
        results = {path.name: open_artifact(path) for path in (job / "stages").iterdir()}
        kept = [json.loads(line) for line in (job / "events.jsonl").read_text().splitlines()]
    assert [event for event in kept if event["event"] == "step"] == [e for e in said if e["event"] == "step"]
    words = [e["name"] if e["event"] == "step" else e.get("text", "")[: len(ISOLATED)] for e in said]
    return [word for word in words if word in ("fetch", "quantize", "merge", ISOLATED)], results


def test_a_model_that_lies_here_is_looked_at_by_the_worker_that_quantizes_it_without_network(tiny_model, tmp_path):
    said, results = course(recipe(tiny_model, NF4), Settings(data=tmp_path))
    assert said == ["fetch", ISOLATED, "quantize"]
    assert {name: artifact.stage for name, artifact in results.items()} == {
        "0-fetch": "fetch",
        "1-quantize": "quantize",
    }


def test_a_model_of_the_hub_is_fetched_by_a_worker_that_computes_nothing(hub, tiny_model, tmp_path):
    hub.add_model("me/tiny", tiny_model)
    hub.add_token(TOKEN, "me")
    said, _ = course(recipe("me/tiny", NF4), Settings(data=tmp_path))
    assert said == ["fetch", "quantize", ISOLATED]


def test_what_was_looked_at_and_not_worked_on_is_worked_on_alone(tiny_model, tmp_path):
    settings = Settings(data=tmp_path).writable()
    spec = prepare(recipe(tiny_model, NF4), settings.data, None)
    with finished(spec, None, lambda event: None, settings) as job:
        pass
    said = []
    fetched = job / "stages" / "0-fetch"
    draft = partial(fetched)
    (draft / "model.json").write_text(json.dumps({"folder": str(tiny_model), "adapters": []}))
    seal(draft, fetched, Artifact(kind="model", stage="fetch", created=now()))
    with finished(spec, None, said.append, settings):
        assert [event["name"] for event in said if event["event"] == "step"] == ["quantize"]


@pytest.mark.parametrize(
    ("stages", "together"),
    [
        ([NF4], True),
        ([NF4, {"stage": "evaluate"}], True),
        ([MERGE | {"adapters": ["{}"]}], True),
        ([GPTQ], False),  # reads rows, which may be many
        ([NF4, {"stage": "evaluate", "dataset": "me/text"}], False),  # which is fetched from the Hub
        ([{"stage": "finetune", "dataset": "demo"}], False),
    ],
)
def test_only_a_look_and_what_goes_piece_by_piece_share_a_process(stages, together, tiny_model, tmp_path):
    named = [{k: [str(tmp_path)] if k == "adapters" else v for k, v in stage.items()} for stage in stages]
    assert recipe(tiny_model, *named).only_looks(tmp_path) == together


def test_the_bundled_model_is_made_in_a_process_of_its_own_and_then_only_looked_at(tmp_path):
    spec = recipe(DEMO, NF4)
    assert not spec.only_looks(tmp_path)
    draft = partial(tmp_path / DEMO)
    seal(draft, tmp_path / DEMO, Artifact(kind="model", stage="fetch", created=now()))
    assert spec.only_looks(tmp_path)
    assert not recipe("me/tiny", NF4).only_looks(tmp_path)


def test_weights_that_are_unpickled_first_are_so_by_a_worker_of_their_own(tiny_model, tmp_path):
    spec = recipe(tiny_model, NF4)
    assert spec.only_looks(tmp_path)
    assert not spec.model_copy(update={"converts": True}).only_looks(tmp_path)
