"""Files that a crash has torn: whatever the project writes and reads again, cut or damaged, is as if it were not there.

A file is whole or it is missing; nothing of a half one is believed, and no reader fails on it in a way nobody foresaw.
"""

import json
import shutil
import struct
from collections.abc import Callable
from contextlib import suppress
from math import nan
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from backend.artifacts.artifact import BASE_CARD, MANIFEST, METRICS, SAMPLES, Artifact, now
from backend.artifacts.compared import ComparedRow
from backend.artifacts.sealing import is_sealed, partial, seal
from backend.artifacts.training_log import read_course
from backend.data.fetch import SOURCES, read_sources
from backend.disk import JOURNAL, append_line, lock, read_lines
from backend.errors import AppError, JobError
from backend.finetune.checkpoints import SEAL, newest_sealed, seal_checkpoint
from backend.finetune.options import FinetuneOptions
from backend.jobs.job import published, read_spec, write_spec
from backend.jobs.previews import read_seen
from backend.jobs.runner import EVENTS
from backend.jobs.store import Store
from backend.jobs.uploads import Uploads
from backend.jobs.worker import do
from backend.machine.speeds import SPEEDS, Speeds, machine, read_speeds, write_speeds
from backend.progress import silent
from backend.publish.card.base_card import BaseCard, read_base_card
from backend.recipes import parse_recipe
from backend.settings import Settings
from backend.spec import Preview
from backend.stages.held_out import read_worst, write_worst
from backend.stages.preview import EXAMINATION, FAULTS, FINDINGS, SURVEY
from backend.stages.stream.handover import Departures, Relay
from backend.stages.work import MODEL, PUBLISHED, Fetched, base_folder
from backend.weights.compiled import signed, unsigned
from backend.weights.output import Resumable
from ui.access.launch import Launch

RECIPE = {"base_model": "demo", "stages": [{"stage": "quantize", "method": "nf4"}], "publish": {"repo_id": "me/x"}}

CUTS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "first byte alone": lambda data: data[:1],
    "half": lambda data: data[: len(data.rstrip()) // 2],  # a manifest ends with room for more
    "last byte missing": lambda data: data[:-1],
    "zeros": lambda data: bytes(len(data)),
    "garbage": lambda data: bytes(i * 7 % 256 for i in range(len(data))),
    "of another version": lambda data: b'{"of": {"another": "version"}}',
    "of another type": lambda data: b'[1, "two", null]',
    "a number": lambda data: b"7",
    "nested without end": lambda data: b"[" * 100_000,
}

SAME_SIZE = ("zeros", "garbage")


class Kept(NamedTuple):
    """A file and who reads it."""

    path: Path
    read: Callable[[], Any]  # what it says; nothing, or an AppError, where it says nothing


def sealed(folder: Path, name: str = "a.txt", text: str = "once upon a midnight dreary") -> Path:
    """Seal a folder with a file."""
    draft = partial(folder)
    (draft / name).write_text(text)
    seal(draft, folder, Artifact(kind="model", stage="fetch", created=now()))
    return folder


def _manifest(folder: Path) -> Kept:
    return Kept(sealed(folder / "1-quantize") / MANIFEST, lambda: is_sealed(folder / "1-quantize"))


def _spec(folder: Path) -> Kept:
    write_spec(folder, parse_recipe(RECIPE))
    return Kept(folder / "recipe.json", lambda: read_spec(folder))


def _worst_rows(folder: Path) -> Kept:
    (folder / "stages" / "4-evaluate").mkdir(parents=True)
    row = ComparedRow(row=7, prompt="Why?", expected="So.", answers=("A", None), losses=(3.0, 2.0))
    write_worst(folder / "stages" / "4-evaluate", "3-quantize", (row,))
    [path] = (folder / "stages" / "4-evaluate").iterdir()
    return Kept(path, lambda: read_worst(folder, "3-quantize"))


def _model(folder: Path) -> Kept:
    sealed(folder / "stages" / "0-fetch", MODEL, Fetched(folder=folder).model_dump_json())
    return Kept(folder / "stages" / "0-fetch" / MODEL, lambda: base_folder(folder))


def _published(folder: Path) -> Kept:
    place = sealed(folder / "stages" / "3-publish", PUBLISHED, json.dumps([{"location": "there"}]))
    return Kept(place / PUBLISHED, lambda: [each for each in published(folder, parse_recipe(RECIPE)) if each])


