"""What is learned of a conversation under the templates of many model families: the answer's words and its end."""

import json
from typing import Any

import pytest

from backend.data.samples import Message, Sample
from backend.finetune.answers import Ends, Talk
from backend.finetune.conversation import MOST_PARTS
from backend.finetune.marks import Marks
from backend.finetune.rendering import IGNORED, Rendered, Renderer, stops_of
from backend.models.chat_template import TemplateRefusal
from backend.models.tokens import any_of
from tests.support.tokenizers_made import CHATML, CHATML_TOKENS, FAMILIES, INST, family_tokenizer, make_tokenizer

CALL = {"tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome", "days": 3}}}]}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "Tells it", "parameters": {}}}]


def rendered(tokenizer: Any, *turns: tuple[str, ...], tools: list[Any] | None = None, loss: str = "auto") -> Rendered:
    messages = tuple(Message(*turn) for turn in turns)
    sample = Sample(1, messages, tools=json.dumps(tools) if tools else "")
    return Renderer(tokenizer, loss, 4000, stops_of(tokenizer, ())).render(sample)  # type: ignore[arg-type]


def learned(tokenizer: Any, row: Rendered) -> list[str]:
    runs: list[list[int]] = []
    for i, label in enumerate(row.labels):
        if label != IGNORED:
            if i == 0 or row.labels[i - 1] == IGNORED:
                runs.append([])
            runs[-1].append(label)
    return [tokenizer.decode(run) for run in runs]


def answers(tokenizer: Any, *turns: tuple[str, ...], **given: Any) -> list[str]:
    return learned(tokenizer, rendered(tokenizer, *turns, **given))


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_whose_words_stand_in_the_question_is_learned_with_its_end(family: str) -> None:
    tokenizer = family_tokenizer(family)
    row = rendered(tokenizer, ("user", "yes or no: is a yes a no?"), ("assistant", "yes"), ("user", "yes?"),
                   ("assistant", " no "))  # fmt: skip
    first, last = learned(tokenizer, row)
    assert first.rpartition("yes")[2].strip() in {*FAMILIES[family], "<|END_RESPONSE|><|END_OF_TURN_TOKEN|>"}
    assert last.endswith(FAMILIES[family][0])
    assert ("?" in first + last, row.ends) == (False, True)


@pytest.mark.parametrize("family", FAMILIES)
def test_thoughts_of_the_last_answer_are_learned_and_no_row_drops_out(family: str) -> None:
    tokenizer = family_tokenizer(family)
    talk = [("user", "q1"), ("assistant", "<think>\nt1\n</think>\n\na1"), ("user", "q2")]
    first, last = answers(tokenizer, *talk, ("assistant", "<think>\nt2\n</think>\n\na2"))
    assert "a1" in first
    assert last.index("t2") < last.index("a2")
    assert last.endswith(FAMILIES[family][0])
    assert "q" not in first + last
    [field] = answers(tokenizer, ("user", "q1"), ("assistant", "a1", json.dumps({"reasoning_content": "t1"})))
    assert field.index("t1") < field.index("a1")


def test_an_answer_behind_stripped_thoughts_goes_on_from_the_prompt_of_the_template() -> None:
    tokenizer = family_tokenizer("deepseek_r1_distill")
    row = rendered(tokenizer, ("user", "q"), ("assistant", "<think>\nt\n</think>\n\na"))
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "q"}], tokenize=False,
                                           add_generation_prompt=True)  # fmt: skip
    assert tokenizer.decode(row.input_ids) == prompt + "t\n</think>\n\na<｜end▁of▁sentence｜>"
    assert learned(tokenizer, row) == ["t\n</think>\n\na<｜end▁of▁sentence｜>"]


@pytest.mark.parametrize("system", [(), (("system", "Be [brief]."),)])
def test_a_template_that_trims_and_merges_the_system_prompt_is_followed(system: tuple[tuple[str, str], ...]) -> None:
    tokenizer = make_tokenizer(("</s>", "<s>"), INST, bos_token="<s>")
    talk = [*system, ("user", " brief? "), ("assistant", "\nbrief\n"), ("user", "x"), ("assistant", "y ")]
    assert [text.strip() for text in answers(tokenizer, *talk)] == ["brief </s>", "y </s>"]


