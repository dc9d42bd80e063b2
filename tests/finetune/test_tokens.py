"""Tokens that steer a model: typed ones are letters, written ones stay, and a text begins and ends once."""

import json
from typing import Any

import pytest
from tokenizers import AddedToken
from tokenizers.processors import TemplateProcessing

from backend.data.samples import Message, Sample
from backend.finetune.chat_templates import CHAT_TEMPLATES, give_template
from backend.finetune.rendering import IGNORED, Rendered, Renderer, stops_of
from backend.models.tokens import around, control_tokens
from backend.quantize.calibrated.windows import windows_of
from tests.support.tokenizers_made import CHATML, family_tokenizer, make_tokenizer


def rendered(tokenizer: Any, sample: Sample, loss: str = "auto") -> Rendered:
    return Renderer(tokenizer, loss, 4000, stops_of(tokenizer, ())).render(sample)  # type: ignore[arg-type]


def talk(question: str, answer: str = "a", tools: str = "") -> Sample:
    return Sample(1, (Message("user", question), Message("assistant", answer)), tools=tools)


def wrapped(tokenizer: Any, single: str) -> Any:
    """Have a tokenizer put tokens around texts."""
    names = [part for part in single.split() if part != "$A"]
    special = [(name, tokenizer.convert_tokens_to_ids(name)) for name in names]
    tokenizer._tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=special)
    return tokenizer


@pytest.mark.parametrize("where", ["special", "added", "template", "built"])
def test_typed_control_tokens_are_letters_wherever_the_tokenizer_names_them(where: str) -> None:
    if where == "special":
        tokenizer, token = family_tokenizer("llama3_1"), "<|start_header_id|>"
    elif where == "added":
        tokenizer, token = make_tokenizer(), "<|unused_7|>"
        tokenizer.add_tokens([AddedToken(token, special=True)])
    elif where == "template":
        tokenizer, token = family_tokenizer("qwen3"), "<tool_call>"
        tokenizer.add_tokens([token])
    else:
        built = CHATML.replace("<|im_start|>{{ m.role }}", "{{ '<|' + m.role + '|>' }}")
        tokenizer, token = make_tokenizer(("<|im_end|>",), built), "<|user|>"
        tokenizer.add_tokens([token])
    live = tokenizer.convert_tokens_to_ids(token)
    plain = rendered(tokenizer, talk("say it")).input_ids.count(live)
    row = rendered(tokenizer, talk(f"say {token} it"))
    assert row.input_ids.count(live) == plain
    assert f"say {token} it" in tokenizer.decode(row.input_ids)


@pytest.mark.parametrize("special", [True, False])
def test_a_token_that_stands_around_every_message_is_letters_in_an_answer_too(special: bool) -> None:
    tokenizer = make_tokenizer(("<|im_end|>",))
    tokenizer.add_tokens([AddedToken("<|im_start|>", special=special)])
    row = rendered(tokenizer, talk("q", "write <|im_start|>user to begin"))
    assert row.input_ids.count(tokenizer.convert_tokens_to_ids("<|im_start|>")) == 2
    assert "write <|im_start|>user to begin" in tokenizer.decode(row.input_ids)


@pytest.mark.parametrize("words", ["{{ m.content | lower }}", "{{ m.content[0].text }}", "{{ m.role }}"])
def test_what_begins_a_conversation_ends_no_answer_where_the_template_rewrites_words(words: str) -> None:
    tokenizer = make_tokenizer(template=CHATML.replace("{{ m.content }}", words), eos_token="<|endoftext|>")
    assert tokenizer.convert_tokens_to_ids("<|im_start|>") not in stops_of(tokenizer, ())


def test_an_added_word_that_steers_nothing_stays_one_token() -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["aspirin", "\n\n", "user"])
    assert not control_tokens(tokenizer).markup
    row = rendered(tokenizer, talk("take aspirin\n\nuser"))
    assert tokenizer.convert_tokens_to_ids("aspirin") in row.input_ids


def test_typed_tokens_are_letters_in_tools_results_and_calls_too() -> None:
    tokenizer = family_tokenizer("qwen3")
    end = "<|im_end|>"
    call = {"tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": f"a{end}"}}}]}
    turns = (Message("user", "q"), Message("assistant", "", json.dumps(call)), Message("tool", f"r{end}"),
             Message("assistant", "a"))  # fmt: skip
    tools = json.dumps([{"type": "function", "function": {"name": "f", "description": f"d{end}"}}])
    row = rendered(tokenizer, Sample(1, turns, tools=tools))
    assert row.input_ids.count(tokenizer.eos_token_id) == 5  # system, user, call, result, answer
    assert tokenizer.decode(row.input_ids).count(end) == 8


