"""Every bad file of the reliability study gets its answer: what, where, and what to do; nothing is silently lost."""

import gzip
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from backend.errors import SpecError
from backend.finetune.dataset import DatasetOptions
from backend.finetune.files.rows import Source
from backend.finetune.loading import Dataset, Examination, examine, load
from backend.options import parse

PAIRS = [{"prompt": f"q{i}", "completion": f"a{i}"} for i in range(1, 4)]


def jsonl(*given: Any) -> bytes:
    return "".join(json.dumps(each) + "\n" for each in given).encode()


def parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def zipped(data: bytes) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("rows.jsonl", data)
    return sink.getvalue()


def source(folder: Path, name: str, data: bytes, split: str | None = None) -> Source:
    (folder / name).write_bytes(data)
    return Source(name=name, files=(folder / name,), split=split)


def options(**given: Any) -> DatasetOptions:
    return parse(DatasetOptions, given)


def opened(folder: Path, name: str, data: bytes, **given: Any) -> Dataset:
    return load(source(folder, name, data), options(**given))


def seen(folder: Path, name: str, data: bytes, **given: Any) -> Examination:
    return examine(source(folder, name, data), options(**given))


def contents(dataset: Dataset) -> list[list[str]]:
    return [[m.content for m in s.messages] or [s.text or ""] for s in dataset.train()]


def kinds(examination: Examination) -> dict[str, int]:
    return {finding.kind: finding.count for finding in examination.findings}


GOOD = jsonl(*PAIRS)
PARQUET = parquet(pa.table({"prompt": ["q1", "q2"], "completion": ["a1", "a2"]}))

