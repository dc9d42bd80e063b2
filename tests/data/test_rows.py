"""Every bad file of the reliability study gets its answer: what, where, and what to do; nothing is silently lost."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from backend.data.examine import Examination, examine
from backend.errors import SpecError
from tests.support.row_examples import ACCEPTED, PAIRS, REFUSED, jsonl, parquet
from tests.support.rows import contents, opened, options, source


def seen(folder: Path, name: str, data: bytes, **given: Any) -> Examination:
    return examine(source(folder, name, data), options(**given))


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_file_is_refused_with_its_place_and_a_remedy(tmp_path: Path, case: str) -> None:
    name, data, words = REFUSED[case]
    with pytest.raises(SpecError, match=f"(?is){words}") as refusal:
        opened(tmp_path, name, data)
    assert str(refusal.value).startswith(f"'{name}': ")
    assert str(tmp_path) not in str(refusal.value)
    assert "Traceback" not in str(refusal.value)


def test_the_controls_are_accepted(tmp_path: Path) -> None:
    expected = [["q1", "a1"], ["q2", "a2"], ["q3", "a3"]]
    array = opened(tmp_path, *ACCEPTED["ok1 array"][:2])
    assert contents(array) == expected
    assert array.examination.formats == ("json",)
    extra = opened(tmp_path, *ACCEPTED["ok2 extra keys"][:2])
    assert contents(extra) == expected
    assert any("not used: 'id', 'x'" in f.text for f in extra.examination.findings)
    assert contents(opened(tmp_path, *ACCEPTED["ok3 BOM"][:2])) == expected
    dates = opened(tmp_path, *ACCEPTED["ok4 dates"][:2])
    assert contents(dates) == [["when?", "2024-01-02"], ["and?", "01/02/03"]]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("rows.jsonl", jsonl(*PAIRS)),
        ("rows.json", json.dumps(PAIRS).encode()),
        ("rows.json", json.dumps({"version": [1, 2], "data": PAIRS, "n": 3}).encode()),
        ("rows.json", jsonl(*PAIRS)),
        ("rows.jsonl", json.dumps(PAIRS, indent=1).encode()),
        ("B20.jsonl", jsonl(*PAIRS).decode().encode("utf-16")),
        ("rows.jsonl.gz", gzip.compress(jsonl(*PAIRS), mtime=0)),
        ("rows.csv", b"prompt;completion\nq1;a1\nq2;a2\n\nq3;a3\n"),
        ("rows.csv", b"prompt|completion\rq1|a1\rq2|a2\rq3|a3\r"),
        ("rows.tsv", b"prompt\tcompletion\nq1\ta1\nq2\ta2\nq3\ta3"),
        ("rows.tsv", b"prompt,completion\nq1,a1\nq2,a2\nq3,a3"),
        ("rows.csv.gz", gzip.compress(b'prompt,completion\n"q1",a1\nq2,"a2"\nq3,a3', mtime=0)),
        ("rows.csv", "prompt,completion\nq1,a1\nq2,a2\nq3,a3".encode("utf-16")),
        ("rows.parquet", parquet(pa.Table.from_pylist(PAIRS))),
        ("rows.csv", b"prompt\xc2\xa0,\xe2\x80\x8bcompletion \nq1,a1\nq2,a2\nq3,a3\n"),
        ("rows.jsonl", jsonl(*[{"prompt\r": p["prompt"], "completion": p["completion"]} for p in PAIRS])),
    ],
)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str, data: bytes) -> None:
    assert contents(opened(tmp_path, name, data)) == [["q1", "a1"], ["q2", "a2"], ["q3", "a3"]]


def test_text_that_means_nothing_elsewhere_stays_text(tmp_path: Path) -> None:
    data = b"question,answer\nNA,null\nN/A,None\nnan,-\n007,1e5\n"
    assert contents(opened(tmp_path, "B27.csv", data)) == [
        ["NA", "null"],
        ["N/A", "None"],
        ["nan", "-"],
        ["007", "1e5"],
    ]


def test_numbers_among_text_are_counted_and_not_rounded(tmp_path: Path) -> None:
    data = b'{"question": "a", "answer": "b"}\n{"question": "c", "answer": 0.10000000000000000555}\n'
    data += b'{"question": "d", "answer": true}\n'
    read = opened(tmp_path, "B11.jsonl", data)
    assert contents(read)[1:] == [["c", "0.10000000000000000555"], ["d", "true"]]
    texts = [f.text for f in read.examination.findings]
    assert "'B11.jsonl': 'answer' is a number, read as text, in 1 of 3 rows (row 2)." in texts


def test_faulty_rows_are_left_out_when_told_and_counted(tmp_path: Path) -> None:
    lines = [b'{"prompt": "a", "completion": "b"}', b'{"prompt": "c", "completion": null}', b'{"prompt": "d"}']
    lines += [b"nonsense", b"", b'{"prompt": "e", "completion": " "}', b'{"prompt": NaN, "completion": "x"}']
    lines += [b'{"prompt": "f", "completion": "g"}', b'{"prompt": "cut']
    read = opened(tmp_path, "rows.jsonl", b"\n".join(lines), on_fault="drop")
    assert contents(read) == [["a", "b"], ["f", "g"]]
    assert [s.row for s in read.train()] == [1, 7]
    assert read.examination.rows == 8
    assert read.examination.dropped == {"null": 1, "missing": 1, "json": 1, "empty": 1, "number": 1, "cut_off": 1}
    with pytest.raises(SpecError) as refusal:
        opened(tmp_path, "rows.jsonl", b"\n".join(lines))
    assert len(str(refusal.value).splitlines()) == 6
    assert list(refusal.value.faults) == ["on_fault"]


def test_a_faulty_row_of_an_array_or_table_is_left_out_when_told(tmp_path: Path) -> None:
    data = (
        b'[{"prompt": "a", "completion": "b"}, {"prompt": "x", "prompt": "y"}, 3, {"prompt": "c", "completion": "d"},'
    )
    assert contents(opened(tmp_path, "rows.json", data, on_fault="drop")) == [["a", "b"], ["c", "d"]]
    data = b"prompt,completion\na,b\nx,y,z\nc,d\n"
    assert contents(opened(tmp_path, "rows.csv", data, on_fault="drop")) == [["a", "b"], ["c", "d"]]


def test_a_question_is_answered_by_its_option(tmp_path: Path) -> None:
    latin = "prompt,completion\nWo?,Im Café\nWas?,Käse\n".encode("latin-1")
    shown = seen(tmp_path, "rows.csv", latin)
    assert [q.option for q in shown.questions] == ["encoding"]
    assert shown.preview[0].messages[1].content == "Im Café"
    assert contents(opened(tmp_path, "rows.csv", latin, encoding="cp1252"))[1] == ["Was?", "Käse"]
    with pytest.raises(SpecError, match="Line 2 is not euc_kr: choose another encoding"):
        opened(tmp_path, "rows.csv", latin, encoding="euc_kr")
    bare = b"What is 2+2?,4\nWhat is 3+3?,6\n"
    assert [q.option for q in seen(tmp_path, "bare.csv", bare).questions] == ["header"]
    named = {"header": False, "user_column": "column_1", "assistant_column": "column_2"}
    assert contents(opened(tmp_path, "bare.csv", bare, **named)) == [["What is 2+2?", "4"], ["What is 3+3?", "6"]]
    quotes = b'prompt\tcompletion\n"a" he said\tb\n"c\td\n'
    with pytest.raises(SpecError, match="set quoting to false"):
        opened(tmp_path, "rows.tsv", quotes)
    assert contents(opened(tmp_path, "rows.tsv", quotes, quoting=False)) == [['"a" he said', "b"], ['"c', "d"]]
    binary = parquet(pa.table({"prompt": ["a", "c"], "completion": [b"b", "dé".encode()]}))
    assert contents(opened(tmp_path, "b.parquet", binary, decode_binary=True)) == [["a", "b"], ["c", "dé"]]
    one = opened(tmp_path, "one.jsonl", jsonl(PAIRS[0]), allow_identical=True)
    assert contents(one) == [["q1", "a1"]]


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("日本語のテキスト", "shift_jis"),
        ("Привет как дела? Хорошо.", "cp1251"),
        ("Ça va — déjà vu", "cp1252"),
    ],
)
def test_likely_encodings_are_named(tmp_path: Path, text: str, encoding: str) -> None:
    data = f"prompt,completion\n{text},{text}\n{text},x\n".encode(encoding)
    question = seen(tmp_path, "rows.csv", data).questions[0]
    assert f"set encoding to {encoding}" in question.text
    assert text[:8] in question.text


def test_parquet_types_are_mapped_or_named(tmp_path: Path) -> None:
    read = opened(tmp_path, *ACCEPTED["B42 types"][:2])
    assert contents(read) == [["q0", "a0"], ["q1", "a1"]]
    said = " ".join(f.text for f in read.examination.findings)
    assert "'tags' is map<string, int64" in said
    assert "'raw' is binary and left out" in said
    assert "not used: 'price'" in said
    odd = opened(tmp_path, *ACCEPTED["B42 dictionary"][:2])
    assert contents(odd) == [["a", "2024-01-02"], ["b", "2024-01-03"]]
    nested = parquet(pa.table({"question": ["a", "b"], "answers": [{"text": "x"}] * 2}))
    with pytest.raises(SpecError, match="'answers' is an object where text is needed in all 2 rows"):
        opened(tmp_path, "n.parquet", nested, user_column="question", assistant_column="answers")
