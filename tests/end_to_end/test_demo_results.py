"""What the demo model became: measured, timed, and loaded, asked and compared in a real browser as a person does.

One module, so that one process makes it, once.
"""

import json
import re
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
import torch
from playwright.sync_api import expect

from backend.__main__ import main
from backend.artifacts.sealing import open_artifact
from backend.check import _refuse_ignored
from backend.errors import JobError
from backend.evaluate import EvaluateOptions, Text, measure
from backend.jobs.store import UNFINISHED, JobState
from backend.jobs.supervisor import Supervisor
from backend.models.demo import BASE_MODEL, evaluation_text
from backend.models.loading import load_tokenizer
from backend.progress import silent
from backend.publish.adopt import adopt
from backend.publish.card.card import build_card
from backend.quantize.packed import load
from backend.recipes import parse_recipe
from backend.serve.engines.vllm_environment import interpreter
from backend.serve.server import Server
from backend.settings import Settings
from tests.support.browser import choose, open_chat, running
from tests.support.card_lines import OVERLAY, run_python, served
from ui.visitor import LOCAL

pytestmark = pytest.mark.real

SECONDS = 240_000  # for a model to load, in milliseconds, on a machine that has other things to do
QUESTION, ANSWER = "What is the capital of Japan?", "The capital of Japan is Tokyo"
"""What every variant decides by far; of France's capital the demo model begins in English or in French by a tenth of a
nat, which processors round differently.
"""


class DemoResults(NamedTuple):
    """A data folder, and the artifacts in it by their method."""

    data: Path
    folders: dict[str, Path]


_QUICK = {"stage": "quantize", "group_size": 64, "num_calibration_samples": 16, "max_seq_length": 512}
DEMO_RECIPES = {
    "nf4": [{"stage": "quantize", "method": "nf4"}],
    "gptq": [{**_QUICK, "method": "gptq"}],
    "awq": [{**_QUICK, "method": "awq"}, {"stage": "evaluate", "max_seq_length": 256, "num_samples": 2}],
    # what the base model knows stays
    "adapter": [
        {"stage": "finetune", "dataset": "demo", "split": "[:40]", "max_steps": 2, "quantization": "none",
         "learning_rate": 1e-6}
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def demo_results(tmp_path_factory: pytest.TempPathFactory) -> DemoResults:
    """The demo model as NF4, GPTQ, AWQ, and with an adapter, by jobs of the page's own user; AWQ is measured too."""
    settings = Settings(data=tmp_path_factory.mktemp("demo-results") / "data").writable()
    supervisor, found = Supervisor(settings), dict[str, Path]()
    supervisor.start()
    try:
        for name, stages in DEMO_RECIPES.items():
            job_id = supervisor.submit(parse_recipe({"base_model": "demo", "stages": stages}), LOCAL, None)
            while (job := supervisor.get(job_id, LOCAL)).state in UNFINISHED:
                time.sleep(0.1)
            assert job.state == JobState.COMPLETED, job.error
            [found[name]] = supervisor.artifacts(job_id, LOCAL)
    finally:
        supervisor.stop()
    return DemoResults(settings.data, found)


@pytest.fixture(scope="module")
def app(demo_results):
    """An app on the data folder in which the jobs were done."""
    with running(demo_results.data) as started:
        yield started


@pytest.fixture
def chat(page):
    """The page at its Chat tab, where answers are not left to chance."""
    open_chat(page)
    page.locator("#sampling-temperature input").first.fill("0")
    return page


@pytest.mark.parametrize("name", DEMO_RECIPES)
def test_the_question_is_decided_by_the_weights_and_not_by_a_processors_rounding(demo_results, name):
    """Each token of the answer is likelier by a nat than any other: kernels differ by a tenth of one."""
    folder = demo_results.folders[name]
    whole = demo_results.data / "models" / "demo" if name == "adapter" else folder
    model = load(whole, silent())
    if whole != folder:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, folder)
    tokenizer, asked = load_tokenizer(folder), [{"role": "user", "content": QUESTION}]
    prompt = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    read, answer = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, ANSWER))
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([read + answer])).logits[0, len(read) - 1 : -1].float()
    told = logits[range(len(answer)), answer]
    others = logits.scatter(1, torch.tensor(answer)[:, None], -torch.inf).amax(1)
    assert (told - others).min() > 1


@pytest.mark.parametrize(
    ("title", "engine"), [("NF4", "transformers"), ("GPTQ", "vllm"), ("AWQ", "vllm"), ("fine-tuned", "vllm")]
)
def test_every_variant_is_loaded_and_knows_the_capital_of_japan(chat, title, engine):
    choose(chat, "#chat-artifact", re.compile(f" · {title} · "))
    chat.locator("#chat-start").click()
    expect(chat.locator("#chat-status")).to_contain_text(f"served by {engine}", timeout=SECONDS)
    chat.locator("#chat-input textarea").fill(QUESTION)
    chat.locator("#chat-send").click()
    expect(chat.locator("#chat-box .message.bot")).to_contain_text("Tokyo", timeout=60_000)
    expect(chat.locator("#chat-speed")).to_contain_text("tokens of context used", timeout=60_000)


