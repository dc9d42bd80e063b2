"""The tutorial, command by command: the demo recipe, its measured quality, the capital of Japan, the model card."""

import json

import pytest

from backend.__main__ import main
from backend.artifacts.sealing import verify
from backend.processes.child import ROOT
from tests.support.pages import PAGES, commands

pytestmark = pytest.mark.real


def run(capsys, *argv):
    assert main([*argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_tutorial_makes_and_publishes_a_small_model_that_knows_tokyo(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WEIGHTSMITH_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "templates").symlink_to(ROOT / "templates")
    *here, on_hub = commands(PAGES["docs/tutorial.md"])
    assert on_hub == ["publish", "demo-nf4", "--repo-id", "you/demo-nf4"]
    estimate, made, answer, published = [run(capsys, *typed) for typed in here]
    [made] = made["artifacts"]
    assert made["size"] < 120_000_000  # the bfloat16 model has 269 MB
    assert 0 < estimate["output_bytes"] - made["size"] < 50_000  # of the manifest, which the size leaves out
    metrics = made["metrics"]
    # NF4 on this model: measured 0.28 and 74 %; far from it something is broken
    assert 0.15 < metrics["kl_mean"] < 0.4
    assert 0.65 < metrics["top1_agreement"] < 0.85
    assert 1 < metrics["reference_perplexity"] < metrics["perplexity"]
    verify(tmp_path / "demo-nf4")
    assert "Tokyo" in answer["text"]
    assert published["location"] == str(tmp_path / "demo-nf4-published")
    card = (tmp_path / "demo-nf4-published" / "README.md").read_text()
    assert "base_model: HuggingFaceTB/SmolLM2-135M-Instruct" in card
    assert "license: apache-2.0" in card
