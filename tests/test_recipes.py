"""Recipes and option models: every fault at once, each with its field."""

import json

import pytest

from backend.errors import SpecError
from backend.quantize import METHODS
from backend.recipes import parse_recipe, parse_yaml, read_recipe
from backend.stages.prepare import prepare

NF4 = {"stage": "quantize", "method": "nf4"}


def faults(data, **kwargs):
    with pytest.raises(SpecError) as e:
        parse_recipe(data, **kwargs)
    return e.value.faults


def test_every_fault_is_named_at_once_with_its_field():
    found = faults(
        {
            "base_model": "../x",
            "stages": [
                {**NF4, "bnb_4bit_compute_dtype": "int9", "group_size": 1},
                {"stage": "evaluate", "num_samples": 0},
            ],
            "color": "red",
        }
    )
    assert set(found) == {
        "base_model",
        "stages[0].bnb_4bit_compute_dtype",
        "stages[0].group_size",
        "stages[1].num_samples",
        "color",
    }
    assert "'int9'" in found["stages[0].bnb_4bit_compute_dtype"]
    assert "(got 0)" in found["stages[1].num_samples"]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0, "at least 1"),
        (10**6, "at most 4096"),
        ("many", "whole number"),
        (2.5, "whole number"),
        (None, "whole number"),
    ],
)
def test_a_wrong_number_says_which_would_do(value, words):
    stages = [NF4, {"stage": "evaluate", "num_samples": value}]
    assert words in faults({"base_model": "demo", "stages": stages})["stages[1].num_samples"]


def test_a_recipe_survives_yaml(tmp_path):
    recipe = parse_recipe(
        {"base_model": "me/model", "stages": [{**NF4, "llm_int8_skip_modules": ["lm_head"]}, {"stage": "evaluate"}]}
    )
    (tmp_path / "r.yaml").write_text(recipe.to_yaml())
    assert read_recipe(tmp_path / "r.yaml") == recipe


GPTQ = {"stage": "quantize", "method": "gptq"}


def test_layouts_stand_for_a_stage_in_each_of_which_the_first_suits_the_readers_of_all(tmp_path):
    stages = [{**GPTQ, "layouts": ["awq", "compressed-tensors", "gptq"], "sym": False}, {"stage": "evaluate"}]
    recipe = parse_recipe({"base_model": "me/model", "stages": stages})
    assert [stage.layout for stage in recipe.quantizing] == ["gptq", "awq", "compressed-tensors"]
    assert {stage.sym for stage in recipe.quantizing} == {False}
    assert [recipe.calibration_of(at) for at in range(4)] == [0, 0, 0, 3]
    assert recipe.together(recipe.stages[1]) == ("gptq", "awq", "compressed-tensors")
    (tmp_path / "r.yaml").write_text(recipe.to_yaml())
    assert read_recipe(tmp_path / "r.yaml") == recipe


def test_stages_that_differ_in_more_than_layout_are_calibrated_each():
    stages = [GPTQ, NF4, {**GPTQ, "bits": 8}, {**GPTQ, "layout": "awq"}, {**GPTQ, "layout": "awq", "group_size": 64}]
    recipe = parse_recipe({"base_model": "me/model", "stages": stages})
    assert [recipe.calibration_of(at) for at in range(5)] == [0, 1, 2, 0, 4]
    assert recipe.together(recipe.stages[0]) == ("gptq", "awq")
    assert recipe.together(recipe.stages[2]) == recipe.together(recipe.stages[1]) == ()


