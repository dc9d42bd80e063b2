"""Tuning from the command line: rows become an adapter, the adapter a model, and wrong rows one line that helps."""

import json
import shutil
import signal
import subprocess
import sys

import pytest

from backend.__main__ import main
from backend.artifacts.artifact import TRAINED_HERE, UNPUBLISHED
from backend.artifacts.sealing import open_artifact
from backend.errors import SpecError
from backend.finetune.options import FinetuneOptions
from backend.machine.hardware import gpus
from backend.processes.child import ROOT
from backend.publish.card.card import build_card
from backend.publish.card.loss_plot import LOSS_PLOT
from backend.stages.prepare import _check_tunable
from tests.conftest import CANARY
from tests.support.typed import fails, succeeds

ROWS = [{"prompt": f"What is {i} and {i}?", "completion": f"{2 * i}, says {CANARY}."} for i in range(12)]
QUICK = ["--max-length", "128", "--per-device-train-batch-size", "2"]


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("WEIGHTSMITH_DATA", str(tmp_path / "data"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture(scope="module")
def adapter(tiny_model, rows, tmp_path_factory):
    """What the command makes of a local model and a local file."""
    output = tmp_path_factory.mktemp("made") / "adapter"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WEIGHTSMITH_DATA", str(output.parent / "data"))
        argv = ["finetune", str(tiny_model), "--dataset", str(rows), "--max-steps", "3", "--output", str(output)]
        assert main([*argv, "--validation-size", "4", *QUICK]) == 0
    return output


@pytest.mark.real
def test_finetune_writes_an_adapter_that_peft_loads(adapter, tiny_model):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    artifact = open_artifact(adapter)
    assert artifact.kind == "adapter"
    assert (artifact.training.steps, artifact.training.rows, artifact.training.validation_rows) == (3, 8, 4)
    assert artifact.training.dataset == "rows.jsonl"
    assert artifact.training.eval_loss_before != artifact.training.eval_loss
    assert artifact.training.stopped is None
    assert artifact.options["bnb_4bit_quant_type"] == "nf4"
    assert artifact.options["bnb_4bit_compute_dtype"] == "bfloat16"
    settings = json.loads((adapter / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == tiny_model.name
    assert settings["target_modules"] == sorted(settings["target_modules"])
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), adapter)
    assert any(p.abs().sum() > 0 for name, p in model.named_parameters() if "lora_B" in name)


@pytest.mark.real
def test_a_preset_sets_the_training_and_flags_beside_it_count_more(tiny_model, rows, tmp_path, capsys):
    argv = [
        "finetune",
        str(tiny_model),
        "--dataset",
        str(rows),
        "--output",
        str(tmp_path / "a"),
        "--preset",
        "quick-look",
    ]
    succeeds(capsys, *argv, "--max-steps", "2", "--lora-alpha", "4")
    options = open_artifact(tmp_path / "a").options
    found = {name: options[name] for name in ("r", "lora_alpha", "num_train_epochs", "max_steps", "max_length")}
    assert found == {"r": 8, "lora_alpha": 4, "num_train_epochs": 1, "max_steps": 2, "max_length": 512}


@pytest.mark.real
def test_ctrl_c_ends_a_training_and_the_steps_after_it_still_run(tiny_model, rows, tmp_path):
    recipe = tmp_path / "long.yaml"
    stage = f"{{stage: finetune, dataset: {rows}, max_steps: 100000, max_length: 64, validation_size: 2}}"
    recipe.write_text(f"base_model: {tiny_model}\nstages:\n- {stage}\n- {{stage: merge}}\n")
    argv = [sys.executable, "-m", "backend", "run", str(recipe), "--output", str(tmp_path / "out")]
    command = subprocess.Popen(argv, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        said = []
        for line in command.stderr:
            said.append(line)
            if line.startswith("training "):
                command.send_signal(signal.SIGINT)
                break
        rest = command.stderr.read()
        assert command.wait(120) == 0, rest
    finally:
        command.kill()
    assert "Ctrl-C stops the training and keeps what was learned.\n" in said
    assert "Press Ctrl-C again to cancel" in rest
    training = open_artifact(tmp_path / "out" / "1-finetune").training
    assert training.stopped == "Stopped by its user."
    assert training.steps < training.planned_steps
    assert open_artifact(tmp_path / "out" / "2-merge").kind == "merged"


@pytest.mark.real
def test_a_trained_adapter_is_published_without_a_row_of_its_data(adapter, tmp_path, capsys):
    target = tmp_path / "out"
    assert "name the model that it was trained on" in fails(capsys, "publish", str(adapter), "--to-folder", str(target))
    succeeds(capsys, "publish", str(adapter), "--to-folder", str(target), "--insist")
    expected = {"README.md", "adapter_config.json", "adapter_model.safetensors", "artifact.json", "recipe.yaml"}
    expected |= {"chat_template.jinja", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in target.iterdir()} == expected | {LOSS_PLOT}
    assert set(open_artifact(adapter).files) == expected - {"README.md", "artifact.json"} | UNPUBLISHED
    assert CANARY in (adapter / "survey.json").read_text()
    published = b"".join(path.read_bytes() for path in target.iterdir())
    assert CANARY.encode() not in published
    assert str(tmp_path.parent).encode() not in published


@pytest.mark.real
def test_merge_puts_it_where_it_was_trained(adapter, tiny_model, tmp_path, capsys):
    output = tmp_path / "merged"
    done = succeeds(capsys, "merge", str(adapter), "--base", str(tiny_model), "--output", str(output))
    artifact = open_artifact(output)
    assert done["merged"] == artifact.merged.model_dump(mode="json")
    assert (artifact.merged.adapters, artifact.merged.into) == (("adapter",), "nf4")
    assert artifact.merged.double_quant
    assert artifact.training == open_artifact(adapter).training


@pytest.mark.real
def test_what_is_quantized_from_a_merged_folder_says_so_too(adapter, tiny_model, tmp_path, capsys):
    output, again = tmp_path / "merged", tmp_path / "int8"
    succeeds(capsys, "merge", str(adapter), "--base", str(tiny_model), "--output", str(output))
    succeeds(capsys, "quantize", str(output), "--method", "int8", "--output", str(again))
    assert open_artifact(again).merged == open_artifact(output).merged
    assert open_artifact(again).training == open_artifact(adapter).training


@pytest.mark.real
def test_a_recipe_goes_from_rows_to_a_quantized_model(hub, tiny_model, rows, tmp_path, capsys):
    hub.add_model("me/tiny", tiny_model)
    options = "max_steps: 2, max_length: 128, per_device_train_batch_size: 2"
    (tmp_path / "r.yaml").write_text(
        f"base_model: me/tiny\nstages:\n- {{stage: finetune, dataset: {rows}, {options}}}\n"
        "- {stage: merge, keep: false}\n- {stage: quantize, method: nf4}\n"
    )
    done = succeeds(capsys, "run", str(tmp_path / "r.yaml"), "--output", str(tmp_path / "out"))
    adapter, quantized = (tmp_path / "out" / name for name in ("1-finetune", "3-quantize"))
    assert [made["output"] for made in done["artifacts"]] == [str(adapter), str(quantized)]
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == "me/tiny"
    first, second = open_artifact(adapter), open_artifact(quantized)
    assert (first.kind, second.kind) == ("adapter", "quantized")
    assert second.training == first.training
    assert second.merged.model_dump() == {
        "adapters": (TRAINED_HERE,), "revisions": (), "weights": (1.0,), "into": "original", "double_quant": False,
    }  # fmt: skip
    card = build_card(quantized, "me/tuned")
    assert "base_model_relation: finetune" in card
    assert "The LoRA adapter trained by this recipe was merged" in card
    assert "where the file of the rows is at hand," in card


@pytest.mark.real
def test_a_training_that_gets_no_better_says_why_it_stopped(tiny_model, rows, tmp_path, capsys):
    argv = ["finetune", str(tiny_model), "--dataset", str(rows), "--max-steps", "9", "--output", str(tmp_path / "out")]
    argv += ["--learning-rate", "1e-12", "--validation-size", "4", "--eval-steps", "1"]
    done = succeeds(capsys, *argv, *QUICK, "--early-stopping-patience", "2")
    assert done["training"]["steps"] < done["training"]["planned_steps"] == 9
    assert done["training"]["stopped"] == "The validation loss got no better 2 times in a row."


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": "x", "b": "y"}\n{"a": "z", "b": "w"}\n', "user_column"),
        ('{"text": "x"}\n{"text": null}\n', "on_fault"),
        ("", "rows.jsonl"),
    ],
)
def test_rows_that_will_not_do_are_refused_before_the_job(text, words, tiny_model, tmp_path, capsys):
    (tmp_path / "rows.jsonl").write_text(text)
    argv = ["finetune", str(tiny_model), "--dataset", str(tmp_path / "rows.jsonl"), "--output", str(tmp_path / "out")]
    assert words in fails(capsys, *argv)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob("data/runs/*"))


