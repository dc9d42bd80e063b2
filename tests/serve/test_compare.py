"""Comparing models: where answers differ, files of questions, and real servers that answer the same question."""

import contextlib
import csv
import io
import json
import weakref
from collections import deque
from pathlib import Path

import pytest

from backend.__main__ import main
from backend.errors import JobError
from backend.serve import compare as comparing
from backend.serve.chat import Answer, ChatOptions
from backend.serve.compare import MAX_PROMPTS, PROMPT, Reply, as_csv, batch, differences, read_prompts
from backend.serve.engines import ENGINES
from tests.support.steps import steps
from ui.compare import board, standings


def test_what_differs_is_marked_by_words():
    assert differences("The sky is blue.", "The sky is blue.") == [("The sky is blue.", False)]
    assert differences("The sky is blue.", "The sea is blue!") == [
        ("The ", False), ("sea", True), (" is blue", False), ("!", True),
    ]  # fmt: skip
    assert differences("", "New.") == [("New.", True)]
    assert "".join(text for text, _ in differences("a b c", "c  b\na")) == "c  b\na"


@pytest.mark.parametrize(
    "kind", ["the same words", "other words", "turned round", "one word", "blanks", "a long insert"]
)
def test_the_steps_of_comparing_grow_with_the_answers_and_no_faster(kind):
    def texts(count):
        words = [f"w{i}" for i in range(count)]
        other = {
            "the same words": words, "other words": [f"v{i}" for i in range(count)], "turned round": words[::-1],
            "one word": ["a"] * count, "blanks": [""] * count,
            "a long insert": [*words[:9], *["b"] * count, *words[9:]],
        }[kind]  # fmt: skip
        return " ".join(words), " ".join(other)

    once, twice = (steps(lambda count=count: differences(*texts(count)))[0] for count in (2000, 4000))
    assert twice < 2.3 * once
    assert once < 400 * 2000
    assert "".join(text for text, _ in differences(*texts(300))) == texts(300)[1]


def test_what_differs_is_marked_among_words_that_repeat():
    first = "the cat and the dog and the bird " * 30
    other = first.replace("dog", "fox", 1)
    assert [text for text, differs in differences(first, other) if differs] == ["fox"]


def test_an_answer_is_marked_when_it_has_ended():
    answers = {"a": Reply(answer=Answer(text="Paris")), "b": Reply(answer=Answer(text="Rome"), growing=True)}
    assert "<mark>" not in board(answers, hidden=False)
    ended = answers | {"b": answers["b"].model_copy(update={"growing": False})}
    assert "<mark>Rome</mark>" in board(ended, hidden=False)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no questions"),
        (b"\n \n", "no questions"),
        (b"\xff\xfe\x00", "no text in UTF-8"),
        (b"x\n" * (MAX_PROMPTS + 1), f"has {MAX_PROMPTS + 1} questions"),
        (b"x" * 1_000_001, "more than 1 MB"),
    ],
)
def test_a_file_of_questions_that_will_not_do_says_why(tmp_path, content, words):
    file = tmp_path / "questions.txt"
    file.write_bytes(content)
    with pytest.raises(JobError, match=words):
        read_prompts(file)


def test_a_table_comes_back_from_csv_as_it_was():
    rows = [
        {"prompt": 'What is "a, b"?', "nf4": "line\nline", "gptq": "1+1=2"},
        {"prompt": "x", "nf4": "", "gptq": "ü"},
    ]
    assert list(csv.DictReader(io.StringIO(as_csv(rows)))) == rows


@pytest.mark.parametrize(
    "cell",
    ["=1+1", " =1+1", "\u200b=1+1", "\ufeff@SUM(A1)", "+1", "-2+3", "\t1", "\r1", "\n=1", "＝1+1", "﹣1", "\xa0+1"],
)
def test_a_cell_that_a_spreadsheet_would_reckon_with_is_text(cell):
    table = io.StringIO(as_csv([{cell: cell, "model": "said"}]), newline="")
    assert list(csv.reader(table)) == [[f"'{cell}", "model"], [f"'{cell}", "said"]]


def test_the_board_shows_text_as_text_and_hides_names_until_the_vote():
    replies = {
        "tiny · NF4": Reply(answer=Answer(text="<b>Paris</b>", tokens_per_second=9.5), engine="transformers"),
        "tiny · GPTQ": Reply(answer=Answer(text="<b>Rome</b>"), error=None),
        "tiny · AWQ": Reply(error="No memory <left>."),
    }
    shown = board(replies, hidden=False)
    assert "&lt;b&gt;Paris&lt;/b&gt;" in shown
    assert "<mark>Rome</mark>" in shown
    assert "9.5 tokens/s" in shown
    assert "No memory &lt;left&gt;." in shown
    hidden = board(replies, hidden=True)
    assert "<h3>A</h3>" in hidden
    assert not any(word in hidden for word in ("NF4", "GPTQ", "tokens/s"))
    assert standings({"nf4": [1, 3], "gptq": [2, 3]}).index("gptq") < standings({"nf4": [1, 3], "gptq": [2, 3]}).index(
        "nf4"
    )