def _checkpoint(folder: Path) -> Kept:
    place = folder / "checkpoint-4"
    place.mkdir()
    (place / "optimizer.pt").write_bytes(b"state")
    seal_checkpoint(place)
    return Kept(place / SEAL, lambda: newest_sealed(folder))


def _speeds(folder: Path) -> Kept:
    write_speeds(folder, Speeds(machine=machine()))
    return Kept(folder / SPEEDS, lambda: read_speeds(folder))


def _journal(folder: Path) -> Kept:
    def finished() -> dict[str, int]:
        again = Resumable(folder)
        again.plan("the same")
        return again.finished

    output = Resumable(folder)
    output.plan("the same")
    (folder / "model.safetensors").write_bytes(b"weights")
    output.finish("model.safetensors", 7)
    output.settle()
    return Kept(folder / JOURNAL, finished)


def _on_the_hub(folder: Path) -> Kept:
    relay = Relay(folder)
    relay.open({})
    relay.set_sent("0" * 64, 5)
    return Kept(folder / JOURNAL, relay.sent)


def _made_for_the_hub(folder: Path) -> Kept:
    relay = Relay(folder)
    relay.open({})
    output = Departures(relay)
    output.plan("the same")
    (relay.output / "model.safetensors").write_bytes(b"weights")
    output.finish("model.safetensors", 7)
    output.settle()
    return Kept(relay.output / JOURNAL, relay.finished)


def _base_card(folder: Path) -> Kept:
    (folder / BASE_CARD).write_text(BaseCard(license=("mit",)).model_dump_json(exclude_defaults=True))
    return Kept(folder / BASE_CARD, lambda: read_base_card(folder).license)


def _cookie(folder: Path) -> Kept:
    settings = Settings(data=folder)
    first = Launch(settings)._pass
    return Kept(folder / "cookie.key", lambda: Launch(settings)._pass == first)


def _upload(folder: Path) -> Kept:
    uploads = Uploads(Settings(data=folder / "data"))
    given = folder / "rows.jsonl"
    given.write_text("once upon a midnight dreary")
    kept = uploads.keep(given, "me")
    shutil.copyfile(kept, folder / "copy")
    (folder / "copy").replace(kept)  # not a second name: a copy, as on another disk
    return Kept(kept, lambda: uploads.keep(given, "me").read_text() == "once upon a midnight dreary")


KEPT = {
    "manifest": _manifest, "spec": _spec, "place of the model": _model, "worst rows": _worst_rows,
    "publications": _published,
    "seal of a checkpoint": _checkpoint, "speeds of the machine": _speeds, "journal of shards": _journal,
    "what is on the Hub": _on_the_hub, "what is made for the Hub": _made_for_the_hub, "card of the base": _base_card,
}  # fmt: skip


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("kind", KEPT)
def test_a_torn_file_says_nothing(kind: str, cut: str, tmp_path: Path) -> None:
    kept = KEPT[kind](tmp_path)
    whole = kept.read()
    assert whole
    kept.path.write_bytes(CUTS[cut](kept.path.read_bytes()))
    with suppress(AppError):
        found = kept.read()
        assert not found or (found == whole and cut == "last byte missing")  # which was a space, or the end of a line


@pytest.mark.parametrize("cut", [cut for cut in CUTS if cut not in SAME_SIZE])
def test_the_key_of_cookies_is_never_one_that_can_be_guessed(cut: str, tmp_path: Path) -> None:
    kept = _cookie(tmp_path)
    assert kept.read()
    kept.path.write_bytes(CUTS[cut](kept.path.read_bytes()))
    assert not kept.read()
    assert len(kept.path.read_bytes()) == 32
    assert kept.path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("cut", [cut for cut in CUTS if cut not in SAME_SIZE])
def test_an_upload_that_a_crash_has_cut_is_kept_again(cut: str, tmp_path: Path) -> None:
    kept = _upload(tmp_path)
    kept.path.write_bytes(CUTS[cut](kept.path.read_bytes()))
    assert kept.read()


@pytest.mark.parametrize("cut", CUTS)
def test_a_torn_line_takes_no_other_with_it(cut: str, tmp_path: Path) -> None:
    for name in (METRICS, SAMPLES, EVENTS):
        path = tmp_path / name
        for step in (1, 2):
            append_line(path, {"event": "log", "text": "a", "step": step, "loss": 1.0, "prompt": "?", "answer": "!"})
        first, second, _ = path.read_bytes().split(b"\n")
        path.write_bytes(first + b"\n" + CUTS[cut](second + b"\n"))
        append_line(path, {"step": 3, "loss": 2.0, "prompt": "?", "answer": "!"})
        steps = [line.get("step") for line in read_lines(path)]
        assert (steps[0], steps[-1]) == (1, 3)
    course = read_course(tmp_path)
    assert {1, 3} <= {line["step"] for line in course.figures} & {line["step"] for line in course.answers}
    assert course.series("loss")[-1] == (3, 2.0)