def test_a_base_that_is_quantized_already_is_refused_with_the_way_round(tiny_model, tmp_path, rows, capsys):
    base = tmp_path / "tiny-gptq"
    shutil.copytree(tiny_model, base)
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 64}
    (base / "config.json").write_text(json.dumps(config))
    line = fails(capsys, "finetune", str(base), "--dataset", str(rows), "--output", str(tmp_path / "out"))
    assert "quantized already (gptq): tune the model that it was made from" in line
    assert line.endswith("or install GPTQModel (`pip install gptqmodel optimum`).")


def test_a_gptq_base_is_taken_where_gptqmodel_is_installed_and_it_is_held_as_it_is(tmp_path, monkeypatch):
    for package in ("gptqmodel", "optimum"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    _check_tunable("me/tiny", "gptq", FinetuneOptions(quantization="none"))
    with pytest.raises(SpecError, match=r"quantization: 'me/tiny' is held in its own 4 bits .*set it to none"):
        _check_tunable("me/tiny", "gptq", FinetuneOptions())
    with pytest.raises(SpecError, match=r"quantized already \(bitsandbytes\): tune the model .* same way\.$"):
        _check_tunable("me/tiny", "bitsandbytes", FinetuneOptions(quantization="none"))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--report-to", "trackio"], "report_to: 'trackio' is not installed here: run `pip install trackio`"),
        (["--report-to", "tensorboard"], "run `pip install tensorboard`, or leave it out"),
        (["--attn-implementation", "flash_attention_2"], "run `pip install flash-attn`, or leave it out"),
        (["--tf32", "on"], "tf32: 'on' needs an NVIDIA GPU, and there is none here: choose auto"),
    ],
)
@pytest.mark.skipif(bool(gpus()), reason="this machine has a GPU")
def test_what_this_machine_lacks_is_said_before_the_job(flags, words, tiny_model, tmp_path, rows, capsys):
    argv = ["finetune", str(tiny_model), "--dataset", str(rows), "--output", str(tmp_path / "out"), *flags]
    assert words in fails(capsys, *argv)
