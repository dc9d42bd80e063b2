"""Conversations as people and clients write them: roles, fields, calls of tools, and sides that repeat each other."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from backend.data.examine import Dataset, load
from backend.data.files.rows import Source
from backend.data.options import DatasetOptions
from backend.data.samples import Message, Sample
from backend.errors import SpecError
from backend.options import parse
from tests.support.row_examples import jsonl, parquet

TALK = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
PLAIN = (Message("user", "q"), Message("assistant", "a"))
WEATHER = {"name": "weather", "arguments": {"city": "Rome", "days": 3}}


def opened(folder: Path, name: str, data: bytes, **given: Any) -> Dataset:
    (folder / name).write_bytes(data)
    source = Source(name=name, files=(folder / name,), split=None)
    return load(source, parse(DatasetOptions, {"allow_identical": True, **given}))


def sample(folder: Path, row: dict[str, Any], **given: Any) -> Sample:
    return next(opened(folder, "rows.jsonl", jsonl(row), **given).train())


def asked(*turns: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [TALK[0], *turns, {"role": "assistant", "content": "a"}]}


@pytest.mark.parametrize(
    "turns",
    [
        [{"role": "User", "content": "q"}, {"role": "ASSISTANT", "content": "a"}],
        [{"from": "human", "value": "q"}, {"from": "Gpt", "value": "a"}],
        [{"role": " human ", "content": "q"}, {"role": "ai", "content": "a"}],
        [{"from": "human", "content": "q"}, {"from": "gpt", "content": "a"}],
        [{"role": "user", "value": "q"}, {"role": "assistant", "value": "a"}],
        [TALK[0] | {"name": None}, TALK[1] | {"refusal": None, "audio": None, "function_call": None, "weight": 1}],
        [TALK[0], TALK[1] | {"annotations": [], "tool_calls": [], "reasoning_content": None}],
        [TALK[0] | {"content": [{"type": "text", "text": "q", "image_url": None}]}, TALK[1]],
        [TALK[0], TALK[1] | {"content": [{"type": "output_text", "text": "a"}]}],
        [TALK[0] | {"content": ["q"]}, TALK[1]],
    ],
)
def test_what_clients_write_without_meaning_anything_by_it_is_taken(tmp_path: Path, turns: list[Any]) -> None:
    assert sample(tmp_path, {"messages": turns}).messages == PLAIN


@pytest.mark.parametrize("first", [None, [], "", {}])
def test_a_column_is_what_its_first_filled_row_shows(tmp_path: Path, first: Any) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    rows = jsonl({"messages": first, "tools": first}, {"messages": TALK, "tools": json.dumps(tools)})
    data = opened(tmp_path, "rows.jsonl", rows, on_fault="drop")
    assert [(s.messages, json.loads(s.tools)) for s in data.train()] == [(PLAIN, tools)]


def test_a_developer_is_the_system_and_both_are_one(tmp_path: Path) -> None:
    first = [{"role": "system", "content": "s"}, {"role": "developer", "content": "d"}]
    assert sample(tmp_path, {"messages": [first[1], *TALK]}).messages[0] == Message("system", "d")
    assert sample(tmp_path, {"messages": [*first, *TALK]}).messages == (Message("system", "s\n\nd"), *PLAIN)


@pytest.mark.parametrize(
    "answer",
    [
        {"role": "assistant", "content": "a", "reasoning_content": "why"},
        {"role": "assistant", "content": "a", "reasoning": "why", "thinking": None},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "why"}, {"type": "text", "text": "a"}]},
    ],
)
def test_thoughts_in_a_field_of_their_own_are_kept(tmp_path: Path, answer: dict[str, Any]) -> None:
    found = sample(tmp_path, {"messages": [TALK[0], answer]}).messages[1]
    assert (found.content, found.fields) == ("a", {"reasoning_content": "why"})


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": WEATHER}]},
        {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "weather", "arguments":
         '{"city": "Rome", "days": 3}'}}]},
        {"role": "assistant", "content": "", "tool_calls": json.dumps([{"function": WEATHER}])},
        {"role": "assistant", "content": None, "function_call": WEATHER},
        {"from": "function_call", "value": json.dumps(WEATHER)},
    ],
)  # fmt: skip
def test_calls_of_tools_are_read_in_every_form(tmp_path: Path, turn: dict[str, Any]) -> None:
    result = {"role": "tool", "name": "weather", "content": "sunny", "tool_call_id": None}
    found = sample(tmp_path, asked(turn, result))
    [call] = found.messages[1].fields["tool_calls"]
    assert (call["type"], call["function"]) == ("function", WEATHER)
    assert found.messages[2] == Message("tool", "sunny", '{"name": "weather"}')


def test_calls_in_a_table_lose_the_nulls_that_its_columns_have(tmp_path: Path) -> None:
    calls = [{"function": {"name": "f", "arguments": {"x": 1}}}, {"function": {"name": "g", "arguments": {"y": "z"}}}]
    talk = [TALK[0], {"role": "assistant", "content": None, "tool_calls": calls}]
    data = parquet(pa.Table.from_pylist([{"messages": talk, "tools": json.dumps([{"name": "f"}])}] * 2))
    found = next(opened(tmp_path, "rows.parquet", data).train())
    arguments = [call["function"]["arguments"] for call in found.messages[1].fields["tool_calls"]]
    assert arguments == [{"x": 1}, {"y": "z"}]
    assert json.loads(found.tools) == [{"type": "function", "function": {"name": "f"}}]


@pytest.mark.parametrize("written", [False, True])
def test_tools_are_read_as_a_list_or_as_its_json(tmp_path: Path, written: bool) -> None:
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    found = opened(tmp_path, "r.jsonl", jsonl({"messages": TALK, "tools": json.dumps(tools) if written else tools}))
    assert json.loads(next(found.train()).tools) == tools
    assert found.examination.mapping
    assert found.examination.mapping.tools == "tools"
    hammers = opened(tmp_path, "r.jsonl", jsonl({"messages": TALK, "tools": "hammer, saw"}))
    assert next(hammers.train()).tools == ""


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (asked({"role": "assistant", "content": None, "tool_calls": [{"id": "x"}]}), "a tool call has no function"),
        ({"messages": TALK, "tools": [3]}, "the tools are no list of functions"),
        ({"messages": [*TALK, {"role": "tool", "content": "x"}]}, "ends with a message of tool"),
    ],
)
def test_tools_that_cannot_be_read_are_named(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        opened(tmp_path, "rows.jsonl", jsonl({"messages": TALK, "tools": [{"name": "f"}]}, row))


def test_arguments_that_nest_without_end_are_refused(tmp_path: Path) -> None:
    deep: Any = "x"
    for _ in range(200):
        deep = [deep]
    turn = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"x": deep}}}]}
    with pytest.raises(SpecError, match="nests deeper than"):
        opened(tmp_path, "rows.jsonl", jsonl(asked(turn)))


def test_lists_of_roles_and_contents_are_messages(tmp_path: Path) -> None:
    kind = pa.struct([("role", pa.list_(pa.string())), ("content", pa.list_(pa.string()))])
    column = pa.array([{"role": ["user", "assistant"], "content": ["q", f"a{i}"]} for i in range(2)], kind)
    read = opened(tmp_path, "rows.parquet", parquet(pa.table({"messages": column})))
    assert [s.messages[1].content for s in read.train()] == ["a0", "a1"]
    assert sample(tmp_path, {"messages": {"from": ["human", "gpt"], "value": ["q", "a"]}}).messages == PLAIN
    with pytest.raises(SpecError, match="is no list of messages"):
        opened(tmp_path, "r.jsonl", jsonl({"messages": {"role": ["user"], "content": ["q", "a"]}}),
               messages_column="messages")  # fmt: skip


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("q", TALK),
        ([TALK[0]], TALK),
        ([{"role": "system", "content": "s"}, TALK[0]], TALK),
        ([{"role": "system", "content": "s"}, TALK[0]], [{"role": "system", "content": "s"}, *TALK]),
        (" q\n", TALK),
        (TALK, [TALK[1]]),
        (TALK, "a"),
        ([TALK[0]], [TALK[1]]),
    ],
)
def test_a_pair_of_which_one_side_holds_both_reads_it_once(tmp_path: Path, prompt: Any, answer: Any) -> None:
    named = {"user_column": "prompt", "assistant_column": "chosen"}
    found = sample(tmp_path, {"prompt": prompt, "chosen": answer, "rejected": answer}, **named)
    talk = [turn for turn in found.messages if turn.role != "system"]
    assert [(turn.role, turn.content) for turn in talk] == [("user", "q"), ("assistant", "a")]
    assert found.prompt == len(found.messages) - 1


def test_several_turns_behind_the_prompt_are_all_learned(tmp_path: Path) -> None:
    named = {"user_column": "prompt", "assistant_column": "chosen"}
    found = sample(tmp_path, {"prompt": "q", "chosen": [*TALK, {"role": "user", "content": "q"}, TALK[1]]}, **named)
    assert ([turn.content for turn in found.messages], found.prompt) == (["q", "a", "q", "a"], 1)
    with pytest.raises(SpecError, match="name it in messages_column"):
        sample(tmp_path, {"prompt": "other", "chosen": TALK}, **named)


def test_texts_that_repeat_the_prompt_in_every_row_are_cut_and_said(tmp_path: Path) -> None:
    pairs = [{"prompt": f"Q{i}:", "completion": f"Q{i}: a{i}"} for i in range(3)]
    read = opened(tmp_path, "rows.jsonl", jsonl(*pairs))
    assert [s.messages[1].content for s in read.train()] == ["a0", "a1", "a2"]
    assert any("'completion' holds the text of 'prompt' in every row" in f.text for f in read.examination.findings)
    whole = opened(tmp_path, "rows.jsonl", jsonl(*[{"prompt": f"Q{i} a{i}", "completion": f"a{i}"} for i in range(3)]))
    assert [s.messages[0].content for s in whole.train()] == ["Q0", "Q1", "Q2"]
    some = opened(tmp_path, "rows.jsonl", jsonl(*pairs, {"prompt": "hello", "completion": "world"}))
    assert [s.messages[1].content for s in some.train()] == ["Q0: a0", "Q1: a1", "Q2: a2", "world"]
    echo = opened(tmp_path, "rows.jsonl", jsonl(*[{"prompt": f"x{i}", "completion": f"x{i}"} for i in range(3)]))
    assert [s.messages[1].content for s in echo.train()] == ["x0", "x1", "x2"]


@pytest.mark.parametrize("first", ["sep=;\n", '"sep=;"\r\n', "SEP=;\r\n"])
def test_a_first_line_that_names_the_delimiter_is_no_row(tmp_path: Path, first: str) -> None:
    data = (first + "prompt;completion\nq;a, b, c, d\nq2;a2, b\nq3;a3;x\n").encode()
    with pytest.raises(SpecError, match=r"row 3 has 3 fields, header has 2 \(line 5\)"):
        opened(tmp_path, "rows.csv", data)
    read = opened(tmp_path, "rows.csv", data, on_fault="drop")
    assert [s.messages[1].content for s in read.train()] == ["a, b, c, d", "a2, b"]
