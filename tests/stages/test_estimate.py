"""Estimates against what is then on the disk, byte for byte, and plans that do not fit this machine."""

import json
import shutil

import pytest

from backend.artifacts.artifact import MANIFEST, Metrics
from backend.artifacts.sealing import open_artifact, record
from backend.errors import HardwareError
from backend.evaluate import EvaluateOptions
from backend.executors import local
from backend.executors.contract import Machine
from backend.executors.local import this_machine
from backend.jobs.foreground import finished
from backend.jobs.job import write_spec
from backend.jobs.worker import do
from backend.machine import speeds
from backend.machine.speeds import SPEEDS, Speeds, read_speeds, write_speeds
from backend.models import fetch
from backend.models.demo import demo_facts
from backend.models.inspection import inspect
from backend.progress import silent
from backend.quantize.layouts import LAYOUTS
from backend.recipes import parse_recipe
from backend.settings import Settings
from backend.stages.estimate import check_room, estimate, measured_speeds
from backend.stages.evaluate import ROW_SECONDS_A_PARAMETER
from backend.stages.work import stage_folder
from tests.support.family_models import make
from tests.support.saved_models import CASES, llama, save

CARD = "---\nlicense: other\nlicense_name: acme-ü\nlanguage: [en, no]\ntags: [chat]\n2: 3\n---\n# Tiny\n"
TEXTS = {"README.md": CARD, "LICENSE": "Do good things.\n", "NOTICE.txt": "Mind.\n", "COPYING": "Copy.\n"}
METHODS = [
    {"method": "nf4"},
    {"method": "nf4", "bnb_4bit_use_double_quant": False, "llm_int8_skip_modules": ["q_proj", "c_attn"]},
    {"method": "fp4", "max_shard_size": 9000},
    {"method": "int8", "llm_int8_threshold": 4.5},
    {"method": "cast", "dtype": "float16"},
    {"method": "cast", "dtype": "float32", "max_shard_size": 9000},
]
CALIBRATED = [
    {"method": "gptq", "group_size": 32, "max_shard_size": 30_000, "max_seq_length": 64},
    {"method": "awq", "group_size": 64, "max_seq_length": 64},
]
SCALED = [
    {"method": "fp8", "max_shard_size": 30_000},
    {"method": "w8a16", "group_size": 32},
    {"method": "w4a16", "group_size": -1},
    {"method": "mxfp4"},
]
METRICS = Metrics(
    kl_mean=1 / 3, kl_p99=1 / 7, top1_agreement=2 / 3, perplexity=1 / 0.07, reference_perplexity=1 / 0.3, tokens=12345,
    text="some text", convention="windows " * 20,
)  # fmt: skip


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("WEIGHTSMITH_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def recipe_of(model, *chosen, **more):
    return parse_recipe(
        {"base_model": str(model), "stages": [{"stage": "quantize", **c} for c in chosen], **more}, paths=True
    )


def on_disk(folder):
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def made(recipe, job):
    """Do a recipe's steps in this process, without its network, and give the results' folders."""
    job.mkdir()
    write_spec(job, recipe)
    for index in range(len(recipe.stages) + 1):
        do(job, index, index == 0, None, silent())
    return [stage_folder(job, recipe, index) for index in range(1, len(recipe.stages) + 1)]


@pytest.fixture(scope="module")
def source(tmp_path_factory, tiny_model):
    """Return a model folder by the name of its case, with tokenizer, card and licenses, or bare."""
    found = {}

    def give(case):
        if case not in found:
            _, config, saving = next(c for c in CASES if c[0] == case)
            found[case] = save(config, tmp_path_factory.mktemp("models") / "tiny", **saving)
            if case != "float16":  # one is bare
                for path in (*tiny_model.glob("token*"), *tiny_model.glob("chat_template*")):
                    shutil.copyfile(path, found[case] / path.name)
                for name, text in TEXTS.items():
                    (found[case] / name).write_text(text)
        return found[case]

    return give


@pytest.mark.parametrize("case", [case[0] for case in CASES])
def test_every_file_of_every_result_has_the_bytes_that_were_estimated(case, source, data, tmp_path):
    model = source(case)
    recipe = recipe_of(model, *METHODS)
    expected = estimate(recipe, inspect(str(model)), data)
    folders = made(recipe, tmp_path / "job")
    assert expected.files == {f"{f.name}/{name}": size for f in folders for name, size in on_disk(f).items()}
    assert expected.output_bytes == expected.disk_bytes == sum(sum(on_disk(f).values()) for f in folders)
    assert ("1-quantize/tokenizer.json" in expected.files) == (case != "float16")


@pytest.mark.parametrize("chosen", [CALIBRATED, SCALED])
def test_results_in_packed_layouts_have_the_bytes_that_were_estimated(chosen, tiny_model, data, tmp_path):
    recipe = recipe_of(tiny_model, *chosen)
    expected = estimate(recipe, inspect(str(tiny_model)), data)
    folders = made(recipe, tmp_path / "job")
    assert expected.files == {f"{f.name}/{name}": size for f in folders for name, size in on_disk(f).items()}


def test_layouts_of_one_calibration_are_estimated_with_its_time_once_and_the_bytes_of_all(tiny_model, data, tmp_path):
    stage = {"method": "gptq", "group_size": 32, "max_seq_length": 64}
    several = recipe_of(tiny_model, {**stage, "layouts": ["gptq", "awq", "compressed-tensors"]})
    facts = inspect(str(tiny_model))
    together = estimate(several, facts, data)
    alone = [estimate(recipe_of(tiny_model, {**stage, "layout": name}), facts, data) for name in LAYOUTS]
    folders = made(several, tmp_path / "job")
    assert together.files == {f"{f.name}/{name}": size for f in folders for name, size in on_disk(f).items()}
    assert together.seconds < alone[0].seconds + alone[1].seconds
    assert together.peak_memory_bytes == max(each.peak_memory_bytes for each in alone)


def test_what_calibration_reads_is_said_before_the_start(tiny_model, tiny_bare_model, data):
    def notes(model, *stages):
        return estimate(recipe_of(model, *stages), inspect(str(model)), data).notes

    [talks], [base] = notes(tiny_model, CALIBRATED[0]), notes(tiny_bare_model, CALIBRATED[0])
    assert talks.startswith("Calibration reads embedded prose and conversations, with thoughts and tool calls if ")
    assert base == "Calibration reads embedded prose alone, for the model has no chat template."
    tuned = ({"stage": "finetune", "dataset": "demo"}, {"stage": "merge"}, CALIBRATED[0])
    [mixed] = notes(tiny_model, *tuned)
    assert mixed.startswith("Calibration reads the rows that are trained on, and beside them embedded prose and ")
    assert notes(tiny_model, CALIBRATED[0] | {"calibration": {"dataset": "demo"}}) == ()


def test_refined_scales_are_counted_where_there_is_room_and_else_it_is_said(tiny_model, data):
    facts = inspect(str(tiny_model))

    def needed(refine, memory):
        recipe = recipe_of(tiny_model, CALIBRATED[0] | {"refine": refine})
        return estimate(recipe, facts, data, machine=Machine(memory))

    plain, refined, cramped = needed(False, 10**10), needed(True, 10**10), needed(True, 5 * 10**8)
    assert refined.seconds > plain.seconds == cramped.seconds
    assert refined.peak_memory_bytes >= plain.peak_memory_bytes == cramped.peak_memory_bytes
    assert [text for text in cramped.warnings if "The scales are not refined: that takes" in text]
    assert refined.warnings == plain.warnings


@pytest.mark.parametrize("options", [{"bits": 3}, {"sym": False}, {"desc_act": True}])
def test_what_vllm_will_not_serve_is_said_before_the_start_and_by_the_result(tiny_model, data, tmp_path, options):
    short = CALIBRATED[0] | {"num_calibration_samples": 2}
    recipe, facts = recipe_of(tiny_model, short | options, short), inspect(str(tiny_model))
    words = "vLLM serves GPTQ in 4 and 8 bits with sym and without desc_act alone, and the result is other: it loads"
    [said] = [warning for warning in estimate(recipe, facts, data).warnings if "vLLM" in warning]
    assert said.startswith(words)
    found = [open_artifact(folder).warnings for folder in made(recipe, tmp_path / "job")]
    assert [said in warnings for warnings in found] == [True, False]
    assert not any("vLLM" in warning for warning in found[1])


@pytest.mark.parametrize("chosen", CALIBRATED)
def test_gpt_oss_in_four_bits_is_doubted_before_the_start(chosen, data, tmp_path):
    facts = inspect(str(make("gpt-oss", tmp_path / "oss")))
    recipe = recipe_of(facts.model, chosen)
    words = f"gpt-oss in MXFP4 and 16 bit alone, and the result is in {chosen['method']}: serve its original."
    assert f"vLLM serves {words}" in estimate(recipe, facts, data).warnings


def test_a_hub_model_is_estimated_to_the_byte_from_less_than_a_mebibyte(hub, source, data, tmp_path):
    model = save(llama(vocab_size=2000, hidden_size=512), tmp_path / "large", max_shard_size="1MB")
    for name in (*TEXTS, "tokenizer_config.json"):
        shutil.copyfile(source("tied") / name, model / name)
    words = {f"word{i}": i for i in range(90_000)}
    (model / "tokenizer.json").write_text(json.dumps({"model": {"vocab": words}}))
    hub.add_model("acme/large", model)
    facts = inspect("acme/large")
    assert hub.served < 100_000 < 2**20 < facts.files["tokenizer.json"]
    assert len([name for name in facts.files if name.endswith(".safetensors")]) > 3
    recipe = recipe_of("acme/large", METHODS[0], revision=facts.commit)
    expected = estimate(recipe, facts, data)
    [folder] = made(recipe, tmp_path / "job")
    assert expected.files == on_disk(folder)
    assert "COPYING" in expected.files
    fetched = on_disk(data / "models" / "acme--large" / facts.commit)
    assert expected.disk_bytes == expected.output_bytes + sum(fetched.values())
    assert estimate(recipe, facts, data).disk_bytes == expected.output_bytes


def test_weights_that_the_index_does_not_name_are_left_alone(source, data, tmp_path):
    model = tmp_path / "twice"
    shutil.copytree(source("shards"), model)
    shutil.copyfile(source("tied") / "model.safetensors", model / "consolidated.safetensors")
    recipe = recipe_of(model, METHODS[0])
    expected = estimate(recipe, inspect(str(model)), data)
    [folder] = made(recipe, tmp_path / "job")
    assert expected.files == on_disk(folder)


def test_measuring_an_artifact_leaves_its_bytes(source, data, tmp_path):
    recipe = recipe_of(source("tied"), METHODS[0])
    [folder] = made(recipe, tmp_path / "job")
    before = on_disk(folder)
    record(folder, metrics=METRICS)
    assert open_artifact(folder).metrics == METRICS
    assert on_disk(folder) == before


def test_a_folder_made_here_keeps_its_origin_in_the_estimate(source, data, tmp_path):
    [cast] = made(recipe_of(source("tied"), {"method": "cast"}), tmp_path / "first")
    manifest = json.loads((cast / MANIFEST).read_text()) | {"base_model": "acme/tiny", "revision": "c" * 40}
    (cast / MANIFEST).write_text(json.dumps(manifest))
    recipe = recipe_of(cast, METHODS[0])
    expected = estimate(recipe, inspect(str(cast)), data)
    [folder] = made(recipe, tmp_path / "second")
    assert expected.files == on_disk(folder)
    assert open_artifact(folder).base_model == "acme/tiny"


@pytest.mark.real
def test_the_demo_model_is_estimated_to_the_byte_before_it_is_made_and_after(data, tmp_path):
    recipe = recipe_of("demo", *METHODS[:1], *METHODS[3:5])
    before = estimate(recipe, demo_facts(), data)
    folders = made(recipe, tmp_path / "job")
    written = {f"{f.name}/{name}": size for f in folders for name, size in on_disk(f).items()}
    after = estimate(recipe, demo_facts(), data)
    assert before.files == after.files == written
    assert after.disk_bytes == sum(written.values())
    assert before.disk_bytes == after.disk_bytes + sum(on_disk(data / "models" / "demo").values())


@pytest.mark.parametrize("method", ["nf4", "int8", "cast"])
def test_memory_is_within_a_fifth_of_what_the_worker_took(method, source, data):
    recipe = recipe_of(source("tied"), {"method": method})
    with finished(recipe, None, lambda event: None, Settings(data=data).writable()) as job:
        took = open_artifact(stage_folder(job, recipe, 1)).peak_memory_bytes
    expected = estimate(recipe, inspect(recipe.base_model), data)
    assert expected.memory["quantize"] == pytest.approx(took, rel=0.2)


def test_a_plan_that_does_not_fit_the_disk_is_refused_with_its_figures(source, data, monkeypatch):
    model = source("tied")
    needed = estimate(recipe_of(model, METHODS[0]), facts := inspect(str(model)), data)
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(0, 0, 30_000))
    with pytest.raises(HardwareError, match=r"needs 0\.\d MB and 0\.0 MB are free: free 0\.\d MB"):
        check_room(needed, facts, this_machine(data, Settings()))