def test_a_template_that_looks_at_how_contents_begin_is_followed() -> None:
    looks = "{% if m.role == 'user' and m.content.startswith('q') %}ask: {% endif %}"
    tokenizer = make_tokenizer(template=CHATML.replace("{{ m.content }}", looks + "{{ m.content }}"))
    row = rendered(tokenizer, ("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2"))
    assert learned(tokenizer, row) == ["a1<|im_end|>", "a2<|im_end|>"]
    assert tokenizer.decode(row.input_ids).count("ask: q") == 2


@pytest.mark.parametrize("family", ["qwen3", "llama3_1", "gptoss", "deepseekv3"])
def test_calls_of_tools_are_learned_whole_and_their_results_are_not(family: str) -> None:
    tokenizer = family_tokenizer(family)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"]})
    call, answer = answers(tokenizer, ("user", "weather?"), ("assistant", "", json.dumps(CALL)),
                           ("tool", "sunny", '{"name": "weather"}'), ("assistant", "It is."), tools=TOOLS)  # fmt: skip
    assert '{"city": "Rome", "days": 3}' in call
    assert "weather" in call
    assert call.endswith((*FAMILIES[family][:2], "<｜end▁of▁sentence｜>"))
    assert "It is." in answer
    assert "sunny" not in call + answer


def test_a_call_without_words_and_without_an_end_is_learned_as_far_as_it_goes() -> None:
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{% for call in m.tool_calls or [] %}"
        "<call>{{ call.function.name }}({{ call.function.arguments | tojson }})</call>{% endfor %}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    tokenizer = make_tokenizer(("</s>",), template)
    bare = {"tool_calls": [{"type": "function", "function": {"name": "now", "arguments": {}}}]}
    found = answers(tokenizer, ("user", "when?"), ("assistant", "", json.dumps(bare)), ("tool", "noon"),
                    ("assistant", "Noon."))  # fmt: skip
    assert found == [" <call>now({})</call>", " Noon.</s>"]


OPEN = {
    "nothing": ("{{ m.role }}: {{ m.content }}\n\n", "Assistant:", [" a1", " a2</s>"]),
    "the next message": ("<|{{ m.role }}|>\n{{ m.content }}", "<|assistant|>", ["\na1<|user|>", "\na2</s>"]),
    "all but the last": ("{{ m.role }}> {{ m.content }}{{ eos_token if not loop.last }} ", "assistant> ",
                         ["a1</s>", "a2</s>"]),
}  # fmt: skip


@pytest.mark.parametrize("closed_by", OPEN)
def test_an_answer_that_the_template_leaves_open_ends_with_the_models_own_end(closed_by: str) -> None:
    each, prompt, expected = OPEN[closed_by]
    template = "{% for m in messages %}" + each.replace("{{ m.role }}:", "{{ m.role.title() }}:") + "{% endfor %}"
    special = ("</s>", "<|user|>", "<|assistant|>")
    tokenizer = make_tokenizer(special, template + "{% if add_generation_prompt %}" + prompt + "{% endif %}")
    messages = tuple(
        Message(*turn) for turn in (("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2"))
    )
    stops = stops_of(tokenizer, tokenizer.convert_tokens_to_ids(["<|user|>"]))
    row = Renderer(tokenizer, "auto", 4000, stops).render(Sample(1, messages))
    assert learned(tokenizer, row) == expected
    assert (row.ends, row.input_ids[-1]) == (True, tokenizer.eos_token_id)
    assert Renderer(tokenizer, "all", 4000, stops).render(Sample(1, messages)).labels[-1] == tokenizer.eos_token_id
    cut = Renderer(tokenizer, "auto", len(row.input_ids) - 1, stops).render(Sample(1, messages))
    assert (cut.cut, cut.labels[-1] in stops) == (1, False)


