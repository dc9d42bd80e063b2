"""The check before publishing: what passes it, what fails it, and what is published then."""

import json
import shutil
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch

from backend import check as checking
from backend.__main__ import main
from backend.artifacts.artifact import MANIFEST, Check
from backend.artifacts.sealing import open_artifact, record
from backend.check import CheckOptions, Tried, check
from backend.check.failures import Answer
from backend.check.prompts import prompts_of
from backend.errors import JobError, SpecError
from backend.models.loading import load_causal_lm, load_tokenizer
from backend.progress import silent
from backend.publish.card.card import build_card
from backend.publish.options import PublishOptions
from backend.publish.push import publish
from backend.recipes import parse_recipe
from backend.serve.engines import ENGINES
from backend.serve.server import Server
from backend.serve.servers import Servers
from backend.settings import Settings
from tests.support.adapters import resaved
from tests.support.family_models import make
from tests.support.published import publication
from tests.support.typed import fails, succeeds

NF4 = {"stage": "quantize", "method": "nf4"}
FAILED = Check(passed=False, engine="vLLM", prompts=8, tokens=100, agreement=0.5, reason="It *says* other things.")


def recipe(publish=None, stages=(NF4,)):
    return parse_recipe({"base_model": "demo", "stages": [*stages], "publish": publish})


def settings(tmp_path):
    return Settings(data=tmp_path)


def another(model, tmp_path, **generation):
    """Copy a model, which is to generate in another way than its likeliest token."""
    folder = tmp_path / "another"
    shutil.copytree(model, folder)
    config = folder / "generation_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | generation))
    return folder


@pytest.mark.real
@pytest.mark.parametrize("model", ["tiny_model", "tiny_bare_model"])
def test_what_an_engine_serves_as_its_weights_say_passes(request, model, tmp_path, monkeypatch, capsys):
    folder = another(request.getfixturevalue(model), tmp_path, repetition_penalty=1.3)
    monkeypatch.setenv("WEIGHTSMITH_DATA", str(tmp_path / "data"))
    found = succeeds(capsys, "check", str(folder), "--engine", "transformers", "--max-tokens", "8")
    assert found["passed"]
    assert found["engine"] == "transformers"
    assert found["agreement"] == 1
    assert found["tokens"] > 30
    assert not (tmp_path / "data" / "servers").exists()