@pytest.mark.parametrize(
    ("stage", "field", "words"),
    [
        ({**GPTQ, "layouts": "awq"}, "layouts", "list of different layouts"),
        ({**GPTQ, "layouts": []}, "layouts", "list of different layouts"),
        ({**GPTQ, "layouts": ["awq", "awq"]}, "layouts", "list of different layouts"),
        ({**GPTQ, "layouts": ["awq"], "layout": "gptq"}, "layouts", "leave layout out"),
        ({**GPTQ, "layouts": ["gptq", "marlin"]}, "layout", "(got 'marlin')"),
        ({**GPTQ, "layouts": ["gptq", ["awq"]]}, "layout", "must be"),
        ({**GPTQ, "layouts": ["gptq", "awq"], "bits": 3}, "bits", "the layout awq holds 4"),
        ({**GPTQ, "layouts": ["gptq", "awq"], "desc_act": True}, "desc_act", "choose layout gptq"),
        ({**NF4, "layouts": ["gptq", "awq"]}, "layout", "is not an option here"),
    ],
)
def test_layouts_that_will_not_do_are_named_once_where_they_were_given(stage, field, words):
    stages = [{**GPTQ, "layouts": ["gptq", "awq"]}, stage, {"stage": "evaluate", "num_samples": 0}]
    found = faults({"base_model": "demo", "stages": stages})
    assert words in found[f"stages[1].{field}"]
    assert set(found) <= {f"stages[1].{field}", "stages[2].num_samples"}


def test_an_unknown_method_lists_those_there_are():
    said = faults({"base_model": "demo", "stages": [{**NF4, "method": "nf5"}]})["stages[0]"]
    assert ", ".join(f"'{name}'" for name in METHODS) in said


def test_16_bit_main_weights_and_8_bit_saved_weights_exclude_each_other():
    found = faults({"base_model": "demo", "stages": [{**NF4, "method": "int8", "llm_int8_has_fp16_weight": True}]})
    assert "excludes" in found["stages[0].llm_int8_has_fp16_weight"]


@pytest.mark.parametrize("option", ["bnb_4bit_use_double_quant", "bnb_4bit_compute_dtype"])
def test_options_of_four_bits_are_refused_for_eight(option):
    assert f"stages[0].{option}" in faults(
        {"base_model": "demo", "stages": [{**NF4, "method": "int8", option: "float32"}]}
    )


def test_evaluate_needs_a_stage_before_it():
    assert "stages[0]" in faults({"base_model": "demo", "stages": [{"stage": "evaluate"}]})


def test_one_destination_holds_one_model():
    data = {"base_model": "demo", "stages": [NF4, {**NF4, "method": "int8"}], "publish": {"repo_id": "me/x"}}
    assert "makes 2 models" in faults(data)["publish"]


def test_text_and_dataset_exclude_each_other():
    stages = [NF4, {"stage": "evaluate", "text": "a.txt", "dataset": "a/b"}]
    assert "excludes text" in faults({"base_model": "demo", "stages": stages}, paths=True)["stages[1].dataset"]


def test_strangers_name_no_paths_of_this_machine():
    stages = [NF4, {"stage": "evaluate", "text": "/etc/passwd"}]
    assert "stages[1].text" in faults({"base_model": "demo", "stages": stages})
    assert "publish.to_folder" in faults({"base_model": "demo", "stages": [NF4], "publish": {"to_folder": "/tmp/x"}})


def test_a_published_recipe_holds_no_path_and_no_destination(tmp_path):
    text = tmp_path / "mine.txt"
    stages = [NF4, {"stage": "evaluate", "text": str(text)}]
    data = {"base_model": str(tmp_path), "stages": stages, "publish": {"to_folder": str(tmp_path / "out")}}
    public = parse_recipe(data, paths=True).public("model").to_yaml()
    assert str(tmp_path) not in public
    assert "mine.txt" in public


def test_files_of_a_recipe_are_found_beside_it(tmp_path):
    (tmp_path / "r.yaml").write_text(
        "base_model: demo\nstages: [{stage: quantize, method: nf4}, {stage: evaluate, text: t.txt}]\n"
    )
    assert read_recipe(tmp_path / "r.yaml").stages[1].text == str(tmp_path / "t.txt")


@pytest.mark.parametrize(("content", "words"), [("a: [1", "not YAML"), ("- 1", "mapping"), ("", "mapping")])
def test_a_file_that_is_no_recipe_is_named(tmp_path, content, words):
    (tmp_path / "r.yaml").write_text(content)
    with pytest.raises(SpecError, match=words) as e:
        read_recipe(tmp_path / "r.yaml")
    assert "r.yaml" in str(e.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a--b/c", "not a repo id"),
        ("https://evil.example/a/b", "address"),
        ("http://169.254.169.254", "address"),
        ("user@host/x", "address"),
        ("me/m\u0435ta", r"U\+0435"),
        ("a/b/c", "not a repo id"),
        ("x" * 97, "96"),
        ("$(id)", "not a repo id"),
        ("/etc", "path"),
        ("a\nb", r"U\+000A"),
    ],
)
def test_a_name_that_is_no_model_is_refused_in_words(name, words):
    with pytest.raises(SpecError, match=words):
        parse_recipe({"base_model": name, "stages": [NF4]})


