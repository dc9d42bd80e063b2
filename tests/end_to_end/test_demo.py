"""`make demo` on the demo model: the recipe, its measured quality, and the capital of Japan."""

import json

import pytest

from backend.__main__ import main
from backend.artifacts.sealing import verify

pytestmark = pytest.mark.real


def run(capsys, *argv):
    assert main([*argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_demo_recipe_gives_a_small_model_that_knows_paris(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WEIGHTSMITH_DATA", str(tmp_path / "data"))
    output = tmp_path / "demo"
    [made] = run(capsys, "run", "templates/recipes/demo.yaml", "--output", str(output))["artifacts"]
    assert made["size"] < 120_000_000  # the bfloat16 model has 269 MB
    metrics = made["metrics"]
    # NF4 on this model: measured 0.28 and 74 %; far from it something is broken
    assert 0.15 < metrics["kl_mean"] < 0.4
    assert 0.65 < metrics["top1_agreement"] < 0.85
    assert 1 < metrics["reference_perplexity"] < metrics["perplexity"]
    verify(output)
    question = ["--prompt", "What is the capital of Japan?", "--temperature", "0", "--max-tokens", "30"]
    assert "Tokyo" in run(capsys, "chat", str(output), *question)["text"]
    run(capsys, "publish", str(output), "--to-folder", str(tmp_path / "published"))
    card = (tmp_path / "published" / "README.md").read_text()
    assert "base_model: HuggingFaceTB/SmolLM2-135M-Instruct" in card
    assert "license: apache-2.0" in card