class Answering:
    """Servers of models that are ready, but for one that ends before its turn.

    Args:
        failing: Its folder.
    """

    def __init__(self, failing):
        self.failing = failing

    def open(self, folder):
        pass

    def wait(self, folder, seconds):
        if folder == self.failing:
            raise JobError("It was killed.")
        return folder

    def in_use(self, folder):
        return contextlib.nullcontext()


def growing(folder, turns, options):
    """Answer a question in pieces, and see that nobody keeps them all."""
    pieces = []
    for end in range(1, 9):
        answer = Answer(text=f"{folder.name}: {turns[0]['content']}"[: 4 * end])
        pieces.append(weakref.ref(answer))
        yield answer
        del answer
        assert sum(piece() is not None for piece in pieces) <= 2


@pytest.mark.parametrize("failing", [None, "b", "c"])
def test_what_was_answered_before_a_server_failed_is_in_the_table(monkeypatch, failing):
    monkeypatch.setattr(comparing, "stream", growing)
    models, rows = {name: Path(name) for name in "abc"}, [{PROMPT: "one"}, {PROMPT: "two"}]
    with pytest.raises(JobError) if failing else contextlib.nullcontext():
        deque(batch(Answering(Path(failing or "none")), models, rows, ChatOptions(), 1))
    begun = "abc"[: "abc".index(failing) if failing else 3]
    assert list(csv.DictReader(io.StringIO(as_csv(rows)))) == [
        {PROMPT: said, **{name: f"{name}: {said}" for name in begun}} for said in ("one", "two")
    ]


@pytest.mark.parametrize("letter", ["\u2028", "\x85", "\x0b", "\x1c"])
def test_a_question_ends_where_its_line_does(tmp_path, letter):
    (tmp_path / "questions.txt").write_text(f"one{letter}and a half\r\ntwo\n", encoding="utf-8")
    assert read_prompts(tmp_path / "questions.txt") == [f"one{letter}and a half", "two"]


def test_a_table_that_cannot_be_written_is_refused_before_the_work(tiny_model, tiny_tied_model, tmp_path, capsys):
    (tmp_path / "questions.txt").write_text("one")
    asked = ["compare", str(tiny_model), str(tiny_tied_model), "--prompts", str(tmp_path / "questions.txt")]
    assert main([*asked, "--output", str(tmp_path / "nowhere" / "table.csv")]) == 1
    assert "nowhere/table.csv" in capsys.readouterr().err


@pytest.mark.real
def test_two_models_answer_the_same_and_a_file_gives_a_table(
    tiny_model, tiny_tied_model, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("WEIGHTSMITH_DATA", str(tmp_path / "data"))
    monkeypatch.setitem(
        ENGINES, "vllm", ENGINES["vllm"]._replace(is_installed=lambda: False)
    )  # vLLM starts in ten times as long
    both = ["compare", str(tiny_model), str(tiny_tied_model), "--max-tokens", "4", "--temperature", "0"]
    assert main([*both, "--prompt", "hello", "--json"]) == 0
    replies = json.loads(capsys.readouterr().out)
    assert list(replies) == [tiny_model.name, tiny_tied_model.name]
    for reply in replies.values():
        assert reply["error"] is None
        assert reply["answer"]["tokens"] > 0
        assert reply["memory_bytes"] > 10**8
    questions = tmp_path / "questions.txt"
    questions.write_text("one\n\ntwo\n")
    assert main([*both, "--prompts", str(questions), "--output", str(tmp_path / "table.csv")]) == 0
    rows = list(csv.DictReader((tmp_path / "table.csv").open(encoding="utf-8")))
    assert [row["prompt"] for row in rows] == ["one", "two"]
    assert list(rows[0]) == ["prompt", tiny_model.name, tiny_tied_model.name]


@pytest.mark.parametrize(
    ("more", "words"),
    [([], "--prompt or --prompts"), (["--prompt", "a", "--prompts", "b.txt"], "--prompt or --prompts")],
)
def test_a_comparison_needs_one_kind_of_question(tiny_model, tiny_tied_model, capsys, more, words):
    assert main(["compare", str(tiny_model), str(tiny_tied_model), *more]) == 1
    assert words in capsys.readouterr().err
    assert main(["compare", str(tiny_model), "--prompt", "a"]) == 1
    assert "two models" in capsys.readouterr().err