@pytest.mark.real
def test_what_transformers_does_not_load_is_checked_unpacked_and_said_to_be(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WEIGHTSMITH_DATA", str(tmp_path / "data"))
    source = make("gpt-oss", tmp_path / "oss")
    succeeds(capsys, "quantize", str(source), "--method", "fp8", "--output", str(tmp_path / "made"))
    found = succeeds(capsys, "check", str(tmp_path / "made"), "--engine", "transformers", "--max-tokens", "8")
    assert found["passed"]
    assert found["likeliest"] == 1
    assert found["engine"] == "transformers (unpacked to 16 bit by Weightsmith)"


@pytest.mark.real
def test_an_adapter_is_checked_on_its_base_model(make_adapter, tiny_model, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WEIGHTSMITH_DATA", str(tmp_path / "data"))
    adapter = make_adapter(check=None)
    asked = ["check", str(adapter), "--base-model", str(tiny_model), "--engine", "transformers", "--max-tokens", "8"]
    found = succeeds(capsys, *asked)
    assert found["likeliest"] > 0.9
    assert open_artifact(adapter).check.passed


@pytest.mark.real
def test_an_adapter_whose_layers_nothing_loads_fails(make_adapter, tiny_model, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WEIGHTSMITH_DATA", str(tmp_path / "data"))
    adapter = make_adapter(check=None)
    (adapter / MANIFEST).unlink()  # a stranger's, which is not sealed
    resaved(adapter, lambda tensors: {key.replace("model.layers", "model.language_model.layers"): value
                                      for key, value in tensors.items()})  # fmt: skip
    asked = ["check", str(adapter), "--base-model", str(tiny_model), "--engine", "transformers", "--json"]
    assert main(asked) == 1
    found = json.loads(capsys.readouterr().out)
    assert "ended while it started: The adapter '1-finetune' has nothing for 'model.layers.0." in found["reason"]


@pytest.mark.real
def test_an_adapter_that_an_engine_ignores_fails(make_adapter, tiny_model, tmp_path, monkeypatch):
    model, tokenizer = load_causal_lm(tiny_model, silent()), load_tokenizer(tiny_model)
    answers = []
    for prompt in prompts_of(tokenizer, True):
        read = prompt.ids
        made = model.generate(torch.tensor([read]), max_new_tokens=8, do_sample=False)[0].tolist()
        answers.append(Answer(read, made[len(read) :]))
    monkeypatch.setattr(checking, "_answers", lambda *args: ("vLLM", answers))
    found = check(Tried(make_adapter(), tiny_model), CheckOptions(), settings(tmp_path), silent())
    assert not found.passed
    assert found.reason.startswith("vLLM answers as the base model does, without the adapter")


@pytest.fixture
def in_place_of_vllm(monkeypatch):
    """Have another server start where vLLM would."""

    def use(adapter):
        command = [sys.executable, "-m", "tests.support.compared_engine"]
        here = {"obstacle": lambda: None, "is_installed": lambda: True}
        here["command"] = lambda folder, port, device, base: [*command, str(port), adapter]
        monkeypatch.setitem(ENGINES, "vllm", ENGINES["vllm"]._replace(**here))

    return use


@pytest.mark.parametrize(
    ("heeded", "words"),
    [("1-finetune", "vLLM reads a prompt as other tokens"), ("", "vLLM answers as the base model does, without the")],
)
def test_an_adapter_whose_base_model_is_computed_alike_to_the_last_bit_fails(
    make_adapter, tiny_model, tmp_path, in_place_of_vllm, heeded, words
):
    in_place_of_vllm(heeded)
    options = CheckOptions(engine="vllm", max_tokens=4)
    found = check(Tried(make_adapter(), tiny_model), options, settings(tmp_path), silent())
    assert not found.passed
    assert found.reason.startswith(words)


def test_a_server_for_the_chat_compares_nothing(make_adapter, tiny_model, tmp_path, in_place_of_vllm):
    in_place_of_vllm("1-finetune")
    adapter, servers = make_adapter(), Servers(settings(tmp_path), lambda _: tiny_model)
    try:
        servers.open(adapter, "vllm")
        server = servers.wait(adapter, 60)
        assert server.beside is None
        with pytest.raises(JobError, match="with status 400"):
            checking._first_tokens(server, ENGINES["vllm"].beside)
        with pytest.raises(JobError, match="with status 400"):
            checking._first_tokens(server, server.model)
    finally:
        servers.stop()


@pytest.mark.real
def test_what_an_engine_serves_otherwise_fails(tiny_model, tmp_path, monkeypatch, capsys):
    folder = another(tiny_model, tmp_path, suppress_tokens=[*range(150)])
    monkeypatch.setenv("WEIGHTSMITH_DATA", str(tmp_path / "data"))
    assert main(["check", str(folder), "--engine", "transformers", "--max-tokens", "8", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["passed"]
    assert found["likeliest"] < 0.5
    assert "are wanted" in found["reason"]


def test_a_prompt_that_is_read_as_other_tokens_fails(tiny_model, tmp_path, monkeypatch):
    answers = [Answer([1, 2, 3], [4])] * 8
    monkeypatch.setattr(checking, "_answers", lambda *args: ("vLLM", answers))
    found = check(Tried(tiny_model), CheckOptions(), settings(tmp_path), silent())
    assert not found.passed
    assert "reads a prompt as other tokens" in found.reason


def test_what_no_engine_serves_here_fails_with_the_reason(tiny_model, tmp_path):
    folder = tmp_path / "three"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 3, "sym": True}
    (folder / "config.json").write_text(json.dumps(config))
    found = check(Tried(folder), CheckOptions(), settings(tmp_path), silent())
    assert (found.passed, found.engine) == (False, None)
    assert "'three'" in found.reason


def test_an_engine_that_fails_at_an_answer_is_named(tiny_model):
    class Broken(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_error(500)

        def log_message(self, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Broken) as broken:
        threading.Thread(target=broken.serve_forever, args=(0.05,), daemon=True).start()
        url = f"http://127.0.0.1:{broken.server_port}/v1"
        server = Server(folder=tiny_model, engine="vllm", base_url=url, key="key")
        with pytest.raises(JobError, match=r"^vLLM loads it and fails at an answer, with status 500\.$"):
            checking._answer(server, {"prompt": "Hello"}, 4)
        broken.shutdown()
    with pytest.raises(JobError, match=r"^vLLM ended while it answered"):
        checking._answer(server, {"prompt": "Hello"}, 4)


def test_what_is_published_is_checked_before_unless_somebody_insists(make_artifact):
    assert recipe().steps == ("fetch", "quantize")
    assert recipe({"repo_id": "me/x"}).steps == ("fetch", "quantize", "check", "publish")
    assert recipe({"repo_id": "me/x", "insist": True}).steps == ("fetch", "quantize", "publish")
    written = recipe({"repo_id": "me/x", "insist": True}, [NF4, {"stage": "check"}])
    assert written.steps == ("fetch", "quantize", "check", "publish")
    passed, unchecked = make_artifact("passed"), make_artifact("unchecked", check=None)
    place = PublishOptions(repo_id="me/x")
    assert publication(passed, place).steps == ("publish",)
    assert publication(unchecked, place).steps == ("check", "publish")
    assert publication(unchecked, place.model_copy(update={"insist": True})).steps == ("publish",)


def test_a_check_wants_something_to_look_at():
    with pytest.raises(SpecError, match=r"stages\[0\]: check looks at the result"):
        recipe(stages=[{"stage": "check"}, NF4])
    assert recipe(stages=[{"stage": "finetune"}, {"stage": "check"}]).making[0].stage == "finetune"


@pytest.mark.parametrize(
    ("found", "words", "told"),
    [(FAILED, r"other things", "**It failed, and the author"), (None, "before it is checked", "No engine was tried")],
)
def test_what_did_not_pass_is_published_only_on_demand_and_the_card_says_so(
    make_artifact, tmp_path, found, words, told
):
    folder, target = make_artifact(check=None), tmp_path / "out"
    if found:
        record(folder, check=found)
    with pytest.raises(SpecError, match=words):
        publish(folder, PublishOptions(to_folder=target), None, silent())
    assert not target.exists()
    publish(folder, PublishOptions(to_folder=target, insist=True), None, silent())
    assert told in (target / "README.md").read_text()
    assert "says* other" not in (target / "README.md").read_text()


def test_the_card_says_what_the_check_found(make_artifact):
    card = build_card(make_artifact(), None)
    assert "transformers loaded these files and answered 8 prompts" in card
    assert "99.0% are what the same weights write in" in card


@pytest.mark.real
def test_who_insists_goes_on_with_what_the_recipe_has_made(tiny_model, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WEIGHTSMITH_DATA", str(tmp_path / "data"))
    folder, target = another(tiny_model, tmp_path, suppress_tokens=[*range(150)]), tmp_path / "published"
    text = f"base_model: {folder}\nstages: [{{stage: quantize, method: nf4}}]\npublish: {{to_folder: {target}}}\n"
    (tmp_path / "r.yaml").write_text(text)
    run = ["run", str(tmp_path / "r.yaml"), "--output", str(tmp_path / "out")]
    assert "insist" in fails(capsys, *run)
    assert not target.exists()
    [made] = (tmp_path / "data" / "runs").glob("*/stages/1-quantize/model.safetensors")
    before = made.stat().st_mtime_ns
    (tmp_path / "r.yaml").write_text(text.replace("}\n", ", insist: true}\n"))
    done = succeeds(capsys, *run)
    assert done["published"][0]["location"] == str(target)
    assert (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns == before
    assert open_artifact(target).check.passed is False
