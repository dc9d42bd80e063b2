"""Shards on the disk: what a run that goes on keeps, and what it makes again."""

import errno
import hashlib
import shutil
import threading

import pytest

from backend.disk import JOURNAL
from backend.progress import silent
from backend.quantize import METHODS
from backend.weights.checkpoint import Checkpoint
from backend.weights.output import Resumable
from backend.weights.writer import INDEX

SHARDS = {"max_shard_size": 1}


class Killed(Exception):
    """Stands for the end of the process."""


class Cut(Resumable):
    """Ends after some shards."""

    def __init__(self, folder, shards):
        super().__init__(folder)
        self.left = shards

    def begin(self, file):
        if self.left == 0:
            self.settle()
            raise Killed
        self.left -= 1


def run(source, output, method="nf4", **options):
    output.folder.mkdir(exist_ok=True)
    module = METHODS[method]
    with Checkpoint.of(source) as weights:
        module.quantize(weights, output, module.Options(**SHARDS | options), silent())
    if isinstance(output, Resumable):
        output.close()
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(output.folder.iterdir())}


@pytest.fixture
def cut(tiny_model, tmp_path):
    """A folder of a run that ended after five shards, and what an unbroken run gives."""
    with pytest.raises(Killed):
        run(tiny_model, Cut(tmp_path / "cut", 5))
    return tmp_path / "cut", run(tiny_model, Resumable(tmp_path / "whole"))


def moments(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}


def test_finished_shards_are_kept_and_the_bytes_are_those_of_an_unbroken_run(cut, tiny_model):
    folder, expected = cut
    before = moments(folder)
    assert len(before) == 5
    assert run(tiny_model, Resumable(folder)) == expected
    assert {name: moments(folder)[name] for name in before} == before


@pytest.mark.parametrize("method", ["fp8", "w4a16", "mxfp4"])
def test_codes_with_scales_go_on_after_the_last_finished_shard_too(method, tiny_model, tmp_path):
    options = {"group_size": 32} if method == "w4a16" else {}
    with pytest.raises(Killed):
        run(tiny_model, Cut(tmp_path / "cut", 3), method, **options)
    before = moments(tmp_path / "cut")
    assert run(tiny_model, Resumable(tmp_path / "cut"), method, **options) == run(
        tiny_model, Resumable(tmp_path / "whole"), method, **options
    )
    assert len(before) == 3
    assert {name: moments(tmp_path / "cut")[name] for name in before} == before


def test_a_shard_that_has_changed_is_made_again(cut, tiny_model):
    folder, expected = cut
    broken = sorted(folder.glob("*.safetensors"))[2]
    broken.write_bytes(broken.read_bytes()[:-1] + b"?")
    assert run(tiny_model, Resumable(folder)) == expected


@pytest.mark.parametrize("change", ["options", "source", "journal"])
def test_what_another_plan_has_made_is_made_again(cut, tiny_model, tmp_path, change):
    folder, expected = cut
    source = tmp_path / "source"
    # another time of change: nobody knows whether its bytes are the same
    shutil.copytree(tiny_model, source, copy_function=shutil.copyfile)
    if change == "journal":
        (folder / JOURNAL).unlink()
    before = moments(folder)
    method = "fp4" if change == "options" else "nf4"
    found = run(tiny_model if change != "source" else source, Resumable(folder), method)
    assert not {name: time for name, time in moments(folder).items() if before.get(name) == time}
    if method == "nf4":
        assert found == expected
    else:
        assert found != expected


def test_a_second_kill_before_the_next_shard_forgets_nothing(cut, tiny_model):
    folder, expected = cut
    before = moments(folder)
    with pytest.raises(Killed):
        run(tiny_model, Cut(folder, 0))
    assert run(tiny_model, Resumable(folder)) == expected
    assert {name: moments(folder)[name] for name in before} == before


def test_a_fault_of_the_disk_at_the_last_shard_is_raised_before_the_index_is_written(tiny_model, tmp_path, monkeypatch):
    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("backend.weights.output.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        run(tiny_model, Resumable(tmp_path / "full"), **{"max_shard_size": 10**9})
    assert not (tmp_path / "full" / INDEX).exists()
    assert not Resumable(tmp_path / "full").hashes


def test_a_kill_while_a_shard_is_hashed_has_it_made_again(tiny_model, tmp_path, monkeypatch):
    """The next shard is begun meanwhile; nothing says that the first is whole."""
    hashing, begun = threading.Event(), threading.Event()

    class Slow(Resumable):
        def begin(self, file):
            if self.finished:
                assert hashing.wait(20)
                begun.set()
                raise Killed

    def slow(path):
        hashing.set()
        assert begun.wait(20)
        raise Killed

    monkeypatch.setattr("backend.weights.output.sha256", slow)
    with pytest.raises(Killed):
        run(tiny_model, Slow(tmp_path / "cut"))
    monkeypatch.undo()
    whole = run(tiny_model, Resumable(tmp_path / "whole"))
    assert run(tiny_model, Resumable(tmp_path / "cut")) == whole