@pytest.mark.parametrize("behind", ["\n", "</r>", "\n</r>\n"])
def test_an_end_that_does_not_follow_the_words_at_once_is_learned(behind: str) -> None:
    tokenizer = make_tokenizer(template=CHATML.replace("{{ m.content }}", "{{ m.content }}" + behind))
    assert answers(tokenizer, ("user", "q"), ("assistant", "a")) == [f"a{behind}<|im_end|>"]


@pytest.mark.parametrize("talk", [[], [("user", "q0"), ("assistant", "a0")]])
def test_a_system_prompt_that_is_written_before_the_last_question_alone_is_kept(talk: list[Any]) -> None:
    asks = "{% if loop.last and messages[0].role == 'system' %}{{ messages[0].content }}: {% endif %}{{ m.content }}"
    mistral = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] " + asks + "[/INST]"
        "{% elif m.role == 'assistant' %} {{ m.content | trim }}{{ eos_token }}{% endif %}{% endfor %}"
    )
    tokenizer = make_tokenizer(("</s>", "<s>"), mistral, bos_token="<s>")
    row = rendered(tokenizer, ("system", "Be brief"), *talk, ("user", "q1"), ("assistant", "a1"))
    before = "[INST] q0[/INST] a0</s>" if talk else ""
    assert tokenizer.decode(row.input_ids) == f"<s>{before}[INST] Be brief: q1[/INST] a1</s>"
    assert learned(tokenizer, row) == ([" a0</s>"] if talk else []) + [" a1</s>"]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("<r>{{ m.content }}</r>", "<r><think>\nt\n</think>\n\na</r>"),
        ("{{ ' ' + m.content | trim }}", " <think>\nt\n</think>\n\na"),
        ("{{ m.content }}{{ m.tool_calls }}", "<think>\nt\n</think>\n\na"),
    ],
)
def test_thoughts_in_a_field_that_a_template_does_not_know_stand_before_the_words(answer: str, expected: str) -> None:
    template = CHATML.replace(
        "{{ m.content }}", "{% if m.role == 'user' %}{{ m.content }}{% else %}" + answer + "{% endif %}"
    )
    thought = json.dumps({"reasoning_content": "t"})
    talk = [("user", "q"), ("assistant", "a", thought), ("user", "q"), ("assistant", "a", thought)]
    assert answers(make_tokenizer(template=template), *talk) == [f"{expected}<|im_end|>"] * 2


@pytest.mark.parametrize(
    "call",
    [
        "{{ f.arguments }}",
        "{{ f.arguments | string }}",
        "{{ f.name + ': ' + f.arguments }}",
        "{{ f.arguments | tojson }}",
    ],
)
def test_arguments_of_calls_are_json_however_a_template_wants_them(call: str) -> None:
    calls = (
        "{% for c in m.tool_calls or [] %}{% set f = c.function %}<call>{{ f.name }} " + call + "</call>{% endfor %}"
    )
    tokenizer = make_tokenizer(template=CHATML.replace("{{ m.content }}", "{{ m.content }}" + calls))
    [found] = answers(tokenizer, ("user", "weather?"), ("assistant", "Wait.", json.dumps(CALL)))
    assert found.startswith("Wait.<call>weather ")
    assert found.endswith('{"city": "Rome", "days": 3}</call><|im_end|>')
    alike = {"tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"it's": 1}}}]}
    assert answers(tokenizer, ("user", "q"), ("assistant", "", json.dumps(alike)))[0].count('{"it\'s": 1}') == 1
    twice = "{{ f.arguments }}{{ f.arguments.items() }}"
    tokenizer.chat_template = tokenizer.chat_template.replace(call, twice)
    with pytest.raises(TemplateRefusal, match="as Python does"):
        rendered(tokenizer, ("user", "weather?"), ("assistant", "", json.dumps(CALL)))


@pytest.mark.parametrize("family", ["qwen3", "qwen3_5_think", "deepseek_r1_distill", "gptoss", "llama3_1"])
@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("The tag <think> opens and </think> closes.", ["The tag <think> opens and </think> closes."]),
        ("<think>t</think> a <think>u</think> b", ["t", "a <think>u</think> b"]),
        ("t</think> a </think> b", ["t", "a </think> b"]),
        ("<think>t <think> u</think> a", ["u", "a"]),
    ],
)
def test_only_the_thoughts_that_an_answer_begins_with_are_thoughts(family: str, answer: str, words: list[str]) -> None:
    tokenizer = family_tokenizer(family)
    earlier, last = answers(tokenizer, ("user", "q"), ("assistant", answer), ("user", "q"), ("assistant", answer))
    assert all(part in last for part in words)
    assert words[-1] in earlier


