"""The page: it builds, its handlers turn what is typed into recipes, and its process stays small."""

import html
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from backend.artifacts.artifact import Artifact, File, Merged, Metrics, now
from backend.artifacts.sealing import partial, seal
from backend.errors import HubError, SpecError
from backend.executors import local
from backend.finetune.rendered import Survey
from backend.jobs.store import Job, JobState, Store
from backend.jobs.supervisor import Supervisor
from backend.merge.options import MergeOptions
from backend.models.demo import demo_facts
from backend.models.inspection import inspect
from backend.recipes import Recipe, Streaming, parse_recipe, parse_yaml
from backend.serve.servers import Servers
from backend.settings import Settings
from backend.stages.work import stage_folder
from tests.support.house import call, event
from tests.support.loopback_hub import LoopbackHub
from tests.support.published import METRICS, SURE
from ui.data.rows_form import HUB as HUB_ROWS
from ui.data.tab import DATASET, UPLOAD
from ui.jobs.job import view
from ui.jobs.report import report
from ui.jobs.variants import variants
from ui.kit.errors import shown
from ui.page import build_page, build_parts
from ui.publish.tab import FOLDER, HUB
from ui.recipe.events import wire_sidebar
from ui.recipe.sidebar import step_words
from ui.recipe.tab import UNQUANTIZED
from ui.recipe_state import Workbench
from ui.studio import Result, Studio
from ui.visitor import LOCAL, visitor

ROOT = Path(__file__).parents[2]


@pytest.fixture
def studio(tmp_path: Path) -> Studio:
    settings = Settings(data=tmp_path)
    return Studio(settings, Supervisor(settings), Servers(settings))


@pytest.fixture
def bench(studio: Studio) -> Workbench:
    with gr.Blocks():
        return build_parts(studio)


def given(bench: Workbench, **values: Any) -> dict[Any, Any]:
    """What a handler gets from an untouched page with the demo model, and `values` by elem_id."""
    found = {component: getattr(component, "value", None) for component in bench.inputs()}
    found |= {bench.model.facts: demo_facts(), bench.recipe.pasted: None}
    by_id = {component.elem_id: component for component in found}
    return found | {by_id[name]: value for name, value in values.items()}


def test_the_page_builds_and_every_event_is_private(studio: Studio) -> None:
    page = build_page(studio)
    assert {fn.api_visibility for fn in page.fns.values()} == {"private"}
    ids = [c.elem_id for c in page.blocks.values() if c.elem_id]
    assert len(ids) == len(set(ids))


def test_an_untouched_page_can_start(bench: Workbench) -> None:
    updates = bench.refresh(given(bench))
    assert updates[bench.sidebar.start]["interactive"]
    assert "SmolLM2-135M-Instruct" in updates[bench.sidebar.summary]
    assert bench.draft_recipe(given(bench)) == parse_recipe(
        {"base_model": "demo", "stages": [{"stage": "quantize", "method": "nf4"}, {"stage": "evaluate"}]}
    )