REFUSED = {
    "B01 empty": ("rows.jsonl", b"", "The file is empty."),
    "B02 blank lines": ("rows.jsonl", b"\n \n\n", r"No rows found \(3 blank lines\)\."),
    "B02 blank lines in CSV": ("rows.csv", b"\n\n\n", r"No rows found \(3 blank lines\)\."),
    "B02 blank lines in text": ("rows.txt", b"\n\n\n", r"No rows found \(3 blank lines\)\."),
    "B02 empty array": ("rows.json", b"[ ]", r"No rows found \(an empty list\)\."),
    "B02 only a header": ("rows.csv", b"prompt,completion\n", "No rows found below the header .'prompt', 'completion'"),
    "B04 empty CSV": ("rows.csv", b"", "The file is empty."),
    "B05 cut off": ("rows.jsonl", GOOD[:-8], "line 3, the last, is cut off .* set on_fault to drop"),
    "B05 cut off array": ("rows.json", json.dumps(PAIRS, indent=1).encode()[:-9], "line 12, .* cut off .row 3."),
    "B07 trailing comma": ("rows.json", b'[{"a": "b"},\n {"a": "c"},\n]', "Line 3, column 1: a comma stands before"),
    "B07 in a row": ("rows.jsonl", b'{"a": "b"}\n{"a": "b",}\n{"a": "c"}', "line 2, column 11: a comma stands before"),
    "B08 NaN": ("rows.jsonl", GOOD + b'{"prompt": NaN, "completion": "x"}\n', "line 4, column 12: NaN is no"),
    "B08 in an array": ("rows.json", b'[\n{"a": "NaN",\n "b": -Infinity}]', "row 1, line 3, column 7: -Infinity"),
    "B09 nulls": (
        "rows.jsonl",
        jsonl(*PAIRS, {"prompt": "q", "completion": None}),
        r"'completion' is null in 1 of 4 rows \(row 4\): fill it in, or set on_fault to drop",
    ),
    "B09 all null": (
        "rows.jsonl",
        jsonl(*[{**p, "completion": None} for p in PAIRS]),
        "None of the 3 rows .* in all 3 rows",
    ),
    "B12 missing": ("rows.jsonl", jsonl(*PAIRS, {"prompt": "q"}), r"'completion' is missing in 1 of 4 rows \(row 4\)"),
    "B15 role": (
        "rows.jsonl",
        jsonl({"messages": [{"role": "wizard", "content": "x"}, {"role": "assistant", "content": "y"}]}),
        "the role 'wizard' is unknown in 1 of 1 rows .row 1.: use one of system, user, assistant",
    ),
    "B16 empty strings": (
        "rows.jsonl",
        jsonl(*[{**p, "completion": ""} for p in PAIRS]),
        "'completion' is empty in all 3",
    ),
    "B17 whitespace": (
        "rows.jsonl",
        jsonl(*PAIRS, {"prompt": " \t", "completion": "x"}),
        r"'prompt' is empty in 1 of 4",
    ),
    "B18 Latin-1": (
        "rows.csv",
        "prompt,completion\na,b\nWo?,Im Café\n".encode("latin-1"),
        r"not UTF-8 \(line 3\); it looks like Windows-1252 \(Latin-1\).*'Wo\?,Im Café'.*set encoding to cp1252",
    ),
    "B21 NUL": ("rows.csv", b"prompt,completion\na,b\nc,\0d\n", r"row 2 \(line 3\) holds NUL bytes: take them out"),
    "B21 NUL in JSON": (
        "rows.jsonl",
        GOOD + b'{"prompt": "\\u0000", "completion": "x"}',
        "NUL bytes in 1 of 4 rows .row 4",
    ),
    "B21 raw NUL": (
        "rows.jsonl",
        GOOD + b'{"prompt": "\0", "completion": "x"}',
        "row 4, line 4, column 13: a NUL byte",
    ),
    "B23 duplicate names": (
        "rows.csv",
        b"prompt,prompt\na,b\n",
        "'prompt' stands there twice .columns 1 and 2.: rename",
    ),
    "B24 ragged": (
        "rows.csv",
        b"prompt,completion\na,b,c,d\ne,f\n",
        "row 1 has 4 fields, header has 2 .line 2.: put quotes",
    ),
    "B24 short": ("rows.csv", b'prompt,completion\na,"b\nc"\ne\n', r"row 2 has 1 field, header has 2 \(line 4\)"),
    "B25 quote": ("rows.csv", b'prompt,completion\na,b\nc,"d\ne,f\n', r"row 2 \(line 3\) is never closed: close it"),
    "B25 two quotes": (
        "rows.csv",
        b'prompt,completion\n"a,b\n"c",d\n',
        r"In row 1 \(line 2\) text stands behind a closing",
    ),
    "B28 no header": (
        "rows.csv",
        b"What is 2+2?,4\nWhat is 3+3?,6\n",
        "Is the first row a header.* set header to true, or",
    ),
    "B29 huge row": (
        "rows.jsonl",
        GOOD + jsonl({"prompt": "x" * 20_000_000, "completion": "y"}),
        r"row 4 \(line 4\) has 20.0 MB",
    ),
    "B29 huge CSV": (
        "rows.csv",
        b"prompt,completion\na," + b"x" * 20_000_000,
        r"Row 1 \(line 2\) has 20.0 MB, 4 MB at",
    ),
    "B29 huge JSON": (
        "rows.json",
        json.dumps([{"prompt": "x" * 20_000_000}, PAIRS[0]]).encode(),
        "row 1 .* has 20.0 MB",
    ),
    "B29 huge Parquet": (
        "rows.parquet",
        parquet(pa.table({"prompt": ["x" * 20_000_000], "completion": ["y"]})),
        "row 1 has 20.0 MB",
    ),
    "B31 HTML": ("rows.csv", b"<!DOCTYPE html>\n<html>", "This is a web page, not a table."),
    "B32 PNG": ("rows.jsonl", b"\x89PNG\r\n\x1a\n\0\0", "This is a PNG picture, not a table"),
    "B33 gzip": ("rows.jsonl", gzip.compress(GOOD), r"packed with gzip and not named so: call it 'rows.jsonl.gz'"),
    "B33 no gzip": ("rows.jsonl.gz", GOOD, "named .gz but is not packed"),
    "B33 cut gzip": ("rows.jsonl.gz", gzip.compress(GOOD)[:-12], "damaged or cut off inside its gzip"),
    "B35 cut Parquet": ("rows.parquet", PARQUET[:-20], "cut off: no footer; upload again"),
    "B36 zip bomb": ("rows.jsonl", zipped(b"0" * 10_000_000), "This is a zip archive: unpack it"),
    "B36 gzip bomb": ("rows.jsonl.gz", gzip.compress(b"\n" * 30_000_000), "unpacks to more than 1 MB"),
    "B37 duplicate keys": (
        "rows.jsonl",
        GOOD + b'{"prompt": "a", "prompt": "b"}',
        "line 4, column 17: the key 'prompt' stands",
    ),
    "B37 in an array": (
        "rows.json",
        b'[{"prompt": {"a": 1},\n "a": "x",\n "a": "b"}]',
        "row 1, line 3, column 2: the key 'a'",
    ),
    "B39 no rows": (
        "rows.parquet",
        parquet(pa.table({"prompt": pa.array([], pa.string())})),
        "No rows found in the columns",
    ),
    "B40 binary": (
        "rows.parquet",
        parquet(pa.table({"prompt": ["a"], "completion": [b"b"]})),
        "set decode_binary to true",
    ),
    "B44 no answer": (
        "rows.jsonl",
        jsonl(
            {"messages": [{"role": "user", "content": "x"}]},
            {"messages": [{"role": r, "content": "x"} for r in ("user", "assistant")]},
        ),
        r"has no assistant turn in 1 of 2 rows \(row 1\): add the answer, or set on_fault to drop",
    ),
    "B44 ends with user": (
        "rows.jsonl",
        jsonl(
            {"messages": [{"role": r, "content": "x"} for r in ("user", "assistant", "user")]},
            {"messages": [{"role": r, "content": "x"} for r in ("user", "assistant")]},
        ),
        r"ends with the user in 1 of 2 rows \(row 1\)",
    ),
    "B47 one row": ("rows.jsonl", jsonl(PAIRS[0]), "There is only 1 row: give more rows, or set allow_identical"),
    "B47 identical": ("rows.jsonl", jsonl(*[PAIRS[0]] * 5), "All 5 rows are the same: give more rows, or set"),
    "Excel": ("rows.csv", zipped(b"")[:30] + b"xl/workbook.xml", "Excel or Word document.*save it as CSV"),
    "LFS pointer": ("rows.parquet", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    "unknown name": ("rows.dat", b"hello", "Its name does not say what it is"),
    "not an object": ("rows.jsonl", GOOD + b"[1]\n", r"row 4 \(line 4\) is a list, not an object"),
    "surrogate": ("rows.jsonl", GOOD + b'{"prompt": "\\ud800", "completion": "x"}', "half a character"),
    "deep": ("rows.jsonl", GOOD + b"[" * 100_000, "nested too deep"),
    "a row on several lines": ("rows.jsonl", json.dumps(PAIRS[0], indent=1).encode(), "does not end on its line"),
    "CSV named .jsonl": ("rows.jsonl", b"prompt,completion\na,b\n", "no line of it begins as JSON"),
    "words for a header": ("rows.csv", b"hello,world\nfoo,bar\n", "If the first row is no header, set header to false"),
    "null for a row": (
        "rows.json",
        b'[null, {"prompt": "a", "completion": "b"}]',
        r"row 1 \(line 1\) is null, not an object",
    ),
    "many columns": ("rows.jsonl", jsonl(*[{f"k{i}": i} for i in range(1200)]), "more than 1000 different columns"),
    "no columns": ("rows.json", b"[{}]", "Its rows have no columns"),
    "tar": ("rows.jsonl.gz", gzip.compress(b"rows.jsonl".ljust(257, b"\0") + b"ustar\0"), "This is a tar archive"),
    "binary": ("rows.csv", bytes(range(256)), "This is binary data, not a table"),
    "Python": ("rows.jsonl", GOOD + b"{'prompt': 'a'}", "is Python, not JSON"),
    "several lists": ("rows.json", json.dumps({"a": PAIRS, "b": PAIRS}).encode(), "several lists of rows, 'a' and 'b'"),
    "broken metadata": ("rows.json", b'{"data": [\n{"prompt": "a", "completion": "b"}], x}', "Line 2, column 38"),
    "UTF-16 unmarked": ("rows.jsonl", GOOD.decode().encode("utf-16-le"), "set encoding to utf-16-le"),
    "wrong encoding": ("rows.jsonl", GOOD + b"\xff", "not UTF-8"),
}


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
    array = opened(tmp_path, "ok1.json", json.dumps(PAIRS, indent=2).encode())
    assert contents(array) == expected
    assert array.examination.formats == ("json",)
    extra = opened(tmp_path, "ok2.jsonl", jsonl(*[{**p, "id": i, "x": [1]} for i, p in enumerate(PAIRS)]))
    assert contents(extra) == expected
    assert any("not used: 'id', 'x'" in f.text for f in extra.examination.findings)
    mark = opened(tmp_path, "ok3.csv", b"\xef\xbb\xbfprompt,completion\r\nq1,a1\r\nq2,a2\r\nq3,a3\r\n")
    assert contents(mark) == expected
    dates = opened(tmp_path, "ok4.csv", b"question,answer\nwhen?,2024-01-02\nand?,01/02/03\n")
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
        ("rows.jsonl.gz", gzip.compress(jsonl(*PAIRS))),
        ("rows.csv", b"prompt;completion\nq1;a1\nq2;a2\n\nq3;a3\n"),
        ("rows.csv", b"prompt|completion\rq1|a1\rq2|a2\rq3|a3\r"),
        ("rows.tsv", b"prompt\tcompletion\nq1\ta1\nq2\ta2\nq3\ta3"),
        ("rows.tsv", b"prompt,completion\nq1,a1\nq2,a2\nq3,a3"),
        ("rows.csv.gz", gzip.compress(b'prompt,completion\n"q1",a1\nq2,"a2"\nq3,a3')),
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
    import datetime
    import decimal

    messages = [[{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"}] for i in range(2)]
    table = pa.table(
        {
            "messages": messages,
            "price": [decimal.Decimal("1.50")] * 2,
            "tags": pa.array([[("a", 1)]] * 2, pa.map_(pa.string(), pa.int64())),
            "raw": [b"\xff"] * 2,
        }
    )
    read = opened(tmp_path, "B42.parquet", parquet(table))
    assert contents(read) == [["q0", "a0"], ["q1", "a1"]]
    said = " ".join(f.text for f in read.examination.findings)
    assert "'tags' is map<string, int64" in said
    assert "'raw' is binary and left out" in said
    assert "not used: 'price'" in said
    odd = pa.table(
        {
            "question": pa.array(["a", "b"]).dictionary_encode(),
            "answer": pa.array([datetime.date(2024, 1, 2), datetime.date(2024, 1, 3)]),
        }
    )
    assert contents(opened(tmp_path, "odd.parquet", parquet(odd))) == [["a", "2024-01-02"], ["b", "2024-01-03"]]
    nested = parquet(pa.table({"question": ["a", "b"], "answers": [{"text": "x"}] * 2}))
    with pytest.raises(SpecError, match="'answers' is an object where text is needed in all 2 rows"):
        opened(tmp_path, "n.parquet", nested, user_column="question", assistant_column="answers")
