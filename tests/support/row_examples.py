"""Files with rows as people have them, and what is said of each: those of the reliability study, section 6.1, and more.

The reader, the command line and the page are all asked about these.
"""

import datetime
import decimal
import gzip
import io
import json
import zipfile
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

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


def turns(i: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"}]


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
    "B14 messages as text": (
        "rows.jsonl",
        jsonl(*[{"messages": json.dumps(turns(i))} for i in range(2)]),
        "holds conversations written as JSON text: set parse_json to true",
    ),
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
"""Name of a case: the file's name, its bytes, and a pattern of what is said of it. It is refused, or asked about."""

_TYPES = pa.table(
    {
        "messages": [turns(i) for i in range(2)],
        "price": [decimal.Decimal("1.50")] * 2,
        "tags": pa.array([[("a", 1)]] * 2, pa.map_(pa.string(), pa.int64())),
        "raw": [b"\xff"] * 2,
    }
)
_ODD = pa.table(
    {
        "question": pa.array(["a", "b"]).dictionary_encode(),
        "answer": pa.array([datetime.date(2024, 1, 2), datetime.date(2024, 1, 3)]),
    }
)
_NUMBERS = [{"question": "a", "answer": "b"}, {"question": "c", "answer": 5}, {"question": "d", "answer": True}]

ACCEPTED: dict[str, tuple[str, bytes, str]] = {
    "ok1 array": ("rows.json", json.dumps(PAIRS, indent=2).encode(), "A JSON document"),
    "ok2 extra keys": ("rows.jsonl", jsonl(*[{**p, "id": i, "x": [1]} for i, p in enumerate(PAIRS)]),
                       "not used: 'id', 'x'"),
    "ok3 BOM": ("rows.csv", b"\xef\xbb\xbfprompt,completion\r\nq1,a1\r\nq2,a2\r\nq3,a3\r\n",
                "prompt → user, completion → assistant"),
    "ok4 dates": ("rows.csv", b"question,answer\nwhen?,2024-01-02\nand?,01/02/03\n", "2024-01-02"),
    "B11 numbers": ("rows.jsonl", jsonl(*_NUMBERS), "'answer' is a number, read as text, in 1 of 3 rows .row 2."),
    "B20 UTF-16": ("rows.jsonl", GOOD.decode().encode("utf-16"), "It is UTF-16"),
    "B27 NA": ("rows.csv", b"question,answer\nNA,null\nN/A,None\n", "NA.*null"),
    "B42 types": ("rows.parquet", parquet(_TYPES), "'tags' is map<string, int64"),
    "B42 dictionary": ("rows.parquet", parquet(_ODD), "question → user, answer → assistant"),
}  # fmt: skip
"""The same for files that are learned from as they are."""
