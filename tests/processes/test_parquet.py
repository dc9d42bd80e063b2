"""Parquet: what a small file unpacks to is bounded by the process that reads it, and this one sees little of it."""

import re
import resource

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from backend.data.examine import examine
from backend.data.files.row import MAX_ROW
from backend.data.files.rows import Source
from backend.data.options import DatasetOptions
from backend.errors import SpecError
from backend.hub.texts import _parquet_rows
from backend.options import parse
from backend.processes import parquet
from backend.processes.parquet import MAX_FOOTER, read_batches, read_schema


def written(tmp_path, columns, **how):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table(columns), path, compression="zstd", **how)
    return path


def looked_at(path, **options):
    return examine(Source(name=path.name, files=(path,)), parse(DatasetOptions, options))


def repeated(count, text):
    """Return one list of as many texts, all the same."""
    words = pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), count), pa.array([text]))
    return pa.ListArray.from_arrays(pa.array([0, count], pa.int32()), words)


BOMBS = {
    "one cell": lambda: {"prompt": ["x" * 90_000_000], "completion": ["b"]},
    "a dictionary": lambda: {
        "prompt": pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), 64), pa.array(["x" * 10_000_000])),
        "completion": ["b"] * 64,
    },
    "a list of the same": lambda: {"messages": repeated(20_000, "y" * 20_000), "completion": ["b"]},
    "a list of one length of the same": lambda: {
        "messages": pa.FixedSizeListArray.from_arrays(repeated(20_000, "y" * 20_000).values, 20_000),
        "completion": ["b"],
    },
    "numbers without end": lambda: {
        "text": ["a"],
        "ids": pa.ListArray.from_arrays(pa.array([0, 10**7], pa.int32()), pa.repeat(pa.scalar(1, pa.int64()), 10**7)),
    },
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_small_file_that_unpacks_to_gigabytes_is_refused_in_a_sentence(tmp_path, monkeypatch, bomb):
    monkeypatch.setattr(parquet, "MEMORY", 150_000_000)  # to make larger ones takes a while
    path = written(tmp_path, BOMBS[bomb](), use_dictionary=bomb != "one cell", write_page_index=False)
    assert path.stat().st_size < 1_000_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(SpecError, match=r"'rows.parquet'.* (unpacks to more than 1 GB|can be used|MB at most)"):
        looked_at(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_rows_that_are_too_large_are_left_out_and_all_others_are_read(tmp_path):
    texts = [f"row {i} " + "é" * (MAX_ROW * 3 if i == 70 else 10) for i in range(200)]
    found = looked_at(written(tmp_path, {"text": texts}), on_fault="drop")
    assert found.dropped == {"size": 1}
    assert found.train == 199


def test_json_that_arrow_calls_so_is_text_wherever_it_stands(tmp_path):
    talk = pa.array([f'[{{"role": "user", "content": "q{i}"}}, {{"role": "assistant", "content": "a"}}]' for i in "12"])
    tools = pa.ExtensionArray.from_storage(pa.json_(), pa.array(['{"name": "f"}', '{"name": "g"}']))
    columns = {
        "messages": pa.ExtensionArray.from_storage(pa.json_(), talk),
        "tools": pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), tools),
        "id": pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"0" * 16, b"1" * 16], pa.binary(16))),
    }
    found = looked_at(written(tmp_path, columns), parse_json=True)
    assert [sample.messages[0].content for sample in found.preview] == ["q1", "q2"]
    assert '"name": "g"' in found.preview[1].tools
    assert "'id' is binary and left out" in " ".join(finding.text for finding in found.findings)


@pytest.mark.parametrize(
    ("column", "words"),
    [
        ([b"a", b"b"], "'text' is binary. Set decode_binary to true"),
        (pa.array([[("k", "v")]] * 2, pa.map_(pa.string(), pa.string())), "'text' is map<"),
        ([[{"role": "user", "content": b"q"}]] * 2, "'text' is list<"),
    ],
)
def test_a_file_without_a_column_that_is_read_says_so(tmp_path, column, words):
    with pytest.raises(SpecError, match="None of its columns is text: " + re.escape(words)):
        looked_at(written(tmp_path, {"text": column}))


def test_rows_come_as_pyarrow_reads_them_in_order(tmp_path):
    columns = {
        "text": [f"t{i}" * (i % 50) for i in range(5000)],
        "n": list(range(5000)),
        "kind": pa.array(["a", "b"] * 2500).dictionary_encode(),
        "messages": [[{"role": "user", "content": str(i)}] * (i % 3) for i in range(5000)],
    }
    path = written(tmp_path, columns, row_group_size=700)
    schema, rows = read_schema(path)
    assert (schema.names, rows) == (list(columns), 5000)
    found = [batch.rows for batch in read_batches(path, ["n", "messages", "kind", "text"], 64, 10**6)]
    assert pa.Table.from_batches(found).select(list(columns)).to_pydict() == pa.table(columns).to_pydict()


def test_a_reader_that_is_left_early_ends_its_process(tmp_path):
    batches = read_batches(written(tmp_path, {"text": ["a" * 1000] * 100_000}), ["text"], 64, 10**6)
    assert next(batches).rows.num_rows == 64
    batches.close()


def test_a_footer_without_end_is_not_read(tmp_path):
    path = written(tmp_path, {"text": ["a"]})
    raw = path.read_bytes()
    path.write_bytes(raw[:-8] + (MAX_FOOTER + 1).to_bytes(4, "little") + b"PAR1")
    with pytest.raises(SpecError, match="damaged"):
        looked_at(path)


@pytest.mark.parametrize("at", [10, 40, 100])
def test_damaged_pages_are_said_to_be_damaged(tmp_path, at):
    path = written(tmp_path, {"text": [f"{i}" for i in range(1000)]})
    raw = bytearray(path.read_bytes())
    raw[at : at + 20] = b"\xff" * 20
    path.write_bytes(raw)
    with pytest.raises(SpecError, match=r"damaged|unpacks"):
        looked_at(path)


@pytest.mark.parametrize(
    "column",
    [
        pa.array([1], pa.timestamp("ns", "Europe/Nowhere")),
        pa.array([2**30], pa.date32()),
        pa.array([2**62], pa.duration("s")),
        pa.array([2**62], pa.timestamp("ms")),
    ],
)
def test_a_time_that_python_has_not_is_said_in_a_sentence(tmp_path, column):
    with pytest.raises(SpecError, match=r"'rows.parquet'.* damaged"):
        looked_at(written(tmp_path, {"text": ["a row"], "when": column}))


def test_text_to_measure_on_is_bounded_in_the_same_way(tmp_path):
    with pytest.raises(SpecError, match="unpacks to too much"):
        list(_parquet_rows(written(tmp_path, {"text": ["x" * 110_000_000]}, use_dictionary=False)))
