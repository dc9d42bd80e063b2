"""Calibration as jobs do it: which rows or text are read, through which template, and what the artifact says of it."""

import json

import pytest

from backend.__main__ import main
from backend.artifacts.sealing import open_artifact
from backend.publish.card.card import build_card

pytestmark = pytest.mark.real

PROSE = "The quick brown fox jumps over the lazy dog, and the dog thinks about it for a while. " * 40
QUICK = ["--group-size", "32", "--num-calibration-samples", "4", "--max-seq-length", "32"]


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("WEIGHTSMITH_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def rows(path, count=40):
    """Write rows of questions and answers."""
    lines = [json.dumps({"question": f"What is {i} and {i}?", "answer": f"It is {2 * i}."}) for i in range(count)]
    path.write_text("\n".join(lines))
    return path


def run(capsys, *argv):
    code = main([str(arg) for arg in argv])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_a_model_quantized_on_a_text_can_be_measured(tiny_model, tmp_path, capsys, method):
    text = tmp_path / "prose.txt"
    text.write_text(PROSE)
    command = ["quantize", tiny_model, "--method", method, "--calibration", text, *QUICK, "--output", tmp_path / "q"]
    code, _, err = run(capsys, *command)
    assert code == 0, err
    assert "Calibrating on prose.txt: 4 windows of 32 tokens, 128 in all." in err
    made = open_artifact(tmp_path / "q")
    assert made.options["calibration"]["dataset"] == "prose.txt"
    assert made.calibration == "prose.txt: 4 windows of 32 tokens"
    assert "prose.txt: 4 windows of 32 tokens" in build_card(tmp_path / "q", None)
    assert any("128 tokens only" in warning for warning in made.warnings)
    windows = ["--max-seq-length", "32", "--num-samples", "2", "--text", text, "--no-answers", "--json"]
    code, out, err = run(capsys, "evaluate", tmp_path / "q", "--reference", tiny_model, *windows)
    assert code == 0, err
    assert 0 < json.loads(out)["kl_mean"] < 1


def test_rows_are_read_through_the_chat_template(tiny_model, tmp_path, capsys):
    source = rows(tmp_path / "rows.jsonl")
    command = ["quantize", tiny_model, "--method", "gptq", "--calibration", source, *QUICK, "--output", tmp_path / "q"]
    code, _, err = run(capsys, *command)
    assert code == 0, err
    assert "Calibrating on rows.jsonl: 4 windows of 32 tokens" in err


def test_columns_are_asked_for_and_named(tiny_model, tmp_path, capsys):
    source = tmp_path / "rows.csv"
    source.write_text("frage,antwort\n" + "".join(f"Was ist {i}?,Das ist {i} und nichts anderes.\n" for i in range(40)))
    command = ["quantize", tiny_model, "--method", "gptq", "--calibration", source, *QUICK, "--output", tmp_path / "q"]
    code, _, err = run(capsys, *command)
    assert code == 1
    assert "There are 'frage', 'antwort': name them in user_column and assistant_column" in err
    assert not (tmp_path / "q").exists()
    command += ["--calibration-user-column", "frage", "--calibration-assistant-column", "antwort"]
    code, _, err = run(capsys, *command)
    assert code == 0, err
    assert "Calibrating on rows.csv: 4 windows of 32 tokens" in err
    assert open_artifact(tmp_path / "q").options["calibration"]["user_column"] == "frage"


def test_rows_of_the_hub_are_fetched_at_the_commit_that_was_looked_at(hub, tiny_model, tmp_path, capsys):
    commit = hub.add_dataset("them/rows", {"train.jsonl": rows(tmp_path / "rows.jsonl").read_bytes()})
    command = ["quantize", tiny_model, "--method", "awq", "--calibration", "them/rows", *QUICK, "--output"]
    code, _, err = run(capsys, *command, tmp_path / "q")
    assert code == 0, err
    options = open_artifact(tmp_path / "q").options
    assert options["calibration"]["dataset"] == "them/rows"
    assert len(options["calibration"]["revision"]) == 40
    assert commit is None or options["calibration"]["revision"] == commit


def test_a_tuned_model_is_calibrated_on_the_rows_that_it_was_tuned_on(tiny_model, tmp_path, capsys):
    source = rows(tmp_path / "rows.jsonl")
    recipe = {
        "base_model": str(tiny_model),
        "stages": [
            {"stage": "finetune", "dataset": str(source), "max_steps": 1, "quantization": "none", "max_length": 64},
            {"stage": "merge", "keep": False},
            {"stage": "quantize", "method": "gptq", "group_size": 32, "max_seq_length": 32},
        ],
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    code, _, err = run(capsys, "run", tmp_path / "recipe.yaml", "--output", tmp_path / "q")
    assert code == 0, err
    assert "Calibrating on rows.jsonl (" in err
    assert "conversations through the model's chat template (" in err


def test_too_little_text_is_refused_with_its_number(tiny_model, tmp_path, capsys):
    text = tmp_path / "short.txt"
    text.write_text("Short.")
    command = ["quantize", tiny_model, "--method", "gptq", "--calibration", text, *QUICK, "--output", tmp_path / "q"]
    code, _, err = run(capsys, *command)
    assert code == 1
    assert "The calibration text 'short.txt' has 8 tokens, fewer than one window of 32" in err
