"""Failures that raise no error: models that fail in each way beside an original that does not, and a right one."""

import json
import shutil
import string
from itertools import pairwise

import pytest

from backend import check as checking
from backend.check import CheckOptions, Tried, check
from backend.check.failures import counted, findings
from backend.check.prompts import CALLS, Prompt, prompts_of
from backend.check.reading import written
from backend.check.tool_calls import calls
from backend.models.chat_template import abilities
from backend.models.loading import load_tokenizer
from backend.progress import silent
from backend.settings import Settings
from tests.support.scripted_models import BROKEN, CALL, END, RIGHT, THINK, THOUGHT, scripted
from tests.support.typed import fails, succeeds

SHORT = CheckOptions(max_tokens=16)  # four times as many for a model that thinks
LETTERS = dict(pairwise([*string.ascii_letters, *string.digits, string.ascii_letters[0]]))

BROKEN_IN = {
    "thinking": ({THINK: "h", "h": "m", "m": "h"}, "does not close its thoughts within 64 tokens in 8 of 8 prompts"),
    "loop": ({THOUGHT: "O", "O": "K", "K": "O"}, "repeats itself for 64 tokens in 8 of 8 prompts"),
    "endless": (LETTERS | {THINK: THOUGHT, THOUGHT: "a"}, "does not end within 64 tokens in 8 of 8 prompts"),
    "empty": ({THOUGHT: END}, "answers nothing in 8 of 8 prompts"),
    "call": (
        {f"<|{name}|>": BROKEN[name] for name in CALL},
        "calls no tool in a way that can be parsed and fits the tool's schema in 3 of 3 prompts",
    ),
}


@pytest.fixture(scope="module")
def right(tmp_path_factory):
    return scripted(tmp_path_factory.mktemp("right") / "right", RIGHT)


@pytest.fixture
def served_in_place(monkeypatch):
    """Have the weights answer in this process, where an engine would."""

    def answers(tried, prompts, engine, most, settings, report):
        return "transformers", written(tried.folder, tried.tokenizer(), prompts, most, report)

    monkeypatch.setattr(checking, "_answers", answers)


def tried(folder, original, tmp_path):
    return check(Tried(folder, original=original), SHORT, Settings(data=tmp_path), silent())


@pytest.mark.parametrize("name", BROKEN_IN)
def test_what_fails_without_an_error_and_its_original_does_not_is_found(right, tmp_path, served_in_place, name):
    follows, words = BROKEN_IN[name]
    found = tried(scripted(tmp_path / "broken", RIGHT | follows), right, tmp_path)
    assert not found.passed
    [finding] = found.findings
    first = next(iter(CALLS)) if name == "call" else checking.PROMPTS[0]
    assert finding.startswith(f"It {words}, as in '{first}', where its original ")
    assert found.reason == finding
    assert finding in found.words


def test_an_end_that_generation_does_not_see_is_found(right, tmp_path, served_in_place):
    folder = scripted(tmp_path / "unseen", RIGHT | {END: "Ċ", "Ċ": "O"}, ends="<pad>")
    found = tried(folder, right, tmp_path)
    assert "writes the token that ends an answer and goes on in 8 of 8 prompts" in found.findings[0]
    assert "name that token in eos_token_id of generation_config.json" in found.findings[0]
    assert "in 3 of 3 prompts" in found.findings[1]


@pytest.mark.parametrize("name", BROKEN_IN)
def test_what_the_original_does_too_is_no_failure_of_the_result(tmp_path, served_in_place, name):
    follows, _ = BROKEN_IN[name]
    weak = scripted(tmp_path / "weak", RIGHT | follows)
    found = tried(weak, weak, tmp_path)
    assert found.passed
    assert found.findings == ()
    count = 3 if name == "call" else 8
    assert f"Of 11 answers of at most 64 tokens, {count} are without an end" in found.silent
    assert found.silent.endswith(f"of its original's {count}.")


def test_without_its_original_nothing_is_called_broken_and_that_is_said(tmp_path, served_in_place):
    folder = scripted(tmp_path / "alone", RIGHT | BROKEN_IN["loop"][0])
    found = tried(folder, None, tmp_path)
    assert found.passed
    assert "8 are without an end" in found.silent
    assert found.silent.endswith("its original was not at hand to compare: name it as the reference.")


def test_an_original_that_cannot_be_asked_is_no_fault_of_the_result(right, tmp_path, served_in_place):
    folder = scripted(tmp_path / "alone", RIGHT | BROKEN_IN["loop"][0])
    damaged = tmp_path / "damaged"
    shutil.copytree(right, damaged)
    (damaged / "tokenizer.json").write_text("{}")
    found = tried(folder, damaged, tmp_path)
    assert found.passed
    assert "its original was not at hand" in found.silent


def test_a_model_that_is_right_passes_and_its_original_is_not_asked(right, tmp_path, served_in_place):
    found = tried(right, tmp_path / "nowhere", tmp_path)
    assert found.passed
    assert found.silent.startswith("Of 11 answers of at most 64 tokens, none is without an end")
    assert found.prompts == 11
    assert found.silent in found.words


