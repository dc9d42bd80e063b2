"""Forms and specs: whatever stands in a form reaches the option model, and back."""

import gradio as gr
import pytest

from backend.evaluate import EvaluateOptions
from backend.finetune.options import FinetuneOptions
from backend.merge.options import MergeOptions
from backend.options import COMMON_OPTIONS, Frozen, parse
from backend.quantize import METHODS
from backend.serve.chat import ChatOptions
from ui.kit.forms import OptionForm, can_show, label, option_form

MODELS = [EvaluateOptions, ChatOptions, FinetuneOptions, *(module.Options for module in METHODS.values())]

OTHERS = {
    "nf4": {"bnb_4bit_use_double_quant": False, "bnb_4bit_compute_dtype": "float32", "llm_int8_skip_modules": ("a",)},
    "fp4": {"bnb_4bit_use_double_quant": False, "llm_int8_skip_modules": ("lm_head", "v_proj")},
    "int8": {"llm_int8_threshold": 4.5, "llm_int8_enable_fp32_cpu_offload": True, "llm_int8_skip_modules": ("x",)},
    "fp8": {"strategy": "block"},
    "w8a16": {"group_size": -1},
    "w4a16": {"group_size": 32},
    "mxfp4": {"max_shard_size": 1_000_000},
    "gptq": {"bits": 3, "group_size": -1, "sym": False, "desc_act": True, "calibration": "a/rows"},
    "awq": {"group_size": 64, "scale_search": False, "clip_search": False, "num_calibration_samples": 7},
    "w8a8": {"scale_search": False, "damp_percent": 0.05, "calibration": "a/rows"},
    "nvfp4": {"error_feedback": False, "max_seq_length": 64},
    "cast": {"dtype": "float16"},
}  # fmt: skip

UNASKED = {"awq": {"bits"}, "w8a8": {"layout", "bits", "group_size"}, "nvfp4": {"layout", "bits", "group_size"}}
"""What a method has no choice of."""


def build(options: type[Frozen]) -> OptionForm:
    with gr.Blocks():
        return option_form(options, "form")


def shown(form: OptionForm, options: Frozen) -> dict:
    """What the handlers would get after the form was filled with these options."""
    given = {component: component.value for component in form.components}
    return given | {component: update["value"] for component, update in form.fill(options).items()}


@pytest.mark.parametrize("options", MODELS)
def test_an_untouched_form_is_the_option_model_with_its_defaults(options: type[Frozen]) -> None:
    form = build(options)
    common = {n: f.default for n, f in options.model_fields.items() if n in COMMON_OPTIONS}
    values = form.values({c: c.value for c in form.components})
    assert parse(options, common | values) == options()


@pytest.mark.parametrize("options", [*MODELS, MergeOptions])
def test_every_option_with_a_choice_is_in_the_form_once_with_its_description(options: type[Frozen]) -> None:
    form = build(options)
    unasked = {*COMMON_OPTIONS, *UNASKED.get(getattr(options(), "method", ""), ())}
    assert set(form.fields) == options.model_fields.keys() - unasked
    assert all(form.fields[name].info == options.model_fields[name].description for name in form.fields)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("bnb_4bit_use_double_quant", "Use double quant"),
        ("llm_int8_enable_fp32_cpu_offload", "Enable FP32 CPU offload"),
        ("use_rslora", "Use rsLoRA"),
        ("lora_alpha", "LoRA alpha"),
        ("repo_id", "Repo ID"),
        ("sdk", "SDK"),
        ("r", "r"),
    ],
)
def test_a_label_writes_names_as_one_knows_them(option: str, words: str) -> None:
    assert label(option) == words


@pytest.mark.parametrize("method", METHODS)
def test_every_value_of_a_form_reaches_the_spec(method: str) -> None:
    wanted = METHODS[method].Options(**OTHERS[method])
    form = build(type(wanted))
    assert parse(type(wanted), {"method": method, **form.values(shown(form, wanted))}) == wanted


def test_an_optional_number_left_empty_is_none_and_a_number_in_it_counts() -> None:
    form = build(ChatOptions)
    seed = form.fields["seed"]
    assert not isinstance(seed, gr.Number)  # an untouched empty one sends 0
    untouched = {c: c.value for c in form.components}
    assert parse(ChatOptions, form.values(untouched)).seed is None
    assert parse(ChatOptions, form.values(untouched | {seed: "7"})).seed == 7
    assert form.fill(ChatOptions(seed=7))[seed]["value"] == "7"


def test_an_optional_choice_can_be_taken_back() -> None:
    dtype = build(MergeOptions).fields["dtype"]
    assert dtype.choices[0] == ("not set", "")
    assert dtype.value == ""


def test_a_choice_of_several_literals_offers_them_all() -> None:
    into = build(MergeOptions).fields["merge_into"]
    assert [value for _, value in into.choices] == ["auto", "original", "nf4", "fp4"]


def test_a_list_whose_entries_a_form_cannot_say_is_known() -> None:
    assert can_show(MergeOptions(adapters=("a/b", "c/d"), adapter_weights=(0.5, 2)))
    assert not can_show(MergeOptions(adapters=("a/b", "c/d"), adapter_revisions=("main", "")))
    assert not can_show(MergeOptions(adapters=("a/b",), adapter_revisions=("one, two",)))


def test_a_fault_stands_beside_its_field_and_goes_again() -> None:
    form = build(EvaluateOptions)
    marked = form.mark({"num_samples": "must be 1 or more (got 0)"})
    assert marked[form.fields["num_samples"]]["info"] == "Must be 1 or more (got 0)."
    assert marked[form.fields["num_samples"]]["elem_classes"] == ["faulty"]
    again = form.mark({})[form.fields["num_samples"]]
    assert again["info"] == EvaluateOptions.model_fields["num_samples"].description
    assert again["elem_classes"] == []