def test_thoughts_and_calls_that_an_answer_writes_as_text_stay_tokens() -> None:
    tokenizer = make_tokenizer(template=CHATML + "{# <tool_call> #}")
    tokenizer.add_tokens([AddedToken("<think>", special=True), AddedToken("</think>", special=True), "<tool_call>"])
    row = rendered(tokenizer, talk("<think> q <tool_call>", "<think>\nt\n</think>\n\n<tool_call>"))
    marks = tokenizer.convert_tokens_to_ids(["<think>", "</think>", "<tool_call>"])
    assert [row.input_ids.count(mark) for mark in marks] == [1, 1, 1]


@pytest.mark.parametrize("typed", ["a<|im_end|>", "a <|im_end|>\n", "a<|im_end|><|im_end|>"])
def test_an_end_that_an_answer_brings_is_neither_spelled_nor_written_twice(typed: str) -> None:
    tokenizer = make_tokenizer()
    row = rendered(tokenizer, talk("q", typed))
    assert tokenizer.decode(row.input_ids) == tokenizer.decode(rendered(tokenizer, talk("q")).input_ids)
    endless = make_tokenizer(template="{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    found = rendered(endless, talk("q", "a<|endoftext|>"))
    assert (found.labels.count(endless.eos_token_id), found.ends) == (1, True)


@pytest.mark.parametrize(
    "text", ["<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n", "a<|im_end|>b"]
)
def test_a_text_that_is_rendered_already_keeps_its_tokens(text: str) -> None:
    tokenizer = make_tokenizer(eos_token="<|im_end|>")
    row = rendered(tokenizer, Sample(1, text=text))
    ids = tokenizer(text)["input_ids"]
    assert row.input_ids == row.labels
    assert row.input_ids == ids + ([tokenizer.eos_token_id] if text.endswith("b") else [])
    assert row.ends


@pytest.mark.parametrize("around_it", ["$A", "<s> $A", "$A </s>", "<s> $A </s>"])
@pytest.mark.parametrize("text", ["words", "<s>words", "words</s>", "<s>words</s>"])
def test_a_text_begins_and_ends_once_and_its_end_is_learned(around_it: str, text: str) -> None:
    tokenizer = wrapped(make_tokenizer(("</s>", "<s>"), None, bos_token="<s>", pad_token="</s>"), around_it)
    row = rendered(tokenizer, Sample(1, text=text))
    bos, eos = tokenizer.convert_tokens_to_ids(["<s>", "</s>"])
    assert row.input_ids.count(bos) == int("<s>" in around_it + text)
    assert row.input_ids.count(eos) == 1
    assert row.labels[-1] == eos
    assert IGNORED not in row.labels[1:]


@pytest.mark.parametrize("single", ["$A", "<s> $A", "<s> $A </s>"])
def test_a_template_given_to_a_base_model_begins_as_its_tokenizer_does(single: str) -> None:
    for name in CHAT_TEMPLATES:
        tokenizer = wrapped(make_tokenizer(("</s>", "<s>"), None, bos_token="<s>"), single)
        give_template(tokenizer, name, "base")
        row = rendered(tokenizer, talk("q"))
        begins = row.input_ids[0] == tokenizer.bos_token_id
        assert (begins, row.input_ids.count(tokenizer.bos_token_id)) == ("<s>" in single, int("<s>" in single))
        learned = tokenizer.decode([label for label in row.labels if label != IGNORED]).strip()
        assert (learned[0], learned[-4:]) == ("a", "</s>")


def test_windows_of_rendered_rows_begin_once() -> None:
    tokenizer = wrapped(make_tokenizer(("</s>", "<s>"), "{{ bos_token }}" + CHATML, bos_token="<s>"), "<s> $A")
    ids = rendered(tokenizer, talk("what is the question"), "all").input_ids
    windows = windows_of("rows", [ids] * 4, tokenizer, 4, 16).ids
    assert around(tokenizer).before == [tokenizer.bos_token_id]
    assert all((window == tokenizer.bos_token_id).sum() == 1 for window in windows)
