"""Uploads: kept for as long as a job may read them, and no longer, whoever is killed when."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from backend.errors import SpecError
from backend.jobs.store import JobState, Store
from backend.jobs.supervisor import Supervisor
from backend.jobs.uploads import UNUSED_SECONDS, Uploads
from backend.processes.child import ROOT
from backend.recipes import Recipe, parse_recipe
from backend.settings import Settings

STAGES = [{"stage": "quantize", "method": "nf4"}, {"stage": "evaluate"}]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data=tmp_path / "data", max_upload_bytes=1000)


@pytest.fixture
def supervisor(settings: Settings) -> Iterator[Supervisor]:
    """One that nobody runs jobs for: what waits goes on waiting."""
    started = Supervisor(settings)
    started._lanes = []
    started.start()
    yield started
    started.stop()


def upload(folder: Path, name: str, content: str = "once upon a time") -> Path:
    path = folder / "gradio" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    return path


def reading(path: Path) -> Recipe:
    """A recipe that measures on a text."""
    quantize, evaluate = STAGES
    return parse_recipe({"base_model": "demo", "stages": [quantize, evaluate | {"text": str(path)}]}, paths=True)


def age(*paths: Path) -> None:
    long_ago = time.time() - UNUSED_SECONDS - 1
    for path in paths:
        os.utime(path, (long_ago, long_ago))


def test_an_upload_stays_while_a_job_may_read_it(supervisor: Supervisor, settings: Settings, tmp_path: Path) -> None:
    names = ["queued", "running", "failed", "canceled", "completed", "stray", "new"]
    kept = {name: supervisor.uploads.keep(upload(tmp_path, f"{name}.txt"), "me") for name in names}
    store = Store(settings.data / "jobs.sqlite")
    jobs = {name: store.add(reading(kept[name]), "me") for name in names[:5]}
    store.update(jobs["running"], state=JobState.RUNNING)
    for state in (JobState.CANCELED, JobState.COMPLETED):
        store.finish(jobs[state.value], state)
    store.finish(jobs["failed"], JobState.ERROR, "The disk is full.")
    age(*(kept[name] for name in names[:6]))

    def there() -> set[str]:
        supervisor.clean()
        return {name for name, path in kept.items() if path.exists()}

    assert there() == {"queued", "running", "failed", "canceled", "new"}
    supervisor.retry(jobs["canceled"], "me", None)
    store.update(jobs["canceled"], state=JobState.RUNNING)
    assert "canceled" in there()
    store.finish(jobs["canceled"], JobState.COMPLETED)
    supervisor.delete(jobs["failed"], "me")
    assert there() == {"queued", "running", "new"}
    folders = [path for path in (settings.data / "uploads").rglob("*") if path.is_dir()]
    assert all(any(folder.iterdir()) for folder in folders)
    store.close()


def test_the_app_begins_with_cleaning(settings: Settings, tmp_path: Path) -> None:
    stray = Uploads(settings).keep(upload(tmp_path, "rows.jsonl"), "me")
    age(stray)
    started = Supervisor(settings)
    started.start()
    started.stop()
    assert not any((settings.data / "uploads").rglob("*"))


def test_an_upload_that_is_used_again_is_not_old(settings: Settings, tmp_path: Path) -> None:
    uploads, mine = Uploads(settings), upload(tmp_path, "rows.jsonl")
    kept = uploads.keep(mine, "me")
    age(kept, mine)
    assert uploads.keep(mine, "me") == kept
    uploads.clean(set())
    assert kept.read_text() == "once upon a time"
    assert time.time() - mine.stat().st_mtime < UNUSED_SECONDS


def test_the_same_file_of_two_people_is_kept_for_each(settings: Settings, tmp_path: Path) -> None:
    uploads, theirs = Uploads(settings), upload(tmp_path, "rows.jsonl")
    annas, bens = (uploads.keep(theirs, who) for who in ("anna", "ben"))
    assert ([annas], [bens]) == (uploads.of("anna"), uploads.of("ben"))
    age(annas)
    bens_name = {str(bens)}
    uploads.clean(bens_name)
    assert (uploads.of("anna"), uploads.of("ben")) == ([], [bens])


def test_what_cannot_be_kept_is_refused_in_words(settings: Settings, tmp_path: Path) -> None:
    uploads, large = Uploads(settings), upload(tmp_path, "large.txt", "x" * 1001)
    with pytest.raises(SpecError, match=r"'large.txt' is larger than 1000 bytes"):
        uploads.keep(large, "me")
    large.unlink()
    with pytest.raises(SpecError, match=r"'large.txt' was deleted.*upload it again"):
        uploads.keep(large, "me")


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="there is no other disk here")
def test_a_copy_that_a_kill_cut_off_is_not_taken_for_the_upload(settings: Settings, tmp_path: Path) -> None:
    there = Path(f"/dev/shm/{os.getpid()}-rows.jsonl")
    assert os.stat("/dev/shm").st_dev != tmp_path.stat().st_dev
    there.write_text("once upon a time")
    try:
        code = (
            "import os, shutil, signal; from pathlib import Path; from backend.jobs.uploads import Uploads;"
            "from backend.settings import Settings;"
            "half = lambda source, target: (target.write_text('once'), os.kill(os.getpid(), signal.SIGKILL));"
            f"shutil.copyfile = half; Uploads(Settings(data={str(settings.data)!r})).keep(Path({str(there)!r}), 'me')"
        )
        killed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
        assert killed.returncode == -signal.SIGKILL
        uploads = Uploads(settings)
        [half] = uploads.of("me")
        assert half.read_text() == "once"
        assert uploads.keep(there, "me").read_text() == "once upon a time"
        assert [path.name for path in uploads.of("me")] == [there.name]
    finally:
        there.unlink()