def test_an_address_on_the_hub_is_its_model():
    recipe = parse_recipe({"base_model": "https://huggingface.co/me/model/tree/main", "stages": [NF4]})
    assert recipe.base_model == "me/model"


@pytest.mark.parametrize(
    ("text", "line", "key", "first"),
    [
        ("base_model: demo\nstages: []\nbase_model: other/one\n", 3, "base_model", 1),
        ("stages:\n- stage: quantize\n  method: nf4\n  'method': int8\n", 4, "method", 3),
        ('{"base_model": "demo", "stages": [{"stage": "finetune",\n"r": 4,\n"r": 8}]}', 3, "r", 2),
        ("publish:\n  repo_id: a/b\n  private: true\n  repo_id: a/c\n", 4, "repo_id", 2),
        ("x-a: &a {r: 4}\nstages:\n- <<: *a\n  r: 8\n  r: 9\n", 5, "r", 4),
    ],
)
def test_a_key_that_stands_twice_is_refused_with_its_line(text, line, key, first):
    with pytest.raises(SpecError) as e:
        parse_yaml(text, "'recipe.yaml'")
    assert str(e.value).startswith(f"'recipe.yaml', line {line}: the key '{key}' stands twice, first in line {first}:")


def test_a_key_may_stand_again_where_a_merged_mapping_has_it():
    found = parse_yaml("x-a: &a {r: 4, seed: 1}\nb: {<<: *a, r: 8}\nc: {<<: [*a], seed: 2}\n")
    assert (found["b"], found["c"]) == ({"r": 8, "seed": 1}, {"r": 4, "seed": 2})


TUNING = "base_model: demo\nstages:\n- {stage: finetune, dataset: acme/rows, %s}\n"


@pytest.mark.parametrize(
    ("written", "option", "read"),
    [
        ("gradient_checkpointing: off", "gradient_checkpointing", "off"),
        ("gradient_checkpointing: true", "gradient_checkpointing", "on"),
        ("tf32: false", "tf32", "off"),
        ("packing: yes", "packing", True),
        ("packing: off", "packing", False),
        ("learning_rate: 1e-4", "learning_rate", 1e-4),
        ("learning_rate: 2E-4", "learning_rate", 2e-4),
        ("max_steps: 1_000", "max_steps", 1000),
        ("seed: 010", "seed", 10),
        ("seed: 0", "seed", 0),
        ("config: 2024-01-02", "config", "2024-01-02"),
        ("config: no", "config", "no"),
        ("config: 007", "config", "007"),
        ("config: 12e4567", "config", "12e4567"),
        ("revision: 1234567", "revision", "1234567"),
        ("config: 1:30", "config", "1:30"),
        ("config: ~", "config", None),
        ("config:", "config", None),
    ],
)  # fmt: skip
def test_words_and_numbers_of_a_recipe_mean_what_they_say(written, option, read):
    found = getattr(parse_recipe(parse_yaml(TUNING % written)).tuning, option)
    assert found == read
    assert type(found) is type(read)


def test_a_recipe_that_is_written_reads_as_the_same_recipe():
    text = TUNING % "gradient_checkpointing: off, learning_rate: 1e-5, config: '010', revision: '2024-01-02'"
    recipe = parse_recipe(parse_yaml(text))
    assert parse_recipe(parse_yaml(recipe.to_yaml())) == recipe


def test_keys_for_anchors_alone_are_taken_and_other_strange_keys_are_not():
    text = "x-common: &common {max_steps: 3}\nx-: 1\n" + TUNING % "<<: *common"
    assert parse_recipe(parse_yaml(text)).tuning.max_steps == 3
    with pytest.raises(SpecError, match="common"):
        parse_recipe(parse_yaml(text.replace("x-common:", "common:")))
    with pytest.raises(SpecError, match="x-note"):
        parse_recipe(parse_yaml(TUNING % "x-note: 1"))