def test_what_a_recipe_needs_and_why_it_would_be_refused_stand_before_the_start(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits = bench.refresh(given(bench))[bench.sidebar.summary]
    assert all(f"<dt>{name}</dt>" in fits for name in ("Result", "Disk", "Memory", "Time"))
    assert 'class="warn"' not in fits
    monkeypatch.setattr(local, "memory_bytes", lambda: 10**9)
    refused = html.unescape(bench.refresh(given(bench))[bench.sidebar.summary])
    assert re.search(r"'evaluate' needs 1\.\d\d GB of memory and this machine has 1\.00 GB", refused)


def test_a_cast_is_called_one_and_one_window_is_one(bench: Workbench) -> None:
    updates = bench.refresh(given(bench, **{"method": "cast", "evaluate-num_samples": 1}))
    assert "Cast to bfloat16" in updates[bench.sidebar.summary]
    assert "1 window of" in updates[bench.sidebar.summary]


def test_a_wrong_value_is_shown_in_words_beside_its_field_and_start_waits(bench: Workbench) -> None:
    typed = given(bench, **{"method": "int8", "quantize-int8-llm_int8_threshold": -3, "evaluate-num_samples": 0})
    updates = bench.refresh(typed)
    assert not updates[bench.sidebar.start]["interactive"]
    assert "at least 0" in updates[bench.recipe.forms["int8"].fields["llm_int8_threshold"]]["info"]
    assert "at least 1" in updates[bench.data.form.fields["num_samples"]]["info"]
    assert "Threshold" in updates[bench.sidebar.summary]


MERGE = {"stage": "merge", "adapters": ["me/law", "me/style"]}
EVERY_MERGE_OPTION = {
    "adapter_weights": [0.5, -1.25],
    "merge_into": "nf4",
    "bnb_4bit_use_double_quant": False,
    "dtype": "float16",
    "other_base": True,
    "adapter_revisions": ["main", "a" * 40],
    "max_shard_size": 10**9,
}
EVALUATE = {"stage": "evaluate", "dataset": "me/texts", "num_samples": 3, "max_seq_length": 512}
CHECK = {"stage": "check", "engine": "transformers", "max_tokens": 8}
TUNE = {"stage": "finetune", "dataset": "demo", "split": "train[:200]", "validation_size": 20}
LEARNED = {"dataset": "me/rows", "config": "small", "user_column": "q", "assistant_column": "a", "system_prompt": "Hi."}
EVERY_KIND_OF_TUNING_OPTION = {
    "quantization": "none",
    "r": 4,
    "learning_rate": 1e-5,
    "target_modules": ["q_proj", "v_proj"],
    "packing": True,
    "neftune_noise_alpha": 2.5,
    "early_stopping_patience": 2,
    "eval_steps": 7,
}


@pytest.mark.parametrize(
    "stages",
    [
        [{"stage": "quantize", "method": "fp4", "bnb_4bit_use_double_quant": False}, EVALUATE],
        [MERGE],
        [MERGE | EVERY_MERGE_OPTION, EVALUATE],
        [MERGE, {"stage": "quantize", "method": "nf4"}, EVALUATE],
        [MERGE | {"keep": False}, {"stage": "quantize", "method": "int8"}],
        [{"stage": "quantize", "method": "nf4"}, EVALUATE, CHECK],
        [TUNE],
        [TUNE, CHECK],
        [TUNE | EVERY_KIND_OF_TUNING_OPTION, {"stage": "merge"}],
        [TUNE | LEARNED, {"stage": "merge", "keep": False}, {"stage": "quantize", "method": "int8"}],
        [TUNE, {"stage": "merge", "dtype": "float16"}, {"stage": "quantize", "method": "nf4"}, EVALUATE],
    ],
)
def test_a_pasted_recipe_fills_the_forms_and_gives_itself_back(bench: Workbench, stages: list[Any]) -> None:
    wanted = parse_recipe({"base_model": "demo", "stages": stages})
    pasted = given(bench, **{"recipe-yaml": wanted.to_yaml()})
    filled = bench.apply(pasted, None)
    assert filled[bench.recipe.note] == ""
    assert set(filled) <= set(bench.filled())
    assert bench.draft_recipe(pasted | values(filled)) == wanted
    again = bench.remember(bench.refresh(pasted | values(filled))[bench.remembered], None)
    assert bench.draft_recipe(given(bench) | values(again)) == wanted


def test_tuning_is_the_way_to_a_model_or_to_an_adapter_alone(bench: Workbench) -> None:
    begun = bench.recipe.begin(True, "", "nf4")
    tuned = given(bench) | values(begun)
    assert begun[bench.recipe.finetuning.room]["visible"]
    stages = [stage.stage for stage in bench.draft_recipe(tuned).stages]
    assert stages == ["finetune", "merge", "quantize", "evaluate"]
    alone = tuned | {bench.recipe.merging: False}
    assert not bench.recipe.switch(True, False, "nf4")[bench.recipe.quantizing]["visible"]
    assert bench.draft_recipe(alone) == parse_recipe({"base_model": "demo", "stages": [{"stage": "finetune"}]})
    ended = given(bench) | values(bench.recipe.begin(False, "", "nf4"))
    assert bench.draft_recipe(ended) == bench.draft_recipe(given(bench))


def test_adapters_made_elsewhere_are_no_matter_of_a_recipe_that_tunes(bench: Workbench) -> None:
    typed = {"merging": True, "merge-adapters": "me/law", "merge-adapter_weights": "0.5", "merge-other_base": True}
    recipe = bench.draft_recipe(given(bench, tuning=True, **typed))
    assert recipe.stages[1] == MergeOptions()
    hidden = bench.recipe.switch(True, True, "nf4")
    assert not hidden[bench.recipe.merge.fields["adapters"]]["visible"]
    assert bench.recipe.begin(False, "me/law", "nf4")[bench.recipe.merging]["value"]


def test_a_preset_fills_the_form_and_a_change_is_of_no_preset(bench: Workbench) -> None:
    tuning = bench.recipe.finetuning
    filled = given(bench, tuning=True) | values(tuning.take("quick-look", demo_facts()))
    told = bench.refresh(filled | {tuning.form.fields["seed"]: 7})
    assert told[tuning.preset]["value"] == "quick-look"
    filled |= {tuning.preset: "quick-look"}
    assert "value" not in bench.refresh(filled)[tuning.preset]  # it would undo a click that came meanwhile
    training = bench.draft_recipe(filled).tuning
    assert training is not None
    assert (training.r, training.max_steps, training.max_length) == (8, 60, 512)
    assert bench.refresh(filled | {tuning.form.fields["r"]: 9})[tuning.preset]["value"] is None
    then = filled | values(tuning.take("thorough", demo_facts()))
    assert bench.refresh(then)[tuning.preset]["value"] == "thorough"


def test_each_preset_says_what_it_costs_for_this_model_and_these_rows(bench: Workbench) -> None:
    few, many = given(bench, tuning=True, **{"rows-split": "train[:40]"}), given(bench, tuning=True)
    for page, words in ((few, "train[:40]"), (many, "bundled questions")):
        updates = bench.refresh(page)
        told = {name: text for text, name in updates[bench.recipe.finetuning.preset]["choices"]}
        assert all(re.search(r"About .+ and \d.+B of memory\.", text) for text in told.values())
        assert words in updates[bench.recipe.finetuning.rows]
        page["told"] = told
    assert few["told"]["thorough"] != many["told"]["thorough"]


def test_rows_that_were_looked_at_are_what_the_costs_are_reckoned_from(bench: Workbench) -> None:
    counts = {"learned_tokens": 1, "longest": 900, "truncated": 0, "masked": 0, "endless": 0}
    long = Survey(rows=5_000, tokens=4_000_000, histogram=(), samples=(), **counts)
    told = {}
    for survey in (None, long):
        updates = bench.refresh(given(bench, tuning=True) | {bench.training_inspection.survey: survey})
        told[survey is None] = updates[bench.recipe.finetuning.preset]["choices"][1][0], updates[bench.sidebar.summary]
    assert " min and " in told[True][0]
    assert re.search(r"About \d+ h", told[False][0])
    assert re.search(r"about \d+ h", told[False][1])


def test_the_memory_of_a_training_stands_in_the_sidebar_by_part(bench: Workbench) -> None:
    summary = bench.refresh(given(bench, tuning=True))[bench.sidebar.summary]
    assert "Fine-tune an adapter" in summary
    for part in ("Memory to fine-tune", "process", "base", "adapter", "activations"):
        assert re.search(rf"<dt>{part}</dt><dd>[\d.]+ [kMG]B</dd>", summary)
    assert "to fine-tune" not in bench.refresh(given(bench))[bench.sidebar.summary]


WRONG = [
    ({"finetune-r": 0}, "finetune-r", "at least 1"),
    ({"finetune-target_modules": "nonsense"}, "finetune-target_modules", "no linear layer"),
    ({"finetune-max_length": 999_999}, "finetune-max_length", "is more than the"),
    ({"finetune-neftune_noise_alpha": "loud"}, "finetune-neftune_noise_alpha", "must be a number"),
    ({"rows-source": HUB_ROWS}, "rows-dataset", "data set's id"),
    ({"rows-source": HUB_ROWS, "rows-dataset": "/etc/rows.csv"}, "rows-dataset", "is not a file"),
    ({"rows-split": "train[:"}, "rows-split", "split"),
    ({"rows-validation_size": -1}, "rows-validation_size", "at least 0"),
]


def test_what_is_wrong_with_a_training_stands_beside_its_field(bench: Workbench) -> None:
    by_id = {component.elem_id: component for component in bench.inputs()}
    for typed, place, words in WRONG:
        updates = bench.refresh(given(bench, tuning=True, **typed))
        assert words in updates[by_id[place]]["info"].replace("Must", "must").replace("Is ", "is ")
        assert updates[by_id[place]]["elem_classes"] == ["faulty"]
        assert not updates[bench.sidebar.start]["interactive"]
        assert set(updates) <= set(bench.outputs())
        assert bench.refresh(given(bench, tuning=True))[by_id[place]]["elem_classes"] == []


def test_uploaded_rows_are_kept_for_the_job_and_remembered_by_name(bench: Workbench, tmp_path: Path) -> None:
    upload = tmp_path / "gradio" / "rows.jsonl"
    upload.parent.mkdir()
    upload.write_text('{"prompt": "a", "completion": "b"}\n')
    typed = given(
        bench, tuning=True, **{"rows-source": UPLOAD, "rows-upload": str(upload), "rows-user_column": "prompt"}
    )
    updates = bench.refresh(typed)
    assert updates[bench.sidebar.start]["interactive"]
    assert "rows.jsonl" in updates[bench.sidebar.summary]
    for told in (updates[bench.sidebar.summary], updates[bench.recipe.text], str(updates[bench.remembered])):
        assert str(tmp_path) not in told
    training = bench.stored_recipe(typed, "me").tuning
    assert training is not None
    assert training.user_column == "prompt"
    assert Path(training.dataset).is_relative_to(tmp_path / "uploads")
    again = bench.remember(updates[bench.remembered], None)
    assert "'rows.jsonl'" in html.unescape(again[bench.data.rows.note])
    after = given(bench) | values(again)
    assert not bench.refresh(after)[bench.sidebar.start]["interactive"]
    once_more = bench.stored_recipe(after | {bench.data.rows.file: str(upload)}, "me")
    assert once_more == bench.stored_recipe(typed, "me")


def test_rows_are_asked_for_where_something_learns_from_them(bench: Workbench) -> None:
    for tuning in (True, False):
        updates = bench.refresh(given(bench, tuning=tuning))
        assert updates[bench.data.rows.room]["visible"] == tuning
        assert updates[bench.data.untrained]["visible"] == (not tuning)


def test_what_calibration_reads_is_asked_for_where_something_is_calibrated(bench: Workbench) -> None:
    for method in ("gptq", "nf4"):
        updates = bench.refresh(given(bench, method=method))
        assert updates[bench.data.calibration.room]["visible"] == (method == "gptq")
    kept = bench.recipe.keep(given(bench, method="awq"))[bench.recipe.variants]["value"]
    assert bench.refresh(given(bench, variants=kept))[bench.data.calibration.room]["visible"]


def test_variants_that_differ_in_layout_alone_are_named_by_it_and_calibrated_once(bench: Workbench) -> None:
    group = {"method": "gptq", "quantize-gptq-group_size": 64}
    offered = bench.recipe.keep(given(bench, **group, **{"quantize-gptq-layout": "compressed-tensors"}))
    kept = offered[bench.recipe.variants]
    assert [title for title, _ in kept["choices"]] == ["GPTQ in compressed-tensors 4 bit · 64"]
    recipe = bench.draft_recipe(given(bench, variants=kept["value"], **group))
    assert recipe.together(recipe.stages[0]) == ("compressed-tensors", "gptq")
    assert [step_words(stage)[0] for stage in recipe.quantizing] == [
        "Quantize to GPTQ in compressed-tensors",
        "Quantize to GPTQ",
    ]


def test_all_variants_read_the_same_calibration_and_it_comes_back(bench: Workbench, tmp_path: Path) -> None:
    upload = tmp_path / "gradio" / "rows.jsonl"
    upload.parent.mkdir()
    upload.write_text('{"prompt": "a", "completion": "b"}\n')
    groups = {"quantize-gptq-group_size": 64, "quantize-awq-group_size": 64}  # of 128 none divide its layers
    kept = bench.recipe.keep(given(bench, method="awq", **groups))[bench.recipe.variants]["value"]
    of_hub = {"calibration-source": HUB_ROWS, "calibration-dataset": "me/rows", "calibration-split": "train[:9]"}
    typed = given(bench, method="gptq", variants=kept, **groups, **of_hub)
    recipe = bench.draft_recipe(typed)
    assert [(s.calibration.dataset, s.calibration.split) for s in recipe.stages[:2]] == [("me/rows", "train[:9]")] * 2
    again = given(bench) | values(bench.remember(bench.refresh(typed)[bench.remembered], None))
    assert bench.draft_recipe(again) == recipe

    own = {"calibration-source": UPLOAD, "calibration-upload": str(upload), "calibration-user_column": "prompt"}
    typed = given(bench, method="gptq", **groups, **own)
    updates = bench.refresh(typed)
    for told in (updates[bench.recipe.text], str(updates[bench.remembered])):
        assert "rows.jsonl" in told
        assert str(tmp_path) not in told
    quantize = bench.stored_recipe(typed, "me").stages[0]
    assert Path(quantize.calibration.dataset).is_relative_to(tmp_path / "uploads")
    assert quantize.calibration.user_column == "prompt"
    remembered = values(bench.remember(updates[bench.remembered], None))
    assert "'rows.jsonl'" in html.unescape(remembered[bench.data.calibration.note])
    after = given(bench) | remembered
    assert not bench.refresh(after)[bench.sidebar.start]["interactive"]
    once_more = bench.stored_recipe(after | {bench.data.calibration.file: str(upload)}, "me")
    assert once_more == bench.stored_recipe(typed, "me")


def test_what_is_wrong_with_calibration_stands_beside_its_field(bench: Workbench) -> None:
    by_id = {component.elem_id: component for component in bench.inputs()}
    own = {"method": "awq", "calibration-source": HUB_ROWS}
    for typed, place, words in [
        ({}, "calibration-dataset", "data set's id"),
        ({"calibration-dataset": "/etc/rows.csv"}, "calibration-dataset", "is not a file"),
        ({"calibration-dataset": "me/rows", "calibration-split": "train[:"}, "calibration-split", "is no split"),
    ]:
        updates = bench.refresh(given(bench, **own, **typed))
        assert words in updates[by_id[place]]["info"]
        assert not updates[bench.sidebar.start]["interactive"]


def test_what_calibration_reads_is_what_the_recipe_says(bench: Workbench) -> None:
    gptq = {"method": "gptq", "quantize-gptq-max_seq_length": 64}
    ask, facts = bench.calibration_inspection.ask, demo_facts()
    assert ask(given(bench, **gptq), facts, "me", None).cut.model_dump()["max_seq_length"] == 64
    assert ask(given(bench, **gptq), facts, "me", None).cut.embedded
    tuned = ask(given(bench, tuning=True, merging=True, **gptq, **{"rows-split": "train[:9]"}), facts, "me", None)
    assert (tuned.cut.embedded, tuned.options.split, tuned.options.on_fault) == (False, "train[:9]", "stop")
    assert tuned.cut.mixed
    with pytest.raises(SpecError, match="choose a method that reads text"):
        ask(given(bench), facts, "me", None)


def test_an_adapter_is_merged_first_and_the_result_need_not_be_quantized(bench: Workbench) -> None:
    typed = given(bench, **{"merging": True, "merge-adapters": "me/law, me/style", "merge-adapter_weights": "1, 0.5"})
    merge = {**MERGE, "adapter_weights": [1, 0.5]}
    rest = [{"stage": "quantize", "method": "nf4"}, {"stage": "evaluate"}]
    assert bench.draft_recipe(typed) == parse_recipe({"base_model": "demo", "stages": [merge, *rest]})
    switched = bench.recipe.switch(False, True, "nf4")
    assert switched[bench.recipe.adapters]["visible"]
    assert UNQUANTIZED in [value for _, value in switched[bench.recipe.method]["choices"]]
    alone = typed | {bench.recipe.method: UNQUANTIZED, bench.recipe.evaluate: False}
    assert bench.draft_recipe(alone) == parse_recipe({"base_model": "demo", "stages": [merge]})
    summary = bench.refresh(alone)[bench.sidebar.summary]
    for words in ("Merge 2 adapters", "law, style", "SmolLM2-135M-Instruct → merged<", "<dt>Result</dt>"):
        assert words in summary


def test_without_a_merge_the_model_is_quantized_in_any_case(bench: Workbench) -> None:
    typed = given(bench, **{"method": UNQUANTIZED})
    assert bench.draft_recipe(typed) == bench.draft_recipe(given(bench))
    switched = bench.recipe.switch(False, False, UNQUANTIZED)
    assert switched[bench.recipe.method]["value"] == "nf4"
    assert UNQUANTIZED not in [value for _, value in switched[bench.recipe.method]["choices"]]
    assert switched[bench.recipe.groups["nf4"]]["visible"]


@pytest.mark.parametrize(
    ("typed", "field", "words"),
    [
        ({}, "adapters", "s empty: give"),
        ({"merge-adapters": "me/law, ../etc/x--y"}, "adapters", "not a folder"),
        ({"merge-adapters": "me/law", "merge-adapter_weights": "1, 2"}, "adapter_weights", "as 2 entries for 1"),
        ({"merge-adapters": "me/law", "merge-adapter_weights": "half"}, "adapter_weights", "ust be a number"),
        ({"merge-adapters": "me/law", "merge-keep": False}, "keep", "measures against the merged model"),
        ({"merge-adapters": "me/law", "merge-keep": False, "method": UNQUANTIZED}, "keep", "leaves nothing"),
    ],
)
def test_what_is_wrong_with_a_merge_stands_beside_its_field(
    bench: Workbench, typed: dict[str, Any], field: str, words: str
) -> None:
    updates = bench.refresh(given(bench, merging=True, **typed))
    marked = updates[bench.recipe.merge.fields[field]]
    assert words in marked["info"]
    assert marked["elem_classes"] == ["faulty"]
    assert not updates[bench.sidebar.start]["interactive"]
    good = bench.refresh(given(bench, **{"merging": True, "merge-adapters": "me/law"}))
    assert good[bench.recipe.merge.fields[field]]["elem_classes"] == []


def test_what_does_not_fit_the_model_stands_beside_its_field_too(bench: Workbench) -> None:
    typed = {"merging": True, "merge-adapters": "me/law", "quantize-nf4-llm_int8_skip_modules": "nonsense"}
    updates = bench.refresh(given(bench, **typed))
    field = bench.recipe.forms["nf4"].fields["llm_int8_skip_modules"]
    assert "'nonsense' is no linear layer of the model" in updates[field]["info"]


def test_an_adapter_may_be_a_folder_on_ones_own_machine_only(
    bench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = given(bench, **{"merging": True, "merge-adapters": str(tmp_path)})
    updates = bench.refresh(typed)
    assert updates[bench.sidebar.start]["interactive"]
    assert tmp_path.name in updates[bench.sidebar.summary]
    assert str(tmp_path) not in updates[bench.sidebar.summary]
    assert parse_yaml(updates[bench.recipe.text])["stages"][0]["adapters"] == [str(tmp_path)]
    upload = tmp_path / "words.txt"
    upload.write_text("once")
    measured = {bench.data.source: UPLOAD, bench.data.upload: str(upload)}
    monkeypatch.setenv("SPACE_ID", "me/studio")
    refused = bench.refresh(typed)
    assert "is a path" in refused[bench.recipe.merge.fields["adapters"]]["info"]
    assert bench.refresh(given(bench) | measured)[bench.sidebar.start]["interactive"]


def test_an_adapter_named_as_the_model_offers_its_base_model_and_the_merge(
    bench: Workbench, hub: LoopbackHub, tiny_model: Path
) -> None:
    settings = json.dumps({"peft_type": "LORA", "base_model_name_or_path": "me/tiny"})
    hub.add_model("me/law", {"adapter_config.json": settings, "adapter_model.safetensors": b"x" * 2000})
    hub.add_model("me/tiny", tiny_model)
    offered = bench.model.look("me/law", None)
    assert "choose its base model" in offered[bench.model.note]
    assert offered[bench.model.offer]["visible"]
    assert "me/tiny" in offered[bench.model.offer]["value"]
    page = given(bench) | {bench.model.adapter: offered[bench.model.adapter]}
    taken = bench.merge(page, None)
    assert set(taken) <= {*bench.filled(), bench.tabs}
    assert not taken[bench.model.offer]["visible"]
    recipe = bench.draft_recipe(page | values(taken))
    assert recipe.base_model == "me/tiny"
    assert [stage.stage for stage in recipe.stages] == ["merge", "quantize", "evaluate"]
    assert recipe.merging is not None
    assert recipe.merging.adapters == ("me/law",)


def test_an_adapter_of_a_path_offers_nothing_and_takes_an_earlier_offer_away(
    bench: Workbench, hub: LoopbackHub
) -> None:
    settings = json.dumps({"peft_type": "LORA", "base_model_name_or_path": "/home/me/base"})
    hub.add_model("me/law", {"adapter_config.json": settings, "adapter_model.safetensors": b"x" * 2000})
    updates = shown(bench.model.note, bench.model.offer)(bench.model.look)("me/law", None)
    assert "this is an adapter" in updates[bench.model.note]
    assert not updates[bench.model.offer]["visible"]


def test_the_report_and_the_table_of_variants_show_intervals_where_there_are_any() -> None:
    job = Job(
        id="j", owner="me", kind="recipe", spec={"base_model": "me/tiny"}, state=JobState.COMPLETED, steps=(), created=0
    )  # fmt: skip
    sure = METRICS.model_copy(update={"windows": 8, "intervals": SURE, "flips": 0.04})
    files = {"model.safetensors": File(size=90_000_000, sha256="0" * 64)}
    nf4 = Artifact(
        kind="quantized", stage="quantize", options={"stage": "quantize", "method": "nf4"}, metrics=sure, files=files,
        created=now(),
    )  # fmt: skip
    made = Result(job, Path("1-quantize"), nf4)
    told = report(made, sure)
    assert "0.0912<small>[0.0812, 0.1031]</small>" in told
    assert "24.12<small>+10.1% [+9.0%, +11.2%]</small>" in told
    assert "95% intervals, from how much the 8 windows differ." in told
    few = report(made, METRICS.model_copy(update={"windows": 2}))
    assert "2 windows cannot tell how far these figures may be off" in few
    assert "interval" not in report(made, METRICS)
    table = variants([made, Result(job, Path("2-quantize"), nf4)])
    assert table.count("<small>[0.0812, 0.1031]</small>") == 2
    assert "All variants read the same windows" in table


def test_a_merged_model_is_not_called_worse_for_what_its_adapters_changed() -> None:
    metrics = Metrics(
        kl_mean=1.5, kl_p99=9, top1_agreement=0.5, perplexity=8, reference_perplexity=10, tokens=100, text="words",
        convention="windows",
    )  # fmt: skip
    job = Job(
        id="j", owner="me", kind="recipe", spec={"base_model": "me/tiny"}, state=JobState.COMPLETED, steps=(), created=0
    )  # fmt: skip
    merged = Merged(adapters=("me/law",), weights=(1,), into="original")
    found = Artifact(kind="merged", stage="merge", options=MERGE, merged=merged, created=now())
    told = report(Result(job, Path("1-merge"), found), metrics)
    assert "tiny · merged" in told
    assert "What the adapters changed" in told
    assert "Far from" not in told
    smaller = found.model_copy(update={"kind": "quantized", "options": {"stage": "quantize", "method": "nf4"}})
    told = report(Result(job, Path("2-quantize"), smaller), metrics)
    assert "tiny · merged · NF4" in told
    assert "Merged model" in told
    assert "Far from the merged model" in told


@pytest.mark.parametrize(
    "stages",
    [
        [{"stage": "quantize", "method": "nf4"}, {"stage": "evaluate"}, {"stage": "quantize", "method": "int8"}],
        [{"stage": "finetune", "dataset": "demo", "on_fault": "drop"}],
    ],
)
def test_a_recipe_that_says_more_than_the_forms_is_used_as_it_stands(bench: Workbench, stages: list[Any]) -> None:
    wanted = parse_recipe({"base_model": "demo", "stages": stages})
    pasted = given(bench, **{"recipe-yaml": wanted.to_yaml()})
    filled = bench.apply(pasted, None)
    assert "the form cannot show all of it" in filled[bench.recipe.note]
    assert bench.draft_recipe(pasted | values(filled)) == wanted
    assert bench.refresh(pasted | values(filled))[bench.sidebar.start]["interactive"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stages: [", "not YAML"),
        ("base_model: demo\nstages:\n- {stage: quantize, method: nf5}", "must be one of"),
        ("base_model: /etc\nstages:\n- {stage: quantize, method: nf4}", "is a path"),
        ("just words", "mapping"),
    ],
)
def test_a_pasted_recipe_that_is_none_says_why(bench: Workbench, text: str, words: str) -> None:
    handler = shown(bench.recipe.note)(bench.apply)
    updates = handler(given(bench, **{"recipe-yaml": text}), None)
    assert words in updates[bench.recipe.note]
    assert list(updates) == [bench.recipe.note]


def test_a_source_without_its_data_is_named(bench: Workbench) -> None:
    assert "data set" in bench.refresh(given(bench, **{"data-source": DATASET}))[bench.sidebar.summary]
    assert "upload" in bench.refresh(given(bench, **{"data-source": UPLOAD}))[bench.sidebar.summary]


def test_an_upload_is_kept_where_a_later_job_can_read_it(bench: Workbench, tmp_path: Path) -> None:
    upload = tmp_path / "gradio" / "words.txt"
    upload.parent.mkdir()
    upload.write_text("once upon a time")
    typed = given(bench, **{"data-source": UPLOAD, "data-upload": str(upload)})
    recipe = bench.stored_recipe(typed, "me")
    kept = Path(recipe.stages[1].text)
    upload.unlink()
    assert kept.read_text() == "once upon a time"
    assert kept.is_relative_to(tmp_path / "uploads")


def test_the_browser_remembers_no_path_and_no_token(bench: Workbench, tmp_path: Path) -> None:
    upload = tmp_path / "words.txt"
    upload.write_text("once")
    typed = given(bench, **{"data-source": UPLOAD, "data-upload": str(upload), "publish-token": "hf_secret"})
    updates = bench.refresh(typed)
    assert str(tmp_path) not in str(updates[bench.remembered])
    assert "hf_secret" not in str(updates)
    assert isinstance(parse_recipe(updates[bench.remembered]["recipe"]), Recipe)


def test_after_a_reload_an_upload_is_asked_for_again_and_nothing_starts_on_another_text(
    bench: Workbench, tmp_path: Path
) -> None:
    upload = tmp_path / "words.txt"
    upload.write_text("once")
    before = bench.refresh(given(bench, **{"data-source": UPLOAD, "data-upload": str(upload)}))
    filled = bench.remember(before[bench.remembered], None)
    assert "'words.txt'" in html.unescape(filled[bench.data.note])
    assert set(filled) <= set(bench.filled())
    after = bench.refresh(given(bench) | values(filled))
    assert not after[bench.sidebar.start]["interactive"]


def test_on_a_space_the_owner_is_the_accounts_id_and_strangers_are_told_to_sign_in(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert visitor(studio.settings, None).known() == "local"
    monkeypatch.setenv("SPACE_ID", "me/studio")
    monkeypatch.setenv("OAUTH_CLIENT_ID", "x")
    assert visitor(studio.settings, None).owner is None
    with pytest.raises(Exception, match="sign in with Hugging Face"):
        visitor(studio.settings, None).known()
    profile = gr.OAuthProfile(
        {"sub": "42", "name": "Me", "preferred_username": "me", "profile": "https://x", "picture": "https://x"}
    )
    assert visitor(studio.settings, profile).known() == "42"


def test_a_name_alone_is_a_folder_of_the_data_folder(bench: Workbench, tmp_path: Path) -> None:
    assert bench.publish.place(" mine ") == tmp_path / "published" / "mine"
    assert bench.publish.place("/srv/mine") == Path("/srv/mine")


def test_a_job_of_another_owner_is_not_shown(studio: Studio, bench: Workbench) -> None:
    store = Store(studio.settings.data / "jobs.sqlite")
    recipe = parse_recipe({"base_model": "demo", "stages": [{"stage": "quantize", "method": "cast"}]})
    job_id = store.add(recipe, "anna")
    store.finish(job_id, JobState.CANCELED)
    store.close()
    studio.supervisor.start()
    try:
        mine, others = bench.jobs.show("anna", job_id), bench.jobs.show("ben", job_id)
        assert "SmolLM2" in mine[bench.jobs.view]
        assert "SmolLM2" not in str(others)
    finally:
        studio.supervisor.stop()


@pytest.mark.parametrize(
    ("first", "title"),
    [
        ([{"stage": "merge", "adapters": ["{}"]}], "Merged → NF4 · SmolLM2"),
        (
            [{"stage": "finetune", "dataset": "{}/rows.jsonl"}, {"stage": "merge"}],
            "Fine-tuned → merged → NF4 · SmolLM2",
        ),
    ],
)
def test_a_job_stays_in_the_list_when_what_it_names_is_gone(
    studio: Studio, bench: Workbench, tmp_path: Path, first: list[Any], title: str
) -> None:
    folder = tmp_path / "law"
    folder.mkdir()
    (folder / "rows.jsonl").write_text("{}")
    stages = [*json.loads(json.dumps(first).replace("{}", str(folder))), {"stage": "quantize", "method": "nf4"}]
    store = Store(studio.settings.data / "jobs.sqlite")
    job_id = store.add(parse_recipe({"base_model": "demo", "stages": stages}, paths=True), "anna")
    store.finish(job_id, JobState.CANCELED)
    store.close()
    shutil.rmtree(folder)
    studio.supervisor.start()
    try:
        assert title in bench.jobs.show("anna", job_id)[bench.jobs.view]
    finally:
        studio.supervisor.stop()


def test_an_adapter_alone_is_published_but_not_chatted_with_and_the_last_result_comes_first(
    studio: Studio, bench: Workbench
) -> None:
    store = Store(studio.settings.data / "jobs.sqlite")
    recipe = parse_recipe({"base_model": "demo", "stages": [{"stage": "finetune", "dataset": "demo"}]})
    job_id = store.add(recipe, "anna")
    store.finish(job_id, JobState.COMPLETED)
    store.close()
    stages = studio.settings.jobs / job_id / "stages"

    def make(name: str, kind: str, stage: str) -> None:
        artifact = Artifact(kind=kind, stage=stage, options={"stage": stage}, created=now())
        seal(partial(stages / name), stages / name, artifact)

    studio.supervisor.start()
    try:
        make("1-finetune", "adapter", "finetune")
        assert not bench.jobs.show("anna", job_id)[bench.jobs.chat]["visible"]
        assert bench.jobs.show("anna", job_id)[bench.jobs.publish]["visible"]
        assert bench.chat.enter("anna", None)[bench.chat.artifact]["choices"] == []
        make("2-merge", "merged", "merge")
        assert bench.jobs.show("anna", job_id)[bench.jobs.chat]["visible"]
        assert bench.chat.enter("anna", None)[bench.chat.artifact]["value"] == f"{job_id}/2-merge"
        assert [result.folder.name for result in studio.results("anna")] == ["2-merge", "1-finetune"]
    finally:
        studio.supervisor.stop()


def test_an_adapter_alone_leads_on_to_its_merge_or_on_a_shared_page_says_the_way(
    studio: Studio, bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(studio.settings.data / "jobs.sqlite")
    job_id = store.add(parse_recipe({"base_model": "demo", "stages": [TUNE]}), "anna")
    store.finish(job_id, JobState.COMPLETED)
    store.close()
    folder = studio.settings.jobs / job_id / "stages" / "1-finetune"
    seal(partial(folder), folder, Artifact(kind="adapter", stage="finetune", options=TUNE, created=now()))
    studio.supervisor.start()
    try:
        told = bench.jobs.show("anna", job_id)
        assert told[bench.jobs.merge]["visible"]
        assert "merge the adapter into it first" in told[bench.jobs.result]["value"]
        taken = bench.merge_finetuned(studio.results("anna")[0], "int8", None)
        assert set(taken) <= {*bench.filled(), bench.tabs}
        recipe = bench.draft_recipe(given(bench, tuning=True) | values(taken))
        assert [stage.stage for stage in recipe.stages] == ["merge", "quantize", "evaluate"]
        assert recipe.merging is not None
        assert recipe.merging.adapters == (str(folder),)
        monkeypatch.setenv("SPACE_ID", "me/studio")
        told = bench.jobs.show("anna", job_id)
        assert not told[bench.jobs.merge]["visible"]
        assert "look for it under Model" in told[bench.jobs.result]["value"]
    finally:
        studio.supervisor.stop()


def test_a_kept_variant_is_made_beside_what_the_form_says_and_not_twice(bench: Workbench) -> None:
    typed = given(bench, **{"method": "gptq", "quantize-gptq-group_size": 64})
    kept = bench.recipe.keep(typed)[bench.recipe.variants]
    assert [title for title, _ in kept["choices"]] == ["GPTQ 4 bit · 64"]
    typed[bench.recipe.variants] = kept["value"]
    assert [stage.method for stage in bench.draft_recipe(typed).stages[:-1]] == ["gptq"]
    assert bench.recipe.keep(typed)[bench.recipe.variants]["value"] == kept["value"]

    other = typed | given(bench, **{"method": "nf4", "variants": kept["value"]})
    recipe = bench.draft_recipe(other)
    assert [stage.stage for stage in recipe.stages] == ["quantize", "quantize", "evaluate"]
    assert [stage.method for stage in recipe.stages[:-1]] == ["gptq", "nf4"]
    assert recipe.stages[0].group_size == 64

    shown_ = bench.fill(recipe, None)
    assert shown_[bench.recipe.variants]["value"] == kept["value"]
    assert shown_[bench.recipe.method]["value"] == "nf4"


def test_a_variant_that_does_not_fit_the_model_is_named(bench: Workbench) -> None:
    variant = json.dumps({"method": "gptq", "group_size": 128})
    updates = bench.refresh(given(bench, variants=[variant]))
    assert not updates[bench.sidebar.start]["interactive"]
    assert "128 does not divide the 576 inputs" in html.unescape(updates[bench.sidebar.summary])


def quantized(studio: Studio, owner: str, *methods: str) -> str:
    """Add a job of somebody's that has made the demo model smaller in these ways."""
    store = Store(studio.settings.data / "jobs.sqlite")
    stages = [{"stage": "quantize", "method": method} for method in methods]
    job_id = store.add(parse_recipe({"base_model": "demo", "stages": stages}), owner)
    store.finish(job_id, JobState.COMPLETED)
    store.close()
    made = studio.settings.jobs / job_id / "stages"
    for i, stage in enumerate(stages, 1):
        draft = partial(made / f"{i}-quantize")
        (draft / "model.safetensors").write_bytes(b"weights")
        artifact = Artifact(kind="quantized", stage="quantize", options=stage, created=now())
        seal(draft, made / f"{i}-quantize", artifact)
    return job_id


def test_the_hub_as_the_destination_offers_repos_and_a_full_storage_is_told(
    hub: LoopbackHub, studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_token("hf_publisher", "anna", orgs={"acme": "admin", "lab": "read"})
    hub.add_model("acme/secret", {"config.json": "{}"}, private=True, used_storage=100 * 10**9)
    monkeypatch.setenv("HF_TOKEN", "hf_publisher")
    page = build_page(studio)
    key = f"{quantized(studio, LOCAL, 'nf4')}/1-quantize"
    studio.supervisor._lanes = []  # nobody does what waits
    studio.supervisor.start()

    def told(wanted: str, **typed: Any) -> dict[str, Any]:
        fn = event(page, wanted)
        by_id = {block.elem_id: typed[block.elem_id] for block in fn.inputs if block.elem_id in typed}
        given = {block: by_id.get(block.elem_id, getattr(block, "value", None)) for block in fn.inputs}
        return {block.elem_id: value for block, value in call(fn, given, None).items()}

    try:
        offer = "publish_offer"
        named = {"publish-artifact": key, "publish-where": HUB}
        offered = ["anna/SmolLM2-135M-Instruct-nf4", "acme/SmolLM2-135M-Instruct-nf4"]
        assert told(offer, **named) == {"publish-repo": gr.update(choices=offered)}
        asked = len(hub.requests)
        assert told(offer, **named | {"publish-where": FOLDER}) == {"publish-repo": gr.skip()}
        assert told(offer, **{"publish-where": HUB}) == {"publish-repo": gr.skip()}
        assert len(hub.requests) == asked
        started = told("publish_start", **named, **{"publish-repo": offered[1]})
        assert "holds 100 GB in private repos and 7 bytes are to come" in html.unescape(started["publish-note"])
        assert studio.supervisor.list(LOCAL)[0].spec["options"]["repo_id"] == offered[1]
    finally:
        studio.supervisor.stop()


def test_the_start_of_a_recipe_that_publishes_tells_a_full_storage_beside_it(
    hub: LoopbackHub, studio: Studio, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_model("acme/tiny", tiny_model)
    hub.add_model("me/secret", {"config.json": "{}"}, private=True, used_storage=100 * 10**9)
    monkeypatch.setenv("HF_TOKEN", "hf_write")
    with gr.Blocks() as page:
        bench = build_parts(studio)
        wire_sidebar(bench)
    recipe = {"base_model": "acme/tiny", "stages": [{"stage": "quantize", "method": "nf4"}]}
    known = {bench.model.facts: inspect("acme/tiny", None, None)}
    studio.supervisor._lanes = []  # nobody does what waits
    studio.supervisor.start()
    try:
        for publish, words in (({}, ""), ({"publish": {"repo_id": "me/new"}}, "holds 100 GB in private repos and")):
            typed = given(bench) | known | {bench.recipe.pasted: recipe | publish}
            note = call(event(page, "recipe_start"), typed, None)[bench.sidebar.note]
            assert (words in note, bool(note)) == (True, bool(words))
        assert len(studio.supervisor.list(LOCAL)) == 2
    finally:
        studio.supervisor.stop()


def test_variants_of_a_job_are_published_beside_it_under_their_own_names(
    studio: Studio, bench: Workbench, tmp_path: Path
) -> None:
    job_id, tab = quantized(studio, "anna", "nf4", "int8"), bench.publish
    typed = {
        tab.artifact: f"{job_id}/1-quantize", tab.variants: [f"{job_id}/2-quantize"], tab.where: FOLDER,
        tab.folder: "mine", tab.repo: "anna/best", tab.hub.private: True, tab.insist: False,
        **{field: getattr(field, "value", None) for field in (*tab.hub.more.components, *tab.contents.form)},
    }  # fmt: skip
    studio.supervisor.start()
    try:
        result = studio.result(typed[tab.artifact], "anna")
        shown_ = tab.show(result, "anna", None)
        assert [key for _, key in shown_[tab.variants]["choices"]] == [f"{job_id}/2-quantize"]
        folders = [place.to_folder for _, place in tab.destinations(typed, "anna")]
        shelf = tmp_path / "published"
        assert folders == [shelf / "mine", shelf / "SmolLM2-135M-Instruct-int8"]
        assert not any(place.variants for _, place in tab.destinations(typed, "anna"))
        going = [place for _, place in tab.destinations(typed | {tab.where: HUB}, "anna")]
        repos = ["anna/best", "anna/SmolLM2-135M-Instruct-int8"]
        assert [place.repo_id for place in going] == repos
        assert [place.variants for place in going] == [(repos[1],), (repos[0],)]
        shown_ = tab.preview(result, "anna", "anna/best", typed[tab.variants])
        assert f"* [{repos[1]}](https://huggingface.co/{repos[1]})" in shown_[tab.contents.card]
        alone = tab.destinations(typed | {tab.where: HUB, tab.variants: []}, "anna")
        assert [place.variants for _, place in alone] == [()]
    finally:
        studio.supervisor.stop()


def test_a_job_from_repo_to_repo_shows_where_it_went_and_offers_no_chat(studio: Studio, bench: Workbench) -> None:
    store = Store(studio.settings.data / "jobs.sqlite")
    stage, publish = {"stage": "quantize", "method": "nf4"}, {"repo_id": "anna/new"}
    recipe = parse_recipe({"base_model": "acme/tiny", "stages": [stage], "publish": publish})
    spec = Streaming(recipe=recipe)
    job_id = store.add(spec, "anna")
    store.finish(job_id, JobState.COMPLETED)
    store.close()
    target = stage_folder(studio.settings.jobs / job_id, spec, 0)
    draft = partial(target)
    (draft / "published.json").write_text(json.dumps([{"location": "https://hf.co/anna/new", "verified": True}]))
    seal(draft, target, Artifact(kind="published", stage="stream", created=now()))
    studio.supervisor.start()
    try:
        shown_ = bench.jobs.show("anna", job_id)
        assert "Quantize to NF4 · tiny" in shown_[bench.jobs.view]
        assert 'href="https://hf.co/anna/new"' in shown_[bench.jobs.result]["value"]
        assert not shown_[bench.jobs.chat]["visible"]
        assert not shown_[bench.jobs.publish]["visible"]
        assert studio.results("anna") == []
    finally:
        studio.supervisor.stop()


def test_the_web_process_imports_no_heavy_library() -> None:
    code = (
        "import sys, app, pathlib, tempfile\n"
        "from backend.settings import Settings\n"
        "s = Settings(data=pathlib.Path(tempfile.mkdtemp()))\n"
        "app.web_app(app.Studio(s, app.Supervisor(s), app.Servers(s)), app.Launch(s))\n"
        "print([m for m in ('torch', 'transformers', 'peft', 'trl', 'datasets', 'bitsandbytes') if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    assert run.stdout.strip() == "[]"


def test_a_foreign_text_appears_literally() -> None:
    def handler() -> None:
        raise HubError("Could not find '<img src=x>' on the Hub.")

    with pytest.raises(gr.Error, match="&lt;img src=x&gt;"):
        shown()(handler)()


def values(updates: dict[Any, Any]) -> dict[Any, Any]:
    """The values that updates leave in the page."""
    return {c: u["value"] if isinstance(u, dict) and "__type__" in u else u for c, u in updates.items()
             if not (isinstance(u, dict) and "__type__" in u and "value" not in u)}  # fmt: skip


def test_variants_stand_beside_each_other_in_the_name_and_the_steps_of_their_job(tmp_path: Path) -> None:
    quantizations = [{"stage": "quantize", "method": method} for method in ("nf4", "gptq")]
    stages = [{"stage": "merge", "adapters": ["me/law"]}, *quantizations]
    store = Store(tmp_path / "jobs.sqlite")
    written = view(store.get(store.add(parse_recipe({"base_model": "demo", "stages": stages}), "anna"), "anna"))
    store.close()
    assert "Merged → NF4, GPTQ · SmolLM2-135M-Instruct" in written
    assert re.findall(r"</span>(.*?)</li>", written) == ["fetch", "merge", "NF4", "GPTQ 4 bit · 128"]


def test_the_variants_of_a_job_stand_side_by_side_smallest_first() -> None:
    job = Job(
        id="j", owner="me", kind="recipe", spec={"base_model": "me/tiny"}, state=JobState.COMPLETED, steps=(), created=0
    )  # fmt: skip

    def result(index: int, size: int, kl: float, **options: object) -> Result:
        metrics = Metrics(
            kl_mean=kl, kl_p99=2, top1_agreement=0.5, perplexity=8, reference_perplexity=7, tokens=9, text="words",
            convention="windows", flips=0.04, tokens_per_second=3.5,
        )  # fmt: skip
        files = {"model.safetensors": File(size=size, sha256="0" * 64)}
        found = Artifact(
            kind="quantized", stage="quantize", options={"stage": "quantize"} | options, metrics=metrics, files=files,
            created=now(),
        )  # fmt: skip
        return Result(job, Path(f"{index}-quantize"), found)

    made = [result(1, 170_000_000, 0.03, method="int8"), result(2, 91_000_000, 0.28, method="nf4"),
            result(3, 90_000_000, 0.09, method="gptq", bits=4, group_size=64)]  # fmt: skip
    told = variants(made)
    assert [told.index(name) for name in ("GPTQ 4 bit · 64</th>", "NF4</th>", "INT8</th>")] == sorted(
        told.index(name) for name in ("GPTQ 4 bit · 64</th>", "NF4</th>", "INT8</th>")
    )
    assert "90.0 MB" in told
    assert told.count("<circle") == 3
    assert variants(made[:1]) == ""