@pytest.mark.real
def test_the_engine_that_serves_a_result_is_asked_for_thoughts_ends_and_calls(right, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WEIGHTSMITH_DATA", str(tmp_path / "data"))
    engine = ["--engine", "transformers", "--max-tokens", "16"]
    passed = succeeds(capsys, "check", str(right), "--reference", str(right), *engine)
    assert (passed["passed"], passed["prompts"]) == (True, 11)
    assert "none is without an end" in passed["silent"]
    broken = scripted(tmp_path / "broken", RIGHT | BROKEN_IN["call"][0] | {END: "Ċ", "Ċ": "O"}, ends="<pad>")
    said = fails(capsys, "check", str(broken), "--reference", str(right), *engine)
    assert "It writes the token that ends an answer and goes on in 8 of 8 prompts" in said


def prompts(count, tool=None):
    return [Prompt(str(i), "", [], {}, tool) for i in range(count)]


def test_near_ties_that_fall_otherwise_are_no_finding():
    asked, none, loop = prompts(8), [None] * 8, "loop"
    assert findings(asked, [loop, loop, *none[2:]], none, 9) == ()
    assert len(findings(asked, [loop, loop, loop, *none[3:]], none, 9)) == 1
    assert findings(asked, [loop, loop, loop, *none[3:]], [*none[:7], loop], 9) == ()
    assert findings(asked, [loop] * 8, ["endless"] * 8, 9) == ()


def test_each_way_to_fail_is_a_sentence_of_its_own_that_says_what_to_do():
    asked = prompts(4) + prompts(3, {"function": {}})
    said = findings(asked, ["empty", "loop", "loop", None, "call", None, None], [None] * 7, 99)
    assert [sentence.split(" in ")[0] for sentence in said] == [
        "It answers nothing",
        "It repeats itself for 99 tokens",
        "It calls no tool",
    ]
    assert "in 2 of 4 prompts, as in '1', where its original ends: " in said[1]
    assert all(sentence.count(". ") == 0 and sentence.endswith(".") for sentence in said)


def test_what_answers_show_is_counted_beside_the_original():
    assert counted([None, None], None, 9).startswith("Of 2 answers of at most 9 tokens, none is ")
    assert counted(["loop", None], [None, None], 9).endswith("; of its original's none.")


WEATHER = CALLS["What is the weather like in Paris right now?"]
SHOP = CALLS["Find desk lamps in the shop that cost less than 40 euros."]


@pytest.mark.parametrize(
    ("tool", "answer"),
    [
        (WEATHER, CALL["get_weather"]),
        (WEATHER, '[{"name": "get_weather", "parameters": {"city": "Paris"}}]'),
        (WEATHER, '{"function": {"name": "get_weather", "arguments": "{\\"city\\": \\"Paris\\"}"}}'),
        (WEATHER, '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}'),
        (WEATHER, '<｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{"city": "Paris"}\n```'),
        (WEATHER, '<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city": "Paris"}'),
        (WEATHER, '<|tool_call>call:get_weather{city:<|"|>Paris<|"|>}<tool_call|>'),
        (WEATHER, "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>"),
        (WEATHER, '<invoke name="get_weather"><parameter name="city">Paris</parameter></invoke>'),
        (WEATHER, "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n</tool_call>"),
        (WEATHER, "<|tool_call_start|>[get_weather(city='Paris')]<|tool_call_end|>"),
        (SHOP, "[search_products(query='desk lamps', max_price=40)]"),
        (SHOP, "<function=search_products><parameter=query>lamps</parameter><parameter=max_price>40</parameter>"),
    ],
)  # fmt: skip
def test_calls_are_found_in_all_the_ways_in_which_models_write_them(tool, answer):
    assert calls(answer, tool)
    assert not calls(answer.replace("get_weather", "get_climate").replace("search_products", "find"), tool)
    assert not calls(answer.replace("city", "place").replace("query", "words"), tool)


@pytest.mark.parametrize(
    "answer",
    [
        BROKEN["get_weather"],
        "I would call get_weather for you.",
        '{"name": "get_weather", "arguments": {"city": 7}}',
        '{"name": "get_weather", "arguments": {"city": ""}}',
        '{"name": "get_weather", "arguments": {}}',
        '{"name": "get_weather", "arguments": {"city": "Paris", "day": "today"}}',
        "get_weather(city=",
        "get_weather" + "{" * 5000,
    ],
)
def test_what_is_no_call_or_does_not_fit_the_schema_is_none(answer):
    assert not calls(answer, WEATHER)


def test_a_chat_template_says_what_it_is_made_for(right, tiny_model, tiny_bare_model):
    assert abilities(load_tokenizer(right)) == (True, True, True)
    assert abilities(load_tokenizer(tiny_model)) == (True, False, False)
    assert abilities(load_tokenizer(tiny_bare_model)) == (False, False, False)


def test_tools_are_offered_where_the_template_takes_them_as_the_text_that_it_writes(right, tiny_model):
    asked = prompts_of(load_tokenizer(right), True)
    assert [prompt.words for prompt in asked[8:]] == [*CALLS]
    assert json.dumps(WEATHER) in asked[8].asked["prompt"]
    assert [prompt.tool for prompt in prompts_of(load_tokenizer(tiny_model), True)] == [None] * 8
