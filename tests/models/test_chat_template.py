"""Chat templates that will not do: one sentence that names what is wrong, wherever one is used, and nothing lost."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from backend.__main__ import main
from backend.check import CheckOptions, Tried, check
from backend.data.examine import Dataset, load
from backend.data.files.rows import Source
from backend.data.options import DatasetOptions
from backend.errors import SpecError
from backend.evaluate import EvaluateOptions, Text, measure
from backend.finetune.options import FinetuneOptions
from backend.finetune.reader import open_reader
from backend.models.chat_template import TemplateRefusal, chat_text, check_template
from backend.models.loading import load_tokenizer
from backend.options import parse
from backend.progress import silent
from backend.settings import load_settings
from backend.stages.calibration_data import cut_rows
from tests.support.looks import looked, spec
from tests.support.row_examples import jsonl
from tests.support.tokenizers_made import CHATML, make_tokenizer

ALTERNATE = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Alternate!') }}"
)
STRICT = ALTERNATE + "{% endif %}" + CHATML.removeprefix("{% for m in messages %}")
NONE = {
    "a block that another closes": ("{% for m in messages %}{{ m.content }}{% endif %}", r"not valid Jinja \(line 1"),
    "a brace that is left open": ("\n{{ messages[0].content", r"not valid Jinja \(line 2"),
    "a filter that is not there": ("{{ messages | letters }}", "No filter named 'letters'"),
    "names without a default": (
        {"rag": CHATML, "tool_use": CHATML},
        "named 'rag', 'tool_use' and none named 'default'",
    ),
}
"""Name of a template that takes no conversation → the template, and a pattern of what is said of it."""

THIS = {
    "it raises": ("{{ raise_exception('Only\n in verse') }}", r"\(Only in verse\)"),
    "a variable that nobody gives": ("{{ today + messages[0].content }}", "'today' is undefined"),
    "a division by nothing": ("{{ 1 // (messages | length - messages | length) }}", "modulo by zero|division"),
    "a sum of a text and a number": ("{{ messages[0].content + 1 }}", "concatenate"),
    "what the sandbox forbids": ("{{ ''.__class__.__mro__ }}", "unsafe"),
    "a macro that calls itself": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
}
"""The same of templates that fail with a conversation."""


def model(tiny: Path, folder: Path, template: Any) -> Path:
    """Copy a model with another chat template."""
    shutil.copytree(tiny, folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


def opened(folder: Path, *rows: dict[str, Any], **given: Any) -> Dataset:
    (folder / "rows.jsonl").write_bytes(jsonl(*rows))
    source = Source(name="rows.jsonl", files=(folder / "rows.jsonl",), split=None)
    return load(source, parse(DatasetOptions, {"allow_identical": True, **given}))


def talk(i: int, *roles: str) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": f"{role} {i}"} for role in roles or ("user", "assistant")]}


ROWS = [*(talk(i) for i in range(6)), talk(6, "user", "user", "assistant"), talk(7, "assistant", "assistant")]


@pytest.mark.parametrize("case", [*NONE, *THIS])
def test_what_is_wrong_with_a_template_is_one_sentence(case: str) -> None:
    template, words = (NONE | THIS)[case]
    tokenizer = make_tokenizer(template=template)
    with pytest.raises(SpecError, match=words) as error:
        chat_text(tokenizer, [{"role": "user", "content": "q"}])
    assert "\n" not in str(error.value)
    assert "choose another model" in str(error.value)
    assert isinstance(error.value, TemplateRefusal) == (case in THIS)
    if case in THIS:
        check_template(tokenizer)  # another conversation may pass
    else:
        with pytest.raises(SpecError, match=words):
            check_template(tokenizer)


def test_named_templates_do_where_one_is_the_default_or_tools_are_there() -> None:
    turns = [{"role": "user", "content": "q"}]
    assert "user\nq" in chat_text(make_tokenizer(template={"rag": "", "default": CHATML}), turns)
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert "user\nq" in chat_text(make_tokenizer(template={"rag": "", "tool_use": CHATML}), turns, tools)


@pytest.mark.parametrize("case", NONE)
def test_a_preview_a_training_and_a_calibration_say_what_is_wrong(tiny_model: Path, tmp_path: Path, case: str) -> None:
    template, words = NONE[case]
    broken = model(tiny_model, tmp_path / "m", template)
    data = opened(tmp_path, *ROWS)
    with pytest.raises(SpecError, match=f"{words}.*choose a chat_template: plain") as error:
        open_reader(broken, data, FinetuneOptions())
    assert list(error.value.faults) == ["chat_template"]
    assert open_reader(broken, data, FinetuneOptions(chat_template="plain")).renderer
    with pytest.raises(SpecError, match=words):
        cut_rows(data, load_tokenizer(broken), 2, 16)
    seen = looked(tmp_path / "job", spec(broken, dataset=str(tmp_path / "rows.jsonl")))
    [question] = seen.questions
    assert (question.option, seen.survey) == ("chat_template", None)


def test_plain_text_needs_no_template(tiny_model: Path, tmp_path: Path) -> None:
    broken = model(tiny_model, tmp_path / "m", NONE["a brace that is left open"][0])
    data = opened(tmp_path, *({"text": f"some words {i} " * 20} for i in range(4)))
    assert open_reader(broken, data, FinetuneOptions()).renderer.render(next(data.train())).ends
    assert len(cut_rows(data, load_tokenizer(broken), 2, 16)[0].ids) == 2


@pytest.mark.parametrize("case", ["a block that another closes", "names without a default", "it raises"])
def test_what_was_measured_is_kept_where_the_prompts_cannot_be_asked(
    tiny_model: Path, tmp_path: Path, case: str
) -> None:
    template, _ = (NONE | THIS)[case]
    broken, report = model(tiny_model, tmp_path / "m", template), silent()
    text = Text(name="prose", content="The quick brown fox jumps over the lazy dog. " * 9)
    found = measure(broken, tiny_model, text, EvaluateOptions(max_seq_length=64, num_samples=1), report)
    assert (found.tokens, found.kl_mean) == (63, pytest.approx(0, abs=1e-6))
    assert len(found.answers) == 8
    [warning] = report.warnings
    assert warning.endswith("The prompts were asked without it.")


@pytest.mark.parametrize("case", ["a block that another closes", "a variable that nobody gives"])
def test_a_check_fails_with_the_reason_before_an_engine_starts(tiny_model: Path, tmp_path: Path, case: str) -> None:
    template, _ = (NONE | THIS)[case]
    broken = model(tiny_model, tmp_path / "m", template)
    found = check(Tried(broken), CheckOptions(), load_settings(), silent())
    assert (found.passed, found.engine) == (False, None)
    assert found.reason
    assert "chat template" in found.reason


def test_rows_that_the_template_refuses_are_dropped_with_count_and_reason(tiny_model: Path, tmp_path: Path) -> None:
    strict = model(tiny_model, tmp_path / "m", STRICT)
    opened(tmp_path, *ROWS)
    rows = str(tmp_path / "rows.jsonl")
    seen = looked(tmp_path / "job", spec(strict, dataset=rows, on_fault="drop"))
    assert seen.survey
    assert (seen.survey.rows, seen.survey.refused, seen.survey.masked) == (6, 2, 0)
    assert "2 are left out because the chat template does not take them" in seen.survey.words
    said = next(finding for finding in seen.findings if finding.kind == "chat_template")
    assert "(Alternate!) in 2 of 8 rows (rows 7, 8): left out." in said.text
    asked = looked(tmp_path / "job2", spec(strict, dataset=rows))
    assert [(question.option, question.rows) for question in asked.questions] == [("on_fault", (7, 8))]


def test_calibration_drops_what_the_template_refuses_or_says_that_it_may(tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(model(tiny_model, tmp_path / "m", STRICT))
    found, said = cut_rows(opened(tmp_path, *ROWS, on_fault="drop"), tokenizer, 64, 16)
    assert found.ids.shape[1] == 16
    assert [(finding.rows, finding.count) for finding in said] == [((7, 8), 2)]
    with pytest.raises(SpecError, match="set on_fault to drop"):
        cut_rows(opened(tmp_path, *ROWS), tokenizer, 64, 16)
    none = opened(tmp_path, *ROWS[6:], on_fault="drop")
    with pytest.raises(SpecError, match=r"None of the 2 rows can be used\. .*Alternate!"):
        cut_rows(none, tokenizer, 64, 16)


@pytest.mark.real
def test_a_training_goes_on_without_the_rows_that_the_template_refuses(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WEIGHTSMITH_DATA", str(tmp_path / "data"))
    strict = model(tiny_model, tmp_path / "m", STRICT)
    opened(tmp_path, *ROWS)
    argv = ["finetune", str(strict), "--dataset", str(tmp_path / "rows.jsonl"), "--output", str(tmp_path / "a")]
    argv += ["--max-steps", "1", "--max-length", "64"]
    assert main(argv) == 1
    assert "set on_fault to drop" in capsys.readouterr().err
    assert main([*argv, "--on-fault", "drop"]) == 0
    assert "Alternate!" in capsys.readouterr().err
    assert json.loads((tmp_path / "a" / "artifact.json").read_text())["training"]["rows"] == 6


@pytest.mark.real
@pytest.mark.parametrize("case", ["a block that another closes", "it raises"])
def test_a_chat_says_what_is_wrong_with_the_template(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    monkeypatch.setenv("WEIGHTSMITH_DATA", str(tmp_path / "data"))
    template, words = (NONE | THIS)[case]
    broken = model(tiny_model, tmp_path / "m", template)
    assert main(["chat", str(broken), "--prompt", "hi", "--engine", "transformers"]) == 1
    said = capsys.readouterr().err
    assert re.search(words, said)
    assert "Shorten the conversation" not in said