@pytest.mark.parametrize(
    ("field", "token"),
    [
        ("system_prompt", "hf_" + "a1B2" * 8),
        ("template", "sk-proj-" + "a1B2" * 8),
        ("text_column", "ghp_" + "a1B2" * 9),
    ],
)
def test_a_token_in_a_text_that_the_recipe_carries_is_refused_before_the_work_and_not_repeated(field, token):
    stage = {"stage": "finetune", "dataset": "acme/rows"}
    parse_recipe({"base_model": "demo", "stages": [stage | {"system_prompt": "sk-ip hf_x, say ask-me-nothing-more"}]})
    with pytest.raises(SpecError, match=rf"stages\[0\]\.{field}: holds what looks like a token") as e:
        parse_recipe({"base_model": "demo", "stages": [stage | {field: f"Use {token} to log in to {{q}}."}]})
    assert token not in str(e.value)


def test_what_could_not_be_published_is_refused_before_the_work(tiny_model, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"Say {i}.", "completion": f"{i}."}) + "\n" for i in range(9)))
    stage = {"stage": "finetune", "dataset": str(rows), "max_steps": 1}
    for stages, card, words in (
        ([stage | {"system_prompt": "Work in /home/me/project alone."}], None, "'recipe.yaml' names a path"),
        ([stage], "See /home/me/notes.md", "'README.md' names a path"),
    ):
        publish = {"to_folder": str(tmp_path / "sent"), "card": card}
        recipe = {"base_model": str(tiny_model), "stages": stages, "publish": publish}
        with pytest.raises(SpecError, match=words):
            prepare(parse_recipe(recipe, paths=True), tmp_path / "data", None)


def test_what_calibration_reads_may_be_a_name_or_all_that_is_said_of_its_rows():
    def calibration(**given):
        recipe = parse_recipe({"base_model": "demo", "stages": [{"stage": "quantize", "method": "gptq", **given}]})
        return recipe.stages[0].calibration

    assert calibration() is None
    assert calibration(calibration="me/rows").dataset == "me/rows"
    nested = calibration(calibration={"dataset": "me/rows", "split": "train[:9]", "user_column": "frage"})
    assert (nested.split, nested.user_column) == ("train[:9]", "frage")


def test_a_recipe_that_says_flat_what_calibration_reads_is_read():
    data = {"base_model": "demo", "stages": [{"stage": "quantize", "method": "awq"}]}
    defaults = {"calibration_parse_json": False, "calibration_quoting": True, "calibration_sample_by": "paragraph"}
    said = {"calibration": "me/rows", "calibration_split": "train[:9]", "calibration_user_column": "frage"}
    without = parse_recipe({**data, "stages": [data["stages"][0] | defaults]})
    assert without == parse_recipe(data)
    [found] = parse_recipe({**data, "stages": [data["stages"][0] | defaults | said]}).stages
    assert found.calibration.model_dump(exclude_defaults=True) == {
        "dataset": "me/rows", "split": "train[:9]", "user_column": "frage",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "field", "words"),
    [
        ({"calibration_split": "train"}, "calibration_split", "give calibration"),
        ({"calibration": {"split": "train"}}, "calibration.dataset", "is missing"),
        ({"calibration": "me/rows", "calibration_split": "train[:"}, "calibration", "is no split"),
        ({"calibration": {"dataset": "me/rows", "validation_split": "test"}}, "calibration.validation_split", "not an"),
        (
            {"calibration": {"dataset": "me/rows", "template": "{a}", "user_column": "b"}},
            "calibration.template",
            "words",
        ),
        ({"calibration": {"dataset": "/etc/rows.csv"}}, "calibration.dataset", "upload the file"),
        ({"calibration": {"dataset": "me/rows", "system_prompt": f"hf_{'x' * 34}"}}, "calibration", "a token"),
        ({"split": "train"}, "split", "not an option"),
    ],
)
def test_what_is_wrong_with_calibration_is_named_by_its_own_option(given, field, words):
    with pytest.raises(SpecError) as e:
        parse_recipe({"base_model": "demo", "stages": [{"stage": "quantize", "method": "gptq", **given}]})
    assert words in e.value.faults[f"stages[0].{field}"]