@pytest.mark.parametrize(
    ("measured", "words"),
    [
        (
            False,
            r"'quantize' needs 1\d\d\.\d MB of memory and .* has 100\.0 MB, .* too little: choose a smaller",
        ),
        (True, r"'evaluate' needs [\d.]+ MB .* has 100\.0 MB, .* leave evaluate out, give it a smaller max_seq_length"),
    ],
)
def test_a_plan_that_does_not_fit_the_memory_is_refused_with_its_figures(measured, words, source, data, monkeypatch):
    facts = inspect(str(source("tied")))
    recipe = recipe_of(facts.model, METHODS[0])
    if measured:
        recipe = recipe.model_copy(update={"stages": (*recipe.stages, EvaluateOptions())})
    monkeypatch.setattr(local, "memory_bytes", lambda: 100_000_000)
    with pytest.raises(HardwareError, match=words):
        check_room(estimate(recipe, facts, data), facts, this_machine(data, Settings()))


def test_answers_to_rows_take_time_where_there_are_rows(source, data):
    facts = inspect(str(source("tied")))
    stages = [{"stage": "finetune", "validation_size": 4}, {"stage": "merge"}, METHODS[0] | {"stage": "quantize"}]

    def seconds(**measuring):
        made = [*stages, {"stage": "evaluate", **measuring}]
        return estimate(parse_recipe({"base_model": facts.model, "stages": made}, paths=True), facts, data).seconds

    answers = 10_000 * 3 * facts.parameters * ROW_SECONDS_A_PARAMETER  # of base, merged and quantized model
    assert seconds(num_rows=10_000) - seconds(num_rows=0) > 0.9 * answers
    stages[0].pop("validation_size")
    assert seconds(num_rows=10_000) == pytest.approx(seconds(num_rows=0))
    assert seconds(num_rows=10_000, rows="me/rows") > seconds(num_rows=10_000)


