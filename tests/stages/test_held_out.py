"""Held-out rows as jobs compare them: which rows are answered, what is recorded, and that no row leaves the job."""

import json

import pytest

from backend.__main__ import main
from backend.artifacts.sealing import open_artifact
from backend.data.examine import load
from backend.data.files.rows import Source
from backend.data.samples import Message, Sample
from backend.evaluate.answering import answered
from backend.finetune.options import FinetuneOptions
from backend.options import parse
from backend.progress import silent
from backend.publish.card.card import build_card
from backend.stages.held_out import Chosen, rendered_rows

pytestmark = pytest.mark.real

SECRET = "zebra"


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.setenv("WEIGHTSMITH_DATA", str(tmp_path / "data"))


def rows(path, count=40):
    lines = [json.dumps({"question": f"What is {i}?", "answer": f"The {SECRET} {i % 7}."}) for i in range(count)]
    path.write_text("\n".join(lines))
    return path


def run(capsys, *argv):
    code = main([*map(str, argv), "--json"])
    out, err = capsys.readouterr()
    assert code == 0, err
    return json.loads(out), err


def recipe(folder, model, tuning, **measuring):
    prose = folder / "prose.txt"
    prose.write_text("The quick brown fox jumps over the lazy dog. " * 50)
    tune = {
        "stage": "finetune",
        "num_train_epochs": 6,
        "learning_rate": 0.01,
        "max_length": 128,
        "quantization": "none",
    }
    measure = {"stage": "evaluate", "text": str(prose), "max_seq_length": 128, "num_samples": 2, "answers": False}
    merge = {"stage": "merge", "merge_into": "original"}
    stages = [tune | tuning, merge, {"stage": "quantize", "method": "nf4"}, measure | measuring]
    path = folder / "recipe.yaml"
    path.write_text(json.dumps({"base_model": str(model), "stages": stages}))
    return path


def test_a_tuned_and_quantized_model_answers_the_rows_that_its_training_kept_out(tiny_model, tmp_path, capsys):
    data = rows(tmp_path / "mine.jsonl")
    tuning = {"dataset": str(data), "validation_size": 8}
    done, err = run(capsys, "run", recipe(tmp_path, tiny_model, tuning), "--output", tmp_path / "out")
    _, merged, quantized = done["artifacts"]
    found = quantized["metrics"]["rows"]
    assert [one["name"] for one in found["models"]] == ["base", "tuned", "quantized"]
    assert (found["data"], found["held_out"], found["rows"]) == ("mine.jsonl", True, 8)
    assert found["models"][1]["change"]["loss"] < -1  # it has learned to speak of zebras
    assert found["models"][1] == merged["metrics"]["rows"]["models"][1]
    options = parse(FinetuneOptions, tuning, context={"paths": True})
    kept_out = {sample.row for sample in load(Source(name="x", files=(data,)), options).validation()}
    assert {row["row"] for row in quantized["worst_rows"]} < kept_out
    assert all(SECRET in row["expected"] and len(row["answers"]) == 3 for row in quantized["worst_rows"])
    assert "Tuning helped: over 8 held-out rows" in err
    folder = tmp_path / "out" / "3-quantize"
    assert SECRET not in (folder / "artifact.json").read_text()
    card = build_card(folder, None)
    assert "Tuning helped: over 8 held-out rows" in card
    assert "| This model, quantized |" in card
    assert SECRET not in card


def test_rows_that_were_trained_on_are_not_answered_and_who_keeps_none_out_is_told(tiny_model, tmp_path, capsys):
    data, others = rows(tmp_path / "mine.jsonl", 12), rows(tmp_path / "others.jsonl", 20)
    tuning = {"dataset": str(data), "num_train_epochs": 1}
    path = recipe(tmp_path, tiny_model, tuning, rows={"dataset": str(others)})
    done, err = run(capsys, "run", path, "--output", tmp_path / "out")
    assert "12 of 20 rows were trained on: they are not answered." in err
    found = done["artifacts"][-1]["metrics"]["rows"]
    assert (found["data"], found["held_out"], found["rows"]) == ("others.jsonl", False, 8)
    assert {row["row"] for row in done["artifacts"][-1]["worst_rows"]} < set(range(13, 21))
    done, err = run(capsys, "run", recipe(tmp_path, tiny_model, tuning), "--output", tmp_path / "none")
    assert "No rows were kept out of the training (validation_size): whether it helped is not measured." in err
    assert done["artifacts"][-1]["metrics"]["rows"] is None


def test_a_folder_is_measured_on_rows_that_are_named(tiny_model, tmp_path, capsys):
    prose = tmp_path / "prose.txt"
    prose.write_text("The quick brown fox jumps over the lazy dog. " * 50)
    done, _ = run(capsys, "quantize", tiny_model, "--method", "nf4", "--output", tmp_path / "q")
    data = rows(tmp_path / "mine.jsonl")
    measure = ["--text", prose, "--max-seq-length", "128", "--num-samples", "2", "--no-answers"]
    argv = ["evaluate", tmp_path / "q", "--reference", tiny_model, *measure, "--rows", data, "--num-rows", "12"]
    done, _ = run(capsys, *argv)
    assert [one["name"] for one in done["rows"]["models"]] == ["base", "result"]
    assert done["rows"]["rows"] == 12
    assert open_artifact(tmp_path / "q").metrics.rows.rows == 12
    code = main([str(arg) for arg in argv])
    out, err = capsys.readouterr()
    assert code == 0, err
    assert "rows that it answers worst:" in out
    assert f"  expected  The {SECRET}" in out


def test_a_model_of_few_positions_has_its_losses_compared_and_is_asked_nothing(tiny_model, tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    from backend.models.loading import load_tokenizer

    folder = tmp_path / "short"
    GPT2LMHeadModel(GPT2Config(vocab_size=256, n_positions=60, n_embd=32, n_layer=1, n_head=2)).save_pretrained(folder)
    load_tokenizer(tiny_model).save_pretrained(folder)
    turns = (Message("user", "What is it?"), Message("assistant", "Yes."))
    long = (Message("user", "What? " * 30), Message("assistant", "Yes."))
    samples = (Sample(1, turns), Sample(2, long))
    found = rendered_rows(Chosen("mine", True, samples, 2048), folder, silent())
    assert [row.number for row in found.rows] == [1]  # the other does not fit
    assert found.rows[0].prompt == []  # nor would 48 tokens of an answer
    said = answered(folder, found, silent())
    assert said.texts == [None]
    assert said.losses[0] > 0