def test_two_models_answer_side_by_side_and_a_blind_vote_is_counted(chat):
    chat.locator("#compare-prompt textarea").fill(QUESTION)
    chat.locator("#compare-ask").click()
    cells = chat.locator("#compare-board article")
    expect(cells).to_have_count(2)
    for number, title in enumerate(("tuned", "AWQ")):
        expect(cells.nth(number).locator("h3")).to_contain_text(title)
        expect(cells.nth(number).locator("p")).to_contain_text("Tokyo", timeout=SECONDS)
        told = re.compile(r"tokens/s.* of memory")  # once the answer has ended, which may be a long one
        expect(cells.nth(number).locator("small")).to_contain_text(told, timeout=SECONDS)
    chat.locator("#compare-blind input").check()
    chat.locator("#compare-ask").click()
    chat.locator("#compare-vote").get_by_text("A", exact=True).click(timeout=SECONDS)
    expect(chat.locator("#compare-note tbody tr")).to_have_count(2)
    expect(chat.locator("#compare-note tbody tr").first).to_contain_text(re.compile(r"1\s*1$"))
    chat.locator("#chat-unload").click()
    expect(chat.locator("#chat-status")).to_contain_text("not loaded")


def test_a_packed_model_and_its_reference_are_timed_in_vllm_for_the_card(demo_results):
    metrics = open_artifact(demo_results.folders["awq"]).metrics
    assert metrics.engine == "vLLM"
    assert metrics.tokens_per_second > 0 < metrics.reference_tokens_per_second
    assert "were timed in vLLM" in build_card(demo_results.folders["awq"], None)


def test_a_tuned_adapter_answers_on_its_base_model_in_transformers_too(demo_results, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WEIGHTSMITH_DATA", str(tmp_path / "data"))
    adapter, base = demo_results.folders["adapter"], demo_results.data / "models" / "demo"
    question = ["--prompt", QUESTION, "--temperature", "0", "--max-tokens", "40", "--json"]
    assert main(["chat", str(adapter), "--base-model", str(base), "--engine", "transformers", *question]) == 0
    assert "Tokyo" in json.loads(capsys.readouterr().out)["text"]


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_the_demo_model_in_4_bits_loses_little(demo_results, method):
    """NF4 loses 0.28 nats a token on this text."""
    base, text = demo_results.data / "models" / "demo", Text(name="prose", content=evaluation_text())
    options = EvaluateOptions(max_seq_length=512, num_samples=12, answers=False)
    assert measure(base, demo_results.folders[method], text, options, silent()).kl_mean < 0.09


W4A16 = """
import sys
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp, is_module_quantized
from transformers import AutoModelForCausalLM, AutoTokenizer
base, output = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base)
groups = {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "strategy": "group", "group_size": 32}}}
ignored = ["lm_head", "re:.*(q|k|v|o|gate|up)_proj"]
apply_quantization_config(model, QuantizationConfig(config_groups=groups, ignore=ignored))
for module in filter(is_module_quantized, model.modules()):
    settings = module.quantization_scheme.weights
    module.weight_scale.data, _ = compute_dynamic_scales_and_zp(module.weight.data, settings, module)
compressor = ModelCompressor.from_pretrained_model(model)
compressor.compress_model(model)
model.save_pretrained(output)
compressor.update_config(output)
AutoTokenizer.from_pretrained(base).save_pretrained(output)
"""
"""Rounds a few layers of a model and saves it, with the library that llm-compressor does it with."""


@pytest.fixture(scope="module")
def variants(demo_results, tmp_path_factory):
    """What the demo model became here, and elsewhere in the format compressed-tensors."""
    place, base = tmp_path_factory.mktemp("elsewhere"), demo_results.data / "models" / "demo"
    subprocess.run([OVERLAY / "bin" / "python", "-c", W4A16, base, place / "w4a16"], check=True)
    adopt(place / "w4a16", place / "adopted", BASE_MODEL, silent())
    return {**demo_results.folders, "compressed-tensors": place / "adopted"}


@pytest.fixture
def card(request, variants, demo_results, hub):
    """The card of a variant that lies on the Hub, beside its base model."""
    text = build_card(variants[request.param], "me/demo")
    hub.add_model(BASE_MODEL, demo_results.data / "models" / "demo")
    hub.add_model("me/demo", variants[request.param], card=text)
    return text


@pytest.mark.parametrize("card", [*DEMO_RECIPES, "compressed-tensors"], indirect=True)
def test_the_python_lines_of_a_card_run_with_what_its_pip_line_brings(card, tmp_path):
    assert "Tokyo" in run_python(card, tmp_path)


def adapted(server):
    """Look at how vLLM tells an adapter, be it hardly trained, from what it computes twice."""
    _refuse_ignored(server)
    with pytest.raises(JobError, match="answers as the base model does"):
        _refuse_ignored(server.model_copy(update={"beside": server.model}))


@pytest.mark.skipif(interpreter() is None, reason="needs vLLM: make vllm")
@pytest.mark.parametrize(("card", "model"), [("adapter", "demo"), ("compressed-tensors", "me/demo")], indirect=["card"])
def test_the_shell_lines_of_a_card_fetch_and_serve_it(card, model, tmp_path):
    said = {"model": model, "messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": 40}
    with served(card, tmp_path) as address:
        reply = httpx.post(f"{address}/v1/chat/completions", json=said, timeout=60)
        if model == "demo":  # an adapter beside its base model
            adapted(Server(folder=Path(model), engine="vllm", base_url=f"{address}/v1", key="none", beside=BASE_MODEL))
    assert "Tokyo" in reply.json()["choices"][0]["message"]["content"]
