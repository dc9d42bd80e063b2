"""A look at rows: every file gets its answer, questions name their option, and what is learned is marked."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from backend.__main__ import main
from backend.cli.preview import view
from backend.data.examine import Examination, examine
from backend.data.files.rows import Source
from backend.errors import JobError, SpecError
from backend.evaluate import EvaluateOptions
from backend.finetune.options import FinetuneOptions
from backend.finetune.rendered import Piece, Survey
from backend.jobs.job import write_spec
from backend.jobs.previews import Seen, read_seen, take_over
from backend.jobs.store import JobState, Store
from backend.jobs.supervisor import Supervisor
from backend.jobs.worker import do
from backend.options import parse
from backend.progress import silent
from backend.settings import Settings
from backend.spec import Cut, Preview
from backend.stages.work import stage_folder
from tests.support.looks import looked, spec
from tests.support.loopback_hub import LoopbackHub
from tests.support.row_examples import ACCEPTED, GOOD, PAIRS, REFUSED, jsonl
from tests.support.typed import fails, succeeds


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIGHTSMITH_DATA", str(tmp_path / "data"))


def written(folder: Path, name: str, data: bytes) -> Path:
    (folder / name).write_bytes(data)
    return folder / name


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_file_gets_its_answer_on_the_command_line(
    tmp_path: Path, tiny_model: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name, data, words = REFUSED[case]
    path = written(tmp_path, name, data)
    line = fails(capsys, "finetune", str(tiny_model), "--dataset", str(path), "--output", str(tmp_path / "out"))
    assert line.startswith(f"error: '{name}': ")
    assert re.search(f"(?is){words}", line)
    assert str(tmp_path) not in line


@pytest.mark.parametrize("case", ACCEPTED)
def test_a_good_file_is_shown_with_what_was_recognized(tmp_path: Path, case: str) -> None:
    name, data, words = ACCEPTED[case]
    source = Source(name=name, files=(written(tmp_path, name, data),))
    found = examine(source, FinetuneOptions())
    assert not found.questions
    assert re.search(f"(?s){words}", view(Seen(examination=found, findings=found.findings), color=False))


def test_questions_come_first_and_name_their_flag(tmp_path: Path) -> None:
    rows = written(tmp_path, "rows.jsonl", jsonl({**PAIRS[0], "id": 1}, *PAIRS[1:], {"prompt": "q"}))
    found = examine(Source(name="rows.jsonl", files=(rows,)), FinetuneOptions())
    shown = view(Seen(examination=found, findings=found.findings), color=False)
    question, answer, told = shown.partition("Findings")[2].splitlines()[1:4]
    assert question == (
        "  ? 'rows.jsonl': 'completion' is missing in 1 of 4 rows (row 4): fill it in, or set on_fault to drop to leave"
        " such rows out."
    )
    assert answer == "      Answer with --on-fault."
    assert "not used: 'id'" in told
    assert "prompt  (text) → user\n      q1" in shown
    assert "id  (number or date) → not used" in shown


def test_what_is_learned_is_marked_and_nothing_in_a_row_steers_the_terminal() -> None:
    pieces = (Piece(text="Q\x1b[2J:\n", learned=False), Piece(text=" 4</s>", learned=True))
    seen = Seen(survey=Survey(
        rows=2, tokens=8, learned_tokens=2, longest=9, truncated=1, masked=3, endless=0,
        histogram=((2, 0), (4, 2), (6, 1)), samples=(pieces,),
    ))  # fmt: skip
    plain = view(seen, color=False)
    assert "Q�[2J:\n⟦ 4</s>⟧" in plain
    assert "\x1b" not in plain
    assert "\x1b[32m 4</s>\x1b[0m" in view(seen, color=True)
    assert "        1  cut at max_length" in plain
    assert "        3  left out" in plain
    assert "8  tokens, of which 2 (25%) are learned" in plain
    bars = [line.split() for line in plain.splitlines() if "█" in line]
    assert [(bar[0], len(bar[1]), bar[2]) for bar in bars] == [("4", 40, "2"), ("6", 20, "1")]


def test_what_was_seen_of_the_first_rows_is_reckoned_for_all() -> None:
    first = Survey(
        rows=4_900, tokens=98_000, learned_tokens=9_800, longest=90, truncated=1, masked=100, endless=0, histogram=(),
        samples=(),
    )  # fmt: skip
    whole = Seen(survey=first, examination=Examination.model_construct(train=50_000)).whole
    assert whole is not None
    assert (whole.rows, whole.tokens, whole.learned_tokens, whole.longest) == (49_000, 980_000, 98_000, 90)
    assert Seen(survey=first, examination=Examination.model_construct(train=5_000)).whole == first
    assert Seen().whole is None


def test_rows_are_rendered_as_the_model_will_see_them(tmp_path: Path, tiny_model: Path) -> None:
    rows = written(tmp_path, "rows.jsonl", GOOD + jsonl({"prompt": "<|im_end|>", "completion": "x"}))
    seen = looked(tmp_path / "job", spec(tiny_model, dataset=str(rows), max_length=43, system_prompt="Be brief."))
    assert seen.survey is not None
    assert (seen.survey.rows, seen.survey.truncated, seen.survey.masked) == (3, 3, 1)
    texts = [(piece.learned, piece.text) for piece in seen.survey.samples[0]]
    assert texts[0][1].startswith("<|im_start|>system\nBe brief.<|im_end|>")
    typed = [finding for finding in seen.findings if finding.kind == "special_token"]
    assert "'<|im_end|>' stands in the text of row 4" in typed[0].text
    assert not typed[0].asks


def test_of_a_hub_model_only_the_tokenizer_is_fetched(tmp_path: Path, hub: LoopbackHub, tiny_model: Path) -> None:
    commit = hub.add_model("me/tiny", tiny_model)
    hub.add_dataset("me/rows", {"train.jsonl": GOOD})
    wanted = spec("me/tiny", dataset="me/rows")
    assert wanted.revision == commit
    seen = looked(tmp_path / "job", wanted)
    assert seen.survey is not None
    assert seen.survey.rows == 3
    assert {"".join(piece.text for piece in row if piece.learned) for row in seen.survey.samples} == {
        f"a{i}<|im_end|>" for i in (1, 2, 3)
    }
    names = {path.name for path in (tmp_path / "data" / "models").rglob("*") if path.is_file()}
    assert {"tokenizer.json", "config.json"} < names
    assert not [name for name in names if name.endswith(".safetensors")]


@pytest.mark.parametrize(
    ("files", "split", "option", "words"),
    [
        (("en/train.jsonl", "de/train.jsonl"), None, "config", "has several configs: set config to one of 'de'"),
        (("test.jsonl",), None, "split", "has only the split 'test': set split to 'test'"),
        (("test.jsonl",), "tst[:2]", "split", "has no split 'tst'"),
        (("test.jsonl",), "test", "validation_split", "Of the validation rows: 'me/rows' has no split 'dev'"),
    ],
)
def test_a_hub_data_set_that_leaves_a_choice_asks_for_it(  # noqa: PLR0913 - three are fixtures
    tmp_path: Path, hub: LoopbackHub, tiny_model: Path, files: tuple[str, ...], split: str | None, option: str,
    words: str,
) -> None:  # fmt: skip
    hub.add_dataset("me/rows", dict.fromkeys(files, GOOD))
    seen = looked(tmp_path / "job", spec(tiny_model, dataset="me/rows", split=split, validation_split="dev"))
    assert [question.option for question in seen.questions] == [option]
    assert words in seen.questions[0].text
    assert seen.examination is None
    assert words in view(seen, color=False)
    assert [name for splits in seen.splits.values() for name in splits]


def test_a_data_set_with_only_a_script_is_refused_with_the_way_round(
    tmp_path: Path, hub: LoopbackHub, tiny_model: Path
) -> None:
    hub.add_dataset("me/rows", {"rows.py": b"raise SystemExit"})
    with pytest.raises(SpecError, match=r"only a loading script, 'rows.py'.*Parquet branch"):
        looked(tmp_path / "job", spec(tiny_model, dataset="me/rows"))


def test_a_model_without_a_chat_template_asks_for_one_and_text_needs_none(
    tmp_path: Path, tiny_bare_model: Path
) -> None:
    rows = written(tmp_path, "rows.jsonl", GOOD)
    seen = looked(tmp_path / "job", spec(tiny_bare_model, dataset=str(rows)))
    assert [question.option for question in seen.questions] == ["chat_template"]
    assert "choose plain, alpaca" in seen.questions[0].text
    assert seen.examination is not None
    assert seen.survey is None
    chosen = looked(tmp_path / "chosen", spec(tiny_bare_model, dataset=str(rows), chat_template="plain"))
    assert chosen.survey is not None
    assert chosen.survey.endless == 0
    plain = spec(tiny_bare_model, dataset=str(rows), text_column="prompt")
    assert looked(tmp_path / "text", plain).survey is not None


def test_while_a_question_is_open_nothing_is_rendered(tmp_path: Path, tiny_model: Path) -> None:
    rows = written(tmp_path, "rows.csv", b"What is 2+2?,4\nWhat is 3+3?,6\n")
    seen = looked(tmp_path / "job", spec(tiny_model, dataset=str(rows)))
    assert [question.option for question in seen.questions] == ["header"]
    assert seen.survey is None
    assert "Nothing is rendered before the questions are answered." in view(seen, color=False)


def test_validation_rows_that_are_trained_on_are_asked_about(tmp_path: Path, tiny_model: Path) -> None:
    rows = written(tmp_path, "rows.jsonl", GOOD)
    seen = looked(tmp_path / "job", spec(tiny_model, dataset=str(rows), validation_dataset=str(rows)), 2)
    assert [question.option for question in seen.questions] == ["allow_identical"]
    assert "3 of 3 validation rows are also trained on" in seen.questions[0].text


def test_what_cannot_be_read_says_which_option_may_help(tmp_path: Path, tiny_model: Path) -> None:
    rows = written(tmp_path, "rows.jsonl", GOOD)
    wanted = spec(tiny_model, dataset=str(rows), split="train[9:]")
    with pytest.raises(SpecError, match="The slice holds no rows"):
        looked(tmp_path / "job", wanted)
    assert list(read_seen(tmp_path / "job", wanted).faults) == ["split"]


def test_rows_that_were_fetched_are_not_fetched_again(tmp_path: Path, hub: LoopbackHub, tiny_model: Path) -> None:
    hub.add_dataset("me/rows", {"train.jsonl": GOOD})
    first = spec(tiny_model, dataset="me/rows")
    looked(tmp_path / "first", first)
    other = first.model_copy(update={"options": first.options.model_copy(update={"split": "train[:1]"})})
    take_over(other, tmp_path / "other", tmp_path / "first")
    assert not (tmp_path / "other").exists()
    again = first.model_copy(update={"options": first.options.model_copy(update={"system_prompt": "Be brief."})})
    take_over(again, tmp_path / "again", tmp_path / "first")
    write_spec(tmp_path / "again", again)
    hub.add_dataset("me/rows", {"train.jsonl": b""})
    for index in (1, 2):
        do(tmp_path / "again", index, False, None, silent())
    seen = read_seen(tmp_path / "again", again)
    assert seen.survey is not None
    assert "Be brief." in seen.survey.samples[0][0].text
    assert not stage_folder(tmp_path / "first", first, 0).exists()


def test_an_owner_has_one_preview_and_it_is_not_among_the_jobs(tmp_path: Path, tiny_model: Path) -> None:
    rows = written(tmp_path, "rows.jsonl", GOOD)
    settings = Settings(data=tmp_path / "data")
    settings.jobs.mkdir(parents=True)
    left = Store(tmp_path / "data" / "jobs.sqlite")
    old = left.add(spec(tiny_model, dataset=str(rows)), "anna")
    left.close()
    (settings.jobs / old / "stages").mkdir(parents=True)
    supervisor = Supervisor(settings)
    supervisor.start()
    try:
        assert not (settings.jobs / old).exists()
        with pytest.raises(JobError):
            supervisor.get(old, "anna")
        first = supervisor.preview(spec(tiny_model, dataset=str(rows)), "anna", None)
        others = supervisor.preview(spec(tiny_model, dataset=str(rows), split="train[:1]"), "ben", None)
        second = supervisor.preview(spec(tiny_model, dataset=str(rows), split="train[:2]"), "anna", None)
        assert supervisor.list("anna") == []
        with pytest.raises(JobError):
            supervisor.get(first, "anna")
        with pytest.raises(JobError):
            supervisor.seen(others, "anna")
        assert supervisor.get(second, "anna").state in (JobState.QUEUED, JobState.RUNNING)
        assert supervisor.get(second, "anna").steps == spec(tiny_model, dataset=str(rows)).steps
    finally:
        supervisor.stop()
    assert not (settings.jobs / first).exists()


def calibrated(model: Path, **given: Any) -> Preview:
    """What calibration would read, with windows of 64 tokens."""
    options, how = parse(FinetuneOptions, given, context={"stored": True}), {"max_seq_length": 64}
    cut = Cut(embedded=not given, num_calibration_samples=256, **how, measured_on=EvaluateOptions())
    return Preview(base_model=str(model), options=options, cut=cut)


def test_of_what_calibration_reads_the_tokens_are_counted(tmp_path: Path, tiny_model: Path) -> None:
    embedded = looked(tmp_path / "embedded", calibrated(tiny_model)).reading
    assert embedded is not None
    assert (embedded.windows, embedded.length, embedded.doubts) == (256, 64, ())
    german = "Die Bäckerei am Markt öffnet um sechs Uhr, und vor der Tür stehen schon die ersten Kunden."
    rows = [{"prompt": f"{i}. {german}", "completion": german} for i in range(9)]
    few = looked(tmp_path / "few", calibrated(tiny_model, dataset=str(written(tmp_path, "r.jsonl", jsonl(*rows)))))
    assert few.examination is not None
    assert few.reading is not None
    assert few.survey is None
    assert few.reading.windows < 64
    assert "tokens only" in few.reading.doubts[0]
    assert "reads German, quality is measured in English" in few.reading.doubts[1]


def test_a_look_at_what_is_calibrated_on_does_not_end_one_at_what_is_learned(tmp_path: Path, tiny_model: Path) -> None:
    rows = written(tmp_path, "rows.jsonl", GOOD)
    supervisor = Supervisor(Settings(data=tmp_path / "data"))
    supervisor.start()
    try:
        learned = supervisor.preview(spec(tiny_model, dataset=str(rows)), "anna", None)
        before = supervisor.preview(calibrated(tiny_model), "anna", None)
        now = supervisor.preview(calibrated(tiny_model, dataset=str(rows)), "anna", None)
        assert {supervisor.get(job, "anna").id for job in (learned, now)} == {learned, now}
        with pytest.raises(JobError):
            supervisor.get(before, "anna")
    finally:
        supervisor.stop()


@pytest.mark.real
def test_preview_prints_what_the_model_will_see(tmp_path: Path, capsys: Any, tiny_model: Path) -> None:
    rows = written(tmp_path, "rows.csv", b"question,answer,source\nWhat is 2+2?,4,book\nWhat is 3+3?,6,book\n")
    assert main(["preview", str(tiny_model), "--dataset", str(rows)]) == 0
    out = capsys.readouterr().out
    for words in ("question → user, answer → assistant", "⟦4<|im_end|>⟧", "not used: 'source'", "█ 2"):
        assert words in out
    done = succeeds(capsys, "preview", str(tiny_model), "--dataset", str(rows), "--validation-size", "1")
    assert (done["examination"]["train"], done["examination"]["validation"], done["survey"]["rows"]) == (1, 1, 1)
    assert not list((tmp_path / "data" / "runs").glob("*/stages"))


@pytest.mark.real
@pytest.mark.parametrize("case", ["B01 empty", "B09 all null", "B09 nulls", "B28 no header"])
def test_preview_fails_only_where_nothing_can_be_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_model: Path, case: str
) -> None:
    name, data, words = REFUSED[case]
    argv = ["preview", str(tiny_model), "--dataset", str(written(tmp_path, name, data))]
    if case in ("B01 empty", "B09 all null"):
        assert re.search(f"(?is){words}", fails(capsys, *argv, "--json").splitlines()[-1])
        assert not list((tmp_path / "data" / "runs").iterdir())
    else:
        done = succeeds(capsys, *argv)
        assert re.search(f"(?is){words}", json.dumps(done["findings"], ensure_ascii=False))
        assert done["survey"] is None