@pytest.mark.parametrize(
    ("turns", "words"),
    [
        ([("user", "q"), ("assistant", "", json.dumps(CALL)), ("tool", "x"), ("assistant", "a")], "write tool calls"),
        ([("user", "q"), ("assistant", "a"), ("tool", "result"), ("assistant", "b")], "leaves out message 3, of tool"),
    ],
)
def test_a_template_that_loses_a_part_of_the_row_does_not_take_it(turns: list[Any], words: str) -> None:
    silent = CHATML.replace("{% for m in messages %}", "{% for m in messages if m.role != 'tool' %}")
    with pytest.raises(TemplateRefusal, match=words):
        rendered(make_tokenizer(template=silent), *turns)


def test_answers_of_no_weight_are_not_learned() -> None:
    talk = [("user", "q1"), ("assistant", "a1", '{"weight": 0}'), ("user", "q2"), ("assistant", "a2")]
    assert answers(make_tokenizer(), *talk) == ["a2<|im_end|>"]


def test_marks_that_stand_in_the_rows_themselves_are_not_used() -> None:
    odd = chr(0xF0000) + "icon" + chr(0xF0003)
    row = rendered(make_tokenizer(), ("user", odd), ("assistant", odd))
    assert learned(make_tokenizer(), row) == [f"{odd}<|im_end|>"]
    with pytest.raises(TemplateRefusal, match="private planes"):
        rendered(make_tokenizer(), ("user", odd), ("assistant", chr(0x100000)))


def test_a_row_of_many_turns_is_rendered_a_few_times() -> None:
    tokenizer, calls = make_tokenizer(), []
    apply = tokenizer.apply_chat_template
    renderer = Renderer(tokenizer, "auto", 10**9, stops_of(tokenizer, ()))
    tokenizer.apply_chat_template = lambda turns, **given: calls.append(len(turns)) or apply(turns, **given)
    turns = tuple(Message(role, f"{role} {i}") for i in range(1000) for role in ("user", "assistant"))
    assert renderer.render(Sample(1, turns)).labels.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 1000
    assert len(calls) <= 3
    calls.clear()
    marked = "{% if m.role == 'user' and m.content.startswith('user') %}!{% endif %}{{ m.content }}"
    tokenizer.chat_template = CHATML.replace("{{ m.content }}", marked)
    with pytest.raises(TemplateRefusal, match="rendered alone"):
        renderer.render(Sample(1, turns))
    assert len(calls) <= MOST_PARTS + 3


def test_marks_stand_inside_blanks_and_outside_the_tags_of_thoughts() -> None:
    marks = Marks(["text"])
    marked = marks.mark(" <think>\n why \n</think>\n\n words ", 3)
    assert marks.plain(marked) == " <think>\n why \n</think>\n\n words "
    text, places = marks.find(marked)
    assert [text[a.at : b.at] for a, b in zip(places[::2], places[1::2], strict=True)] == ["why", "words"]
    assert [(place.message, place.thought) for place in places[::2]] == [(3, True), (3, False)]
    assert marks.mark("why\n</think>\n\nwords", 0)[0] == marks.mark("<think>why</think>", 0).removeprefix("<think>")[0]


def test_the_token_that_begins_messages_ends_no_answer() -> None:
    marks = Marks([])
    written = "".join(f"<a>{marks.mark(word, i)}" for i, word in enumerate(("q", "yes", "q")))
    text, places = marks.find(written)
    talk = Talk(text, places, [Message("user", "q")] * 3, Ends(any_of([]), any_of((*CHATML_TOKENS, "<a>"))))
    assert [text[slice(*span)] for span in talk.spans([1], lambda i: "<a>", lambda i: "")] == ["yes"]
