"""Slices, several files and limits are kept; what is held out or repeated is counted; wrong options are named."""

from pathlib import Path
from typing import Any

import pytest

from backend.data.examine import load
from backend.data.files import content, row, rows
from backend.data.files.rows import Source
from backend.data.options import DatasetOptions
from backend.errors import SpecError
from backend.options import parse
from tests.support.row_examples import GOOD, PAIRS, jsonl
from tests.support.rows import contents, kinds, opened, options, source


def test_plain_text_is_cut_as_told(tmp_path: Path) -> None:
    data = b"One\ntwo.\n\n\nThree.\n"
    assert contents(opened(tmp_path, "t.txt", data)) == [["One\ntwo."], ["Three."]]
    assert contents(opened(tmp_path, "t.txt", data, sample_by="line")) == [["One"], ["two."], ["Three."]]
    whole = opened(tmp_path, "t.txt", data, sample_by="document", allow_identical=True)
    assert contents(whole) == [["One\ntwo.\n\n\nThree."]]


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train[:2]", [1, 2]),
        ("[1:3]", [2, 3]),
        ("train[-2:]", [9, 10]),
        ("train[10%:30%]", [2, 3]),
        ("train[90%:]", [10]),
        ("train[8:100]", [9, 10]),
    ],
)
def test_a_slice_is_taken_as_datasets_takes_it(tmp_path: Path, split: str, expected: list[int]) -> None:
    data = jsonl(*[{"prompt": f"q{i}", "completion": "a"} for i in range(1, 11)])
    read = load(source(tmp_path, "rows.jsonl", data, split), options(allow_identical=True))
    assert [s.row for s in read.train()] == expected
    assert read.examination.rows == len(expected)


def test_faults_outside_of_a_slice_do_not_count(tmp_path: Path) -> None:
    data = b"nonsense\n" + jsonl(*PAIRS[:2]) + b"nonsense\n"
    assert len(list(load(source(tmp_path, "r.jsonl", data, "[1:3]"), options()).train())) == 2
    with pytest.raises(SpecError, match="The slice holds no rows"):
        load(source(tmp_path, "r.jsonl", data, "[7:9]"), options())


def test_several_files_are_one_data_set(tmp_path: Path) -> None:
    first, second = (
        source(tmp_path, "a.jsonl", jsonl(*PAIRS)),
        source(tmp_path, "b.csv", b"prompt,completion\nx,y\nz\n"),
    )
    both = Source(name="me/rows", files=first.files + second.files)
    with pytest.raises(SpecError, match=r"in 'b\.csv', row 2 has 1 field, header has 2"):
        load(both, options())
    read = load(both, options(on_fault="drop"))
    assert [s.row for s in read.train()] == [1, 2, 3, 4]
    assert read.examination.rows == 5


def test_limits_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MAX_ROWS", 2)
    with pytest.raises(SpecError, match="more than 2 rows: take a slice"):
        opened(tmp_path, "rows.jsonl", GOOD)
    monkeypatch.setattr(content, "MAX_BYTES", 10)
    with pytest.raises(SpecError, match="at most: give a part of it"):
        opened(tmp_path, "rows.jsonl", GOOD)
    assert row.MAX_ROW < 20_000_000


def test_repeated_rows_are_counted_and_may_be_left_out(tmp_path: Path) -> None:
    data = jsonl(*PAIRS, PAIRS[0], PAIRS[0])
    read = opened(tmp_path, "rows.jsonl", data)
    assert kinds(read.examination)["repeated"] == 2
    assert len(list(read.train())) == read.examination.train == 5
    fewer = opened(tmp_path, "rows.jsonl", data, drop_duplicates=True)
    assert [s.row for s in fewer.train()] == [1, 2, 3]
    assert fewer.examination.dropped == {"repeated": 2}