@pytest.mark.parametrize("cut", CUTS)
def test_a_torn_table_is_said_to_be_one_or_read(cut: str, tmp_path: Path) -> None:
    store = Store(tmp_path / "jobs.sqlite")
    store.add(parse_recipe(RECIPE), "me")
    store.close()
    (tmp_path / "jobs.sqlite").write_bytes(CUTS[cut]((tmp_path / "jobs.sqlite").read_bytes()))
    with suppress(AppError):
        again = Store(tmp_path / "jobs.sqlite")
        assert again.of("me") == [] or cut == "last byte missing"
        again.close()


def test_a_table_with_a_flipped_byte_is_said_to_be_torn_or_hides_no_other_job(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    store = Store(path)
    first, other = (store.add(parse_recipe(RECIPE), "me") for _ in range(2))
    created = store.get(first).created
    store.close()
    whole = path.read_bytes()
    column, index, number = whole.index(b"owner"), whole.rindex(first.encode()), struct.pack(">d", created)
    damages = {
        "a letter of a column": whole[:column] + b"\xff" + whole[column + 1 :],
        "another name of a column": whole[:column] + b"O_ner" + whole[column + 5 :],
        "an index": whole[:index] + b"g" + whole[index + 1 :],
        "a time": whole.replace(number, struct.pack(">d", nan)),
    }
    for damage, content in damages.items():
        path.write_bytes(content)
        if "column" in damage:
            with pytest.raises(JobError, match="move it away"):
                Store(path)
            continue
        again = Store(path)
        assert {job.id for job in again.of("me")} == again.ids() == {first, other}, damage
        assert again.get(first).id == first
        again.delete(first)
        assert again.ids() == {other}
        again.close()


@pytest.mark.parametrize("cut", CUTS)
def test_a_torn_lock_file_still_locks(cut: str, tmp_path: Path) -> None:
    (tmp_path / "app.lock").write_bytes(CUTS[cut](b"4711"))
    with lock(tmp_path / "app.lock"), pytest.raises(AppError, match="already runs"):
        lock(tmp_path / "app.lock")


@pytest.mark.parametrize("cut", CUTS)
def test_torn_machine_code_is_not_run(cut: str) -> None:
    code = b"machine code " * 20
    assert unsigned(signed(code)) == code
    assert unsigned(CUTS[cut](signed(code))) is None


@pytest.fixture(scope="module")
def looked_at(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Preview]:
    """A preview of some rows, done."""
    folder = tmp_path_factory.mktemp("preview")
    rows = folder / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"question": f"What is {i}?", "answer": f"It is {i}."}) + "\n" for i in range(9))
    )
    options = FinetuneOptions.model_validate({"dataset": str(rows)}, context={"paths": True})
    spec = Preview(base_model=str(tiny_model), options=options)
    write_spec(folder / "job", spec)
    for index in range(3):
        do(folder / "job", index, True, None, silent())
    (folder / "job" / FAULTS).write_text('{"split": "is none"}')
    assert (seen := read_seen(folder / "job", spec)).survey
    assert seen.examination
    assert seen.faults
    return folder / "job", spec


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", [SOURCES, EXAMINATION, FINDINGS, SURVEY, FAULTS, MANIFEST])
def test_a_torn_file_of_a_preview_is_one_that_is_not_there_yet(
    name: str, cut: str, looked_at: tuple[Path, Preview], tmp_path: Path
) -> None:
    done, spec = looked_at
    job = tmp_path / "job"
    shutil.copytree(done, job)
    for path in job.rglob(name):
        path.write_bytes(CUTS[cut](path.read_bytes()))
    seen = read_seen(job, spec)
    if cut != "last byte missing" or name != MANIFEST:  # which is the end of a line
        assert (seen.survey is None) == (name in (SURVEY, MANIFEST) or (name == FINDINGS and cut not in SAME_SIZE))
        assert (seen.examination is None) == (name in (EXAMINATION, MANIFEST))
    assert (seen.faults == {}) == (name == FAULTS)
    if name == SOURCES:
        with pytest.raises(AppError, match="fetches the rows again"):
            read_sources(job / "stages" / "0-fetch")