def test_a_machine_is_measured_once_and_the_time_follows(source, data):
    data.mkdir()
    measured = measured_speeds(data)
    assert measured.machine
    assert measured.methods.keys() >= {"nf4", "fp4", "int8", "cast"}
    first = (data / SPEEDS).stat().st_mtime_ns
    assert measured_speeds(data) == measured
    assert (data / SPEEDS).stat().st_mtime_ns == first
    assert [path.name for path in data.iterdir()] == [SPEEDS]
    facts = inspect(str(source("tied")))
    recipe = recipe_of(facts.model, METHODS[0])
    write_speeds(data, measured.model_copy(update={"start_seconds": 100.0}))
    assert 200 <= estimate(recipe, facts, data).seconds < 201


@pytest.mark.parametrize("content", ["", "{", "[]", '{"machine": "x", "start_seconds": -1}', '{"more": 1}'])
def test_a_damaged_calibration_is_none(content, data):
    data.mkdir()
    (data / SPEEDS).write_text(content)
    assert read_speeds(data) is None


def test_a_calibration_of_another_machine_is_none(data, monkeypatch):
    data.mkdir()
    write_speeds(data, Speeds(machine=speeds.machine()))
    assert read_speeds(data)
    monkeypatch.setattr(speeds, "processor", lambda: "another")
    assert read_speeds(data) is None


@pytest.mark.parametrize(("name", "method"), [("Qwen3 MoE", "awq"), ("gpt-oss", "fp8"), ("Qwen3 MoE", "fp8")])
def test_what_a_chat_takes_is_said_before_the_start_where_transformers_does_not_load_the_result(
    name, method, data, tmp_path
):
    facts = inspect(str(make(name, tmp_path / "mixture")))
    grid = {"group_size": 32} if method == "awq" else {}
    found = estimate(recipe_of(facts.model, {"stage": "quantize", "method": method} | grid), facts, data).warnings
    said = [warning for warning in found if "the chat here unpacks the result to 16 bit" in warning]
    assert [f"{facts.loaded / 1e6:.1f} MB of memory" in warning for warning in said] == [True] * (
        (name, method) != ("Qwen3 MoE", "fp8")
    )