def test_validation_shares_no_row_with_training(tmp_path: Path) -> None:
    given = [{"prompt": f"q{i % 40}", "completion": "a"} for i in range(80)]
    read = opened(tmp_path, "rows.jsonl", jsonl(*given), validation_size=0.25)
    train, held = ({s.messages for s in part} for part in (read.train(), read.validation()))
    assert len(held) == 10
    assert not train & held
    assert (read.examination.train, read.examination.validation) == (60, 20)
    assert len(list(opened(tmp_path, "rows.jsonl", jsonl(*given), validation_size=5).validation())) == 10
    with pytest.raises(SpecError, match="keeps out 40 of 40 different rows: give less"):
        opened(tmp_path, "rows.jsonl", jsonl(*given), validation_size=40)


def test_validation_rows_that_are_trained_on_are_counted(tmp_path: Path) -> None:
    train, own = source(tmp_path, "t.jsonl", jsonl(*PAIRS)), source(tmp_path, "v.jsonl", jsonl(*PAIRS[:2]))
    with pytest.raises(SpecError, match=r"'v\.jsonl': 2 of 2 validation rows are also trained on: give other rows"):
        load(train, options(), own)
    assert len(list(load(train, options(allow_identical=True), own).validation())) == 2


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"dataset": "/etc/passwd"}, "dataset: '/etc/passwd' is a path of this machine: upload the file instead"),
        ({"dataset": "a b"}, "not a repo id"),
        ({"split": "train[1:2:3]"}, "is no split"),
        ({"split": "train[:200%]"}, "more than all rows"),
        ({"template": "no columns"}, "template: names no column"),
        ({"template": "{a} }"}, "lone '}' at character 5"),
        ({"config": "x"}, "config: only data sets of the Hub"),
        ({"text_column": "a", "messages_column": "b"}, "exclude each other"),
        ({"text_column": "a", "assistant_column": "b"}, "holds the answer already"),
        ({"template": "{a}", "user_column": "b"}, "leave out user_column"),
        ({"validation_size": 0.1, "validation_split": "test"}, "validation_size: a validation set of its own"),
        ({"validation_size": 1.5}, "a share below 1, or a whole number"),
        ({"encoding": "rot13"}, "encoding: must be 'utf-8'"),
    ],
)
def test_wrong_options_are_named(given: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError) as refusal:
        options(**given)
    assert words in str(refusal.value)


def test_a_file_of_this_machine_is_for_its_owner(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,b")
    path = str(tmp_path / "rows.csv")
    assert parse(DatasetOptions, {"dataset": path}, context={"paths": True}).dataset == path
    beside = parse(DatasetOptions, {"dataset": "rows.csv"}, context={"paths": True, "folder": tmp_path})
    assert beside.dataset == path
    for wrong in (path + "x", "missing.csv"):
        with pytest.raises(SpecError, match="is not a file: check the path"):
            parse(DatasetOptions, {"dataset": wrong}, context={"paths": True})
    with pytest.raises(SpecError, match="is a path of this machine: upload the file instead"):
        parse(DatasetOptions, {"dataset": "rows.csv"})


def test_what_comes_after_the_check_reads_what_was_checked_though_the_file_is_gone(tmp_path: Path) -> None:
    pairs = [{"prompt": f"{i}, «π» 😀?", "completion": f"It is\n{2 * i}."} for i in range(30)]
    talks = [
        {"messages": [{"role": "user", "content": str(i), "name": "Ann"}, {"role": "assistant", "content": "Ho"}]}
        for i in range(30)
    ]
    for lines in ([*pairs, pairs[3]], talks, [{"text": f"Once {i}."} for i in range(30)]):
        given = source(tmp_path, "rows.jsonl", jsonl(*lines))
        data = load(given, options(validation_size=0.2))
        train, validation = [*data.train()], [*data.validation()]
        given.files[0].unlink()
        assert ([*data.train()], [*data.validation()]) == (train, validation)
        assert (len(train), len(validation)) == (data.examination.train, data.examination.validation)
        assert data.examination.preview == tuple(sorted([*train, *validation])[:10])
        for one, other in zip(data.train(), data.train(), strict=True):  # several may read at a time
            assert one == other
