"""Foreign text: each reader meets its worst input at its largest admitted size, and reads it a bounded number of times.

What a regular expression costs cannot be counted from outside: where one went wrong the test does not end.
"""

import gzip
import io
import json
import re
from pathlib import Path

import pytest

from backend.data.examine import examine
from backend.data.files import scanner as scanning
from backend.data.files.content import HEAD
from backend.data.files.row import MAX_ROW
from backend.data.files.rows import Source
from backend.data.files.scanner import Scanner
from backend.data.options import DatasetOptions
from backend.errors import SpecError
from backend.merge.adapter import MAX_PATTERNS, _first, _patterns
from backend.options import parse
from backend.processes.child import mask
from ui.kit.errors import fault
from ui.publish.fields import _PICTURE


def looked_at(tmp_path, name, content, **options):
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(path.read_bytes()))
    try:
        return examine(Source(name=name, files=(path,)), parse(DatasetOptions, options))
    except SpecError as e:
        return e


ROWS = "\nWhy?,Because.\n" * 3


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.csv", "." * (HEAD - 100) + "x,second" + ROWS),
        ("rows.csv", "1," * (HEAD // 2 - 100) + ROWS),
        ("rows.csv", '"' + "-" * (HEAD - 200) + ' a",b' + ROWS),
        ("rows.tsv", "?" * (HEAD - 100) + "\tb\n" + "1\t2\n" * 5),
        ("rows.csv.gz", "!" * 20_000 + "_,second" + ROWS),
        ("rows.jsonl", "\n" * HEAD + "x"),
        ("rows.json", " \n" * (HEAD // 2) + "x"),
        ("rows.jsonl", "\r\n\t" * (HEAD // 3) + "x"),
        ("rows.jsonl", json.dumps({"text": '\\"' * 400_000, "b": 1})[:-1] + ', "b": 2}\n{"text": "a"}\n'),
        ("rows.jsonl", json.dumps({f"k{i}\u200b": i for i in range(150_000)}) + "\n"),
        ("rows.jsonl", json.dumps({"messages": " [ {" * 200_000}) + '\n{"messages": "[[[["}\n'),
        ("rows.json", '[{"a": 1, "a": 2}' + ',{"a": 1, "a": 2}' * 20_000 + ',{"text": "b"}]'),
    ],
)  # fmt: skip
def test_a_file_that_would_be_read_again_and_again_is_read(tmp_path, name, content):
    found = looked_at(tmp_path, name, content)
    if isinstance(found, SpecError):
        assert len(str(found)) < 4100


class Counted(io.StringIO):
    """A stream that counts how often it is asked, and the characters that a scanner had to keep meanwhile."""

    def __init__(self, text):
        super().__init__(text)
        self.asked = 0

    def read(self, size=-1):
        self.asked += 1
        return super().read(size)


@pytest.mark.parametrize(
    ("text", "step"),
    [
        ("[" + " " * 4_000_000 + "{", Scanner.second),
        ("1" * 4_000_000, Scanner.value),
        ("-1." + "0" * 4_000_000, Scanner.value),
        ('"' + "a" * 4_000_000 + '"', Scanner.value),
        ("[" + "[]," * 200_000 + "[]]", Scanner.value),
    ],
)
def test_a_value_of_any_length_is_decoded_a_few_times_and_not_once_a_chunk(text, step):
    stream = Counted(text)
    scanner = Scanner(stream, "rows.json")
    scanner.peek()
    step(scanner)
    assert stream.asked <= 2 * (len(text) // scanning._CHUNK).bit_length()


def test_a_template_that_repeats_a_long_column_makes_no_text_larger_than_a_row(tmp_path):
    rows = json.dumps({"a": "x" * 100_000, "b": "y"}) + "\n" + json.dumps({"a": "x", "b": "y"}) + "\n"
    found = looked_at(tmp_path, "rows.jsonl", rows, template="{a}" * 100 + "{b}", on_fault="drop", allow_identical=True)
    assert found.dropped == {"size": 1}
    assert max(len(sample.text) for sample in found.preview) < MAX_ROW


@pytest.mark.parametrize("pattern", [".*" * 3 + "x", "(a|a)" * 50 + "x", "[a.]*[a.]*[a.]*x", "(a|aa)(a|aa)" * 20 + "x"])
def test_a_pattern_of_a_stranger_takes_no_longer_than_its_names(pattern):
    compiled = _patterns({pattern: 4})
    assert {_first(compiled, "a." * 240 + end, 8) for end in "bcde"} == {8}
    assert _first(_patterns({r"layers\.[0-9]+\.(q|k)_proj": 4}), "model.layers.12.k_proj", 8) == 4
    assert _first(_patterns({r"layers\.[0-9]+\.(q|k)_proj": 4}), "model.layers.12.k_proj.x", 8) == 8


@pytest.mark.parametrize("given", [{r"(\1)": 1}, {"(a": 1}, {"[a": 1}, {f"p{i}": 1 for i in range(MAX_PATTERNS + 1)}])
def test_what_is_no_pattern_or_too_many_is_refused(given):
    with pytest.raises(SpecError):
        _patterns(given)


@pytest.mark.parametrize("unit", ["eyJ", "eyJaaaaaaaa", "hf_", "Bearer ", "Bearer\t", "eyJaaaaaaaa.", "a-", "api_org_"])
def test_a_long_line_of_a_log_is_masked(unit):
    assert mask(unit * 20_000 + "!").endswith("!")


def test_what_the_page_shows_is_looked_through_once():
    assert fault("https://huggingface.co/" * 40_000 + '"').startswith("<p")
    assert _PICTURE.sub("", "![" * 100_000) == "![" * 100_000


def patterns():
    """Yield every regular expression of the project that is written down as a text."""
    root = Path(__file__).parents[2]
    for path in sorted([*root.glob("backend/**/*.py"), *root.glob("ui/**/*.py")]):
        for found in re.finditer(r"\bre\.\w+\(\s*r?(\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*')", path.read_text()):
            yield path.relative_to(root), found[1][1:-1]


def _unbounded(parsed):
    """Yield the repetitions without an end in a parsed expression, each with whether one of them stands within it."""
    for kind, value in parsed:
        name = str(kind)
        if name in ("MAX_REPEAT", "MIN_REPEAT") and value[1] > 1000:
            yield any(True for _ in _unbounded(value[2])) and not _begins_with_a_mark(value[2])
        inner = value if isinstance(value, tuple | list) else ()
        for part in inner:
            if hasattr(part, "data"):
                yield from _unbounded(part)
            elif isinstance(part, list):
                for branch in part:
                    if hasattr(branch, "data"):
                        yield from _unbounded(branch)


def _begins_with_a_mark(parsed):
    """Return whether what is repeated has a letter at one end that is nowhere else in it: it is read in one way."""
    data = list(parsed)
    while data and str(data[0][0]) == "SUBPATTERN":
        data = list(data[0][1][-1])
    return str(data[0][0]) in ("LITERAL", "NOT_LITERAL") or str(data[-1][0]) == "LITERAL"


def test_no_expression_repeats_what_repeats():
    known = list(patterns())
    assert len(known) > 50
    for path, text in known:
        try:
            parsed = re._parser.parse(text)
        except (re.error, AttributeError):
            continue  # a part of one
        assert not any(_unbounded(parsed)), (path, text)
