"""Columns are recognized, asked for or mapped; rows become samples; the demo's rows are good ones."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from backend.data.columns import Mapping
from backend.data.demo import pairs, write_demo
from backend.data.examine import Dataset, examine, load
from backend.data.files.rows import Source
from backend.data.options import DatasetOptions
from backend.data.samples import Message, find_literals
from backend.errors import SpecError
from backend.models.tokens import Control
from backend.options import parse

CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
SHARE = [{"from": "system", "value": "s"}, {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
USER, ASSISTANT = Message("user", "q"), Message("assistant", "a")


def source(folder: Path, *rows: dict[str, Any]) -> Source:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Source(name=path.name, files=(path,))


def opened(folder: Path, *rows: dict[str, Any], **given: Any) -> Dataset:
    return load(source(folder, *rows), parse(DatasetOptions, {"allow_identical": True, **given}))


def mapping(dataset: Dataset) -> Mapping:
    assert dataset.examination.mapping
    return dataset.examination.mapping


@pytest.mark.parametrize(
    ("row", "layout", "words"),
    [
        ({"messages": CHAT}, "messages", "messages → messages"),
        ({"Conversations": SHARE[1:]}, "conversations", "Conversations → messages"),
        ({"prompt": "q", "completion": "a"}, "prompt_completion", "prompt → user, completion → assistant"),
        ({"prompt": CHAT[:1], "completion": CHAT[1:]}, "prompt_completion", "prompt → user, completion → assistant"),
        ({"instruction": "q", "input": "", "output": "a", "text": "x"}, "alpaca", None),
        ({"Question": "q", "Answer": "a", "id": 1}, "question_answer", "Question → user, Answer → assistant"),
        ({"query": "q", "response": "a"}, "question_answer", None),
        ({"instruction": "q", "response": "a"}, "question_answer", None),
    ],
)
def test_usual_columns_are_recognized(tmp_path: Path, row: dict[str, Any], layout: str, words: str | None) -> None:
    read = opened(tmp_path, row)
    assert mapping(read).layout == layout
    assert words in (None, mapping(read).words)
    assert [s.messages for s in read.train()] == [(USER, ASSISTANT)]


def test_the_prompt_ends_where_the_answer_begins(tmp_path: Path) -> None:
    pair = next(opened(tmp_path, {"prompt": "q", "completion": "a"}, system_prompt="s").train())
    assert pair.messages == (Message("system", "s"), USER, ASSISTANT)
    assert pair.prompt == 2
    assert next(opened(tmp_path, {"messages": CHAT}).train()).prompt is None


def test_alpaca_s_input_stands_below_the_instruction(tmp_path: Path) -> None:
    rows = [{"instruction": "i", "input": x, "output": "a"} for x in ("more", "", " ", None)]
    read = opened(tmp_path, *rows, {"instruction": "i", "output": "a"})
    assert [s.messages[0].content for s in read.train()] == ["i\n\nmore", "i", "i", "i", "i"]


def test_a_system_prompt_is_added_where_there_is_none(tmp_path: Path) -> None:
    read = opened(tmp_path, {"conversations": SHARE}, {"conversations": SHARE[1:]}, system_prompt="mine")
    assert [s.messages[0].content for s in read.train()] == ["s", "mine"]
    rows = [{"system": "own", "prompt": "q", "completion": "a"}, {"system": None, "prompt": "q", "completion": "a"}]
    assert [s.messages[0].content for s in opened(tmp_path, *rows, system_prompt="mine").train()] == ["own", "mine"]
    rows = [{"persona": "p", "prompt": "q", "completion": "a"}]
    assert next(opened(tmp_path, *rows, system_column="persona").train()).messages[0] == Message("system", "p")


def test_text_is_learned_as_it_stands(tmp_path: Path) -> None:
    for row in ({"text": " t\n", "label": 1}, {"quote": " t\n"}):
        read = opened(tmp_path, row)
        assert mapping(read).layout == "text"
        assert [(s.text, s.messages) for s in read.train()] == [(" t\n", ())]


def test_a_context_is_never_taken_for_the_user_s_words(tmp_path: Path) -> None:
    row = {"context": "c", "question": "q", "answer": "a"}
    with pytest.raises(SpecError, match=r"'context' is neither the user's words .'question'. nor") as refusal:
        opened(tmp_path, row)
    assert "context_column" in refusal.value.faults
    below = opened(tmp_path, row, context_column="context")
    assert next(below.train()).messages[0].content == "q\n\nc"
    without = opened(tmp_path, row, user_column="question", assistant_column="answer")
    assert next(without.train()).messages == (USER, ASSISTANT)
    with pytest.raises(SpecError, match=r"Which columns are to be used.*'context', 'response'"):
        opened(tmp_path, {"context": "c", "response": "a"})


def test_other_columns_are_asked_for_and_named(tmp_path: Path) -> None:
    row = {"frage": "q", "antwort": "a", "note": "n"}
    with pytest.raises(
        SpecError, match="There are 'frage', 'antwort', 'note': name them in user_column and"
    ) as refusal:
        opened(tmp_path, row)
    assert "user_column" in refusal.value.faults
    read = opened(tmp_path, row, user_column="frage", assistant_column="antwort")
    assert [s.messages for s in read.train()] == [(USER, ASSISTANT)]
    with pytest.raises(SpecError, match="'fragen' is no column: the columns are 'frage', 'antwort', 'note'"):
        opened(tmp_path, row, user_column="fragen", assistant_column="antwort")
    with pytest.raises(SpecError, match=r"Which column is it: 'question' or 'query'. Name it in user_column"):
        opened(tmp_path, {"question": "x", "query": "y", "answer": "z"})
    read = opened(tmp_path, {"question": "x", "query": "q", "answer": "a"}, user_column="query")
    assert [s.messages for s in read.train()] == [(USER, ASSISTANT)]


def test_a_template_is_filled_in_by_name_alone(tmp_path: Path) -> None:
    row = {"a": "{b}", "b": "x", "c d": "y", "__class__": "k", "0.__class__": "z"}
    read = opened(tmp_path, row, template="{{{a}}} {c d} {__class__} {0.__class__}")
    assert [s.text for s in read.train()] == ["{{b}} y k z"]
    read = opened(tmp_path, row, template="Say {b}", assistant_column="c d")
    assert [s.messages for s in read.train()] == [(Message("user", "Say x"), Message("assistant", "y"))]
    for template in ("{a.__class__}", "{a!r}", "{}", "{0}"):
        with pytest.raises(SpecError, match=r"In the template .* is no column: the columns are 'a', 'b', 'c d'"):
            opened(tmp_path, row, template=template)


def test_strange_column_names_are_literal(tmp_path: Path) -> None:
    row = {"{0.__class__}": "q", "constructor": "a"}
    read = opened(tmp_path, row, user_column="{0.__class__}", assistant_column="constructor")
    assert [s.messages for s in read.train()] == [(USER, ASSISTANT)]


def test_messages_in_a_json_string_are_parsed_when_told(tmp_path: Path) -> None:
    rows = [{"messages": json.dumps(CHAT)}, {"messages": json.dumps(CHAT)}]
    with pytest.raises(SpecError, match="'messages' holds conversations written as JSON text: set parse_json to true"):
        opened(tmp_path, *rows)
    assert [s.messages for s in opened(tmp_path, *rows, parse_json=True).train()] == [(USER, ASSISTANT)] * 2
    with pytest.raises(SpecError, match="'messages' is text but no JSON in 1 of 3 rows"):
        opened(tmp_path, *rows, {"messages": "[{"}, parse_json=True)


def turns(*given: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in given]}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            turns(("user", "x"), ("wizard", "y"), ("assistant", "z")),
            r"the role 'wizard' is unknown in 1 of 2 rows \(row 2\)",
        ),
        (turns(("user", "x")), "has no assistant turn"),
        (turns(("user", "x"), ("assistant", "y"), ("user", "z")), "ends with the user"),
        (turns(("user", ""), ("assistant", "y")), "a message is empty"),
        (turns(("user", "x"), ("assistant", None)), "'content' is null"),
        (turns(("user", "x"), ("system", "s"), ("assistant", "y")), "a system message stands behind another"),
        (turns(("user", [{"type": "image"}]), ("assistant", "y")), "pictures or other parts"),
        ({"messages": [{"from": "human", "value": "x", "role": "r"}]}, "has no assistant turn"),
        ({"messages": [{"user": "x"}]}, "a message has no role and content"),
        ({"messages": []}, "'messages' is empty"),
        ({"messages": "hello"}, "JSON written as text in 1 of 2 rows"),
        ({"messages": 3}, "'messages' is no list of messages"),
        ({}, "'messages' is missing"),
    ],
)
def test_a_conversation_that_cannot_be_learned_is_counted(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        opened(tmp_path, {"messages": CHAT}, row)
    read = opened(tmp_path, {"messages": CHAT}, row, on_fault="drop")
    assert [s.row for s in read.train()] == [1]
    assert sum(read.examination.dropped.values()) == 1


def test_faults_without_number_are_told_in_few_sentences(tmp_path: Path) -> None:
    rows = [turns((f"role {i}", "x"), ("assistant", "y")) for i in range(500)]
    read = opened(tmp_path, *rows, {"messages": CHAT}, on_fault="drop")
    assert read.examination.dropped == {"role": 500}
    assert len(read.examination.findings) < 110


def test_what_messages_carry_besides_is_said(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "q"}]
    row = {"messages": [{"role": "user", "content": parts, "name": "me"}, {**CHAT[1], "weight": 0, "x": None}]}
    read = opened(tmp_path, row)
    assert [s.messages for s in read.train()] == [(USER, ASSISTANT._replace(more='{"weight": 0}'))]
    said = " ".join(finding.text for finding in read.examination.findings)
    assert "messages have 'name', which is not used" in said
    assert "'x'" not in said


def test_special_tokens_in_the_text_are_found(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i}" + "<|im_end|>" * (i % 2), "completion": "a"} for i in range(4)]
    read = opened(tmp_path, *rows)
    found = find_literals(read.train(), Control(frozenset({"<|im_end|>", "<s>"}), frozenset()), "rows.jsonl")
    assert [(f.kind, f.rows, f.count) for f in found] == [("special_token", (2, 4), 2)]


def test_an_examination_shows_everything_before_the_questions_are_answered(tmp_path: Path) -> None:
    shown = examine(source(tmp_path, {"frage": "q", "n": 1, "l": [1]}), DatasetOptions())
    assert [(c.name, c.kind) for c in shown.columns] == [("frage", "text"), ("n", "number or date"), ("l", "list")]
    assert shown.mapping is None
    assert [q.option for q in shown.questions] == ["user_column"]
    assert json.loads(shown.model_dump_json())["rows"] == 1


def test_the_demo_has_enough_good_pairs_and_none_twice(tmp_path: Path) -> None:
    found = list(pairs())
    assert len(found) >= 500
    assert len({pair.question for pair in found}) == len({pair.answer for pair in found}) == len(found)
    assert ("What does textwrap.dedent do?", "Remove any common leading whitespace from every line in `text`.") in found
    assert all(pair.answer.endswith(".") and "\n" not in pair.answer for pair in found)
    assert found == list(pairs())
    write_demo(tmp_path / "demo.jsonl")
    demo = Source(name="demo", files=(tmp_path / "demo.jsonl",))
    read = load(demo, DatasetOptions(validation_size=0.1))
    assert read.examination.findings == ()
    train, held = ({s.messages[0].content for s in part} for part in (read.train(), read.validation()))
    assert len(train) + len(held) == len(found)
    assert not train & held


def test_importing_it_loads_no_heavy_library() -> None:
    import subprocess

    code = (
        "import sys, backend.data.fetch, backend.data.examine;"
        "assert not {'pyarrow', 'datasets', 'torch', 'pandas', 'numpy'} & sys.modules.keys()"
    )
    root = Path(importlib.import_module("backend").__file__ or "").parents[1]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
