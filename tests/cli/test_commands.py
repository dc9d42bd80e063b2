"""The command line: every command on a tiny model, every bad input as one line."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from backend.__main__ import main
from backend.artifacts.artifact import Check
from backend.artifacts.sealing import open_artifact, record
from backend.executors import local
from backend.jobs.foreground import identity
from backend.processes.child import ROOT
from backend.recipes import parse_recipe
from tests.conftest import PASSED
from tests.support.typed import fails, succeeds

PROSE = "The quick brown fox jumps over the lazy dog. " * 20
MEASURE = ["--max-seq-length", "32", "--num-samples", "2"]


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("WEIGHTSMITH_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture(scope="module")
def nf4(tiny_model, tmp_path_factory):
    """An artifact that the command line made of the tiny model in a local folder."""
    output = tmp_path_factory.mktemp("made") / "nf4"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WEIGHTSMITH_DATA", str(output.parent / "data"))
        assert main(["quantize", str(tiny_model), "--method", "nf4", "--output", str(output)]) == 0
    return output


@pytest.fixture(scope="module")
def checked(nf4, tmp_path_factory):
    """The same after a check that it passed."""
    folder = shutil.copytree(nf4, tmp_path_factory.mktemp("checked") / "nf4")
    record(folder, check=Check(**PASSED))
    return folder


@pytest.fixture
def misfits(hub, nf4, tiny_model):
    """A Hub of models that cannot be quantized."""
    config = json.loads((tiny_model / "config.json").read_text())
    hub.add_model("them/gated", tiny_model, gated=True)
    hub.add_model("them/pickled", {"config.json": json.dumps(config), "consolidated.pth": b"\x80"})
    coded = json.dumps(config | {"model_type": "own", "auto_map": {"AutoModelForCausalLM": "modeling.Model"}})
    hub.add_model("them/coded", {"config.json": coded, "model.safetensors": b"x" * 2000})
    weights = {name: (nf4 / name).read_bytes() for name in ("config.json", "model.safetensors", "tokenizer.json")}
    hub.add_model("them/quantized", weights)
    return hub


def test_quantize_writes_an_artifact_and_leaves_no_job_behind(nf4):
    artifact = open_artifact(nf4)
    assert artifact.options["method"] == "nf4"
    assert {"config.json", "model.safetensors", "tokenizer.json", "recipe.yaml"} <= set(artifact.files)
    assert not list((nf4.parent / "data" / "runs").iterdir())


def test_flags_are_the_options_of_the_method(hub, tiny_model, tmp_path, capsys):
    hub.add_model("me/tiny", tiny_model)
    output = tmp_path / "q"
    options = ["--no-bnb-4bit-use-double-quant", "--llm-int8-skip-modules", "down_proj,lm_head"]
    done = succeeds(capsys, "quantize", "me/tiny", "--method", "fp4", "--output", str(output), *options)
    assert done["output"] == str(output)
    chosen = json.loads((output / "config.json").read_text())["quantization_config"]
    assert chosen["bnb_4bit_use_double_quant"] is False
    assert chosen["llm_int8_skip_modules"] == ["down_proj", "lm_head"]


@pytest.mark.real
def test_evaluate_prints_the_promised_figures_and_keeps_them(nf4, tiny_model, tmp_path, capsys):
    text = tmp_path / "prose.txt"
    text.write_text(PROSE)
    done = succeeds(capsys, "evaluate", str(nf4), "--reference", str(tiny_model), "--text", str(text), *MEASURE)
    promised = {"kl_mean", "kl_p99", "top1_agreement", "perplexity", "reference_perplexity", "tokens"}
    assert promised <= set(done)
    assert done["tokens"] == 2 * 31
    assert open_artifact(nf4).metrics.model_dump(mode="json") == done


def test_estimate_promises_what_quantize_then_writes(nf4, tiny_model, capsys):
    done = succeeds(capsys, "estimate", str(tiny_model), "--method", "nf4")
    assert set(done) == {"output_bytes", "peak_memory_bytes", "disk_bytes", "seconds", "files"}
    assert done["files"] == {path.name: path.stat().st_size for path in nf4.iterdir()}
    assert done["output_bytes"] == done["disk_bytes"] == sum(done["files"].values())
    assert done["peak_memory_bytes"] == pytest.approx(open_artifact(nf4).peak_memory_bytes, rel=0.2)


def test_estimate_takes_a_recipe_and_says_what_its_training_needs_by_part(tiny_model, tmp_path, capsys):
    recipe = tmp_path / "tune.yaml"
    recipe.write_text(f"base_model: {tiny_model}\nstages:\n- {{stage: finetune, r: 4}}\n- {{stage: merge}}\n")
    done = succeeds(capsys, "estimate", str(recipe))
    assert done["seconds"] > 0
    assert sum(done["training"]["memory"].values()) <= done["peak_memory_bytes"]
    assert list(done["training"].values())[-1]["adapter"] > 0
    assert main(["estimate", str(recipe)]) == 0
    assert "the training's memory: process " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["{}", "--method", "nf4"], "leave out --method"),
        (["{}", "--revision", "main"], "leave out --revision"),
        (["demo"], "Say how with --method, or give a recipe file"),
        (["no.yaml"], "Could not read the recipe"),
    ],
)
def test_estimate_wants_either_a_recipe_or_a_method(tmp_path, capsys, argv, words):
    recipe = tmp_path / "tune.yaml"
    recipe.write_text("base_model: demo\nstages:\n- {stage: finetune}\n")
    assert words in fails(capsys, "estimate", *(word.format(recipe) for word in argv))


@pytest.mark.real
def test_run_does_a_recipe_and_publishes_to_a_folder(tiny_model, tmp_path, capsys):
    (tmp_path / "prose.txt").write_text(PROSE)
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"base_model: {tiny_model}\nstages:\n- {{stage: quantize, method: nf4}}\n- {{stage: quantize, method: int8}}\n"
        "- {stage: evaluate, text: prose.txt, max_seq_length: 32, num_samples: 2}\n"
    )
    done = succeeds(capsys, "run", str(recipe), "--output", str(tmp_path / "out"))
    assert [Path(made["output"]).name for made in done["artifacts"]] == ["1-quantize", "2-quantize"]
    assert all(made["metrics"]["tokens"] == 62 for made in done["artifacts"])


@pytest.mark.real
def test_quantize_writes_several_layouts_into_folders_and_estimate_says_their_bytes(tiny_model, tmp_path, capsys):
    options = ["--method", "gptq", "--layouts", "gptq,awq", "--group-size", "32", "--num-calibration-samples", "4"]
    needed = succeeds(capsys, "estimate", str(tiny_model), *options)
    done = succeeds(capsys, "quantize", str(tiny_model), *options, "--output", str(tmp_path / "out"))
    folders = [Path(made["output"]) for made in done["artifacts"]]
    assert folders == [tmp_path / "out" / "1-quantize", tmp_path / "out" / "2-quantize"]
    assert [open_artifact(folder).options["layout"] for folder in folders] == ["gptq", "awq"]
    written = {f"{folder.name}/{path.name}": path.stat().st_size for folder in folders for path in folder.iterdir()}
    assert needed["files"] == written


@pytest.mark.real
def test_publish_writes_to_a_folder_what_the_hub_would_get(nf4, tmp_path, capsys):
    done = succeeds(capsys, "publish", str(nf4), "--to-folder", str(tmp_path / "out"))
    assert done["location"] == str(tmp_path / "out")
    assert (tmp_path / "out" / "README.md").is_file()


def test_publish_takes_the_token_from_the_environment(checked, hub, capsys, monkeypatch):
    hub.add_token("hf_" + "x" * 30, "me")
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 30)
    done = succeeds(capsys, "publish", str(checked), "--repo-id", "me/tiny-nf4")
    assert "me/tiny-nf4" in done["location"]
    assert "model.safetensors" in hub.files("me/tiny-nf4")
    hub.add_model("me/taken", {"README.md": "somebody's work"})
    assert "'me/taken'" in fails(capsys, "publish", str(checked), "--repo-id", "me/taken")
    assert set(hub.files("me/taken")) == {"README.md"}


def test_publish_says_first_that_a_free_account_may_be_full_and_links_to_variants(checked, hub, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_write")
    hub.add_model("me/secret", {"config.json": "{}"}, private=True, used_storage=100 * 10**9)
    argv = ["publish", str(checked), "--repo-id", "me/tiny-nf4", "--variants", "me/tiny-int8,me/tiny-gptq", "--json"]
    assert main(argv) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["verified"]
    assert err.startswith("'me' holds 100 GB in private repos and ")
    card = hub.files("me/tiny-nf4")["README.md"].decode()
    assert all(f"* [{name}](https://huggingface.co/{name})" in card for name in ("me/tiny-int8", "me/tiny-gptq"))
    assert "not a repo id" in fails(capsys, "publish", str(checked), "--repo-id", "me/x", "--variants", "me/x y")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["quantize", "no/such", "--method", "nf4", "--output", "OUT"], "'no/such'"),
        (["quantize", "./nothing", "--method", "nf4", "--output", "OUT"], "'./nothing'"),
        (["quantize", "", "--method", "nf4", "--output", "OUT"], "is empty"),
        (["quantize", "demo", "--method", "nf4", "--llm-int8-threshold", "3", "--output", "OUT"], "llm_int8_threshold"),
        (["quantize", "demo", "--method", "nf4", "--output", "OUT" + "x" * 300], "too long"),
        (["quantize", "demo", "--method", "nf4", "--output", "/proc/version/x"], "choose another"),
        (["run", "deep.yaml"], "deep.yaml"),
        (["evaluate", "nothing", "--reference", "demo"], "'nothing'"),
        (["run", "nothing.yaml"], "nothing.yaml"),
        (["publish", ".", "--to-folder", "OUT"], "config.json"),
        (["publish", ".", "--repo-id", "x"], "namespace"),
        (["publish", "."], "repo_id or to_folder"),
        (["chat", ".", "--prompt", "hi"], "config.json"),
        (["estimate", "demo", "--method", "nf4", "--revision", "x"], "revision"),
    ],
)
def test_bad_input_gets_one_line(argv, words, capsys, tmp_path, hub, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deep.yaml").write_text("[" * 5000)
    assert words in fails(capsys, *[word.replace("OUT", str(tmp_path / "out")) for word in argv])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("them/gated", "'them/gated' is gated"),
        ("them/pickled", "pickled weights"),
        ("them/coded", "auto_map"),
        ("them/quantized", "quantized already (bitsandbytes)"),
    ],
)
def test_a_model_that_will_not_do_gets_one_line(misfits, model, words, tmp_path, capsys):
    assert words in fails(capsys, "quantize", model, "--method", "nf4", "--output", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_disk_that_is_too_small_is_named_with_both_figures(hub, tiny_model, tmp_path, capsys, monkeypatch):
    hub.add_model("me/tiny", tiny_model)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    line = fails(capsys, "quantize", "me/tiny", "--method", "nf4", "--output", str(tmp_path / "out"))
    assert re.search(r"needs [\d.]+ MB and 0\.0 MB are free: free", line)


def test_a_memory_that_is_too_small_is_named_with_both_figures(tiny_model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(local, "memory_bytes", lambda: 64_000_000)
    line = fails(capsys, "quantize", str(tiny_model), "--method", "nf4", "--output", str(tmp_path / "out"))
    assert re.search(
        r"'quantize' needs 1\d\d\.\d MB of memory and this machine has 64\.0 MB, \d+\.\d MB too little", line
    )
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_there_already_is_left_alone(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert "there already" in fails(capsys, "quantize", "demo", "--method", "nf4", "--output", str(tmp_path))
    assert (tmp_path / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("flag", "value"), [("--method", "nf5"), ("--llm-int8-threshold", "high"), ("--no-such-flag", "1")]
)
def test_a_flag_or_value_that_there_is_not_is_wrong_usage(flag, value, capsys):
    argv = ["quantize", "demo", *([] if flag == "--method" else ["--method", "int8"]), "--output", "x", flag, value]
    try:
        code = main(argv)
    except SystemExit as e:  # argparse's own way
        code = e.code
    assert code == 2
    assert flag in capsys.readouterr().err


def test_a_variable_that_will_not_do_is_named(capsys, monkeypatch, tmp_path):
    argv = ["quantize", "demo", "--method", "nf4", "--output", str(tmp_path / "out")]
    monkeypatch.setenv("WEIGHTSMITH_PORT", "abc")
    assert "WEIGHTSMITH_PORT" in fails(capsys, *argv)
    monkeypatch.delenv("WEIGHTSMITH_PORT")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("WEIGHTSMITH_DATA", str(tmp_path / "file"))
    assert "WEIGHTSMITH_DATA" in fails(capsys, *argv)


def test_a_run_whose_files_were_changed_is_another_run(tiny_model, tmp_path):
    model, text = tmp_path / "model", tmp_path / "prose.txt"
    shutil.copytree(tiny_model, model)
    text.write_text(PROSE)
    stages = [{"stage": "quantize", "method": "nf4"}, {"stage": "evaluate", "text": str(text)}]
    recipe = parse_recipe({"base_model": str(model), "stages": stages}, paths=True)
    first = identity(recipe)
    assert identity(recipe) == first
    text.write_text(PROSE + "More.")
    second = identity(recipe)
    (model / "model.safetensors").write_bytes(b"other")
    assert len({first, second, identity(recipe)}) == 3


def test_an_artifact_that_was_changed_is_not_measured(nf4, tiny_model, tmp_path, capsys):
    damaged, text = tmp_path / "damaged", tmp_path / "prose.txt"
    shutil.copytree(nf4, damaged)
    text.write_text(PROSE)
    weights = bytearray((damaged / "model.safetensors").read_bytes())
    weights[-1000] ^= 1
    (damaged / "model.safetensors").write_bytes(weights)
    before = (damaged / "artifact.json").read_bytes()
    argv = ["evaluate", str(damaged), "--reference", str(tiny_model), "--text", str(text), *MEASURE]
    assert "has changed" in fails(capsys, *argv)
    assert (damaged / "artifact.json").read_bytes() == before


def test_a_model_without_a_tokenizer_is_made_with_a_warning(tiny_model, tmp_path, capsys):
    source = tmp_path / "bare"
    shutil.copytree(tiny_model, source, ignore=shutil.ignore_patterns("token*", "special*"))
    done = succeeds(capsys, "quantize", str(source), "--method", "nf4", "--output", str(tmp_path / "out"))
    assert "without a tokenizer" in done["warnings"][0]


def test_wrong_usage_exits_with_2(capsys):
    with pytest.raises(SystemExit) as e:
        main(["quantize", "demo"])
    assert e.value.code == 2
    assert "--output" in capsys.readouterr().err


def test_help_names_every_command_and_every_option_with_its_method():
    def text(*argv):
        return subprocess.run(
            [sys.executable, "-m", "backend", *argv, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout

    commands = text()
    assert all(name in commands for name in ("quantize", "evaluate", "chat", "serve", "publish", "estimate", "run"))
    assert "--no-bnb-4bit-use-double-quant" in text("quantize")
