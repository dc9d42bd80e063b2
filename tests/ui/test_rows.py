"""The rows in the page: what is typed becomes options, what is found becomes words, choices and questions."""

import dataclasses
import html
import time
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from backend.cli.preview import view
from backend.data.examine import examine
from backend.data.files.rows import Source
from backend.data.findings import Finding
from backend.data.options import DatasetOptions
from backend.finetune.options import FinetuneOptions
from backend.finetune.rendered import Piece, Survey
from backend.jobs.previews import Seen
from backend.jobs.store import UNFINISHED, Job, JobState
from backend.jobs.supervisor import Supervisor
from backend.models.demo import demo_facts
from backend.options import parse
from backend.serve.servers import Servers
from backend.settings import Settings
from backend.spec import Preview
from tests.support.row_examples import GOOD, PAIRS, jsonl
from ui.data.findings import panel, sight
from ui.data.look import Inspection, build_inspection, learning
from ui.data.rows_form import HUB, LEARNING, UPLOAD, USUAL, RowsForm, build_rows
from ui.studio import Studio


@pytest.fixture
def rows() -> RowsForm:
    with gr.Blocks():
        return build_rows(LEARNING)


@pytest.fixture
def inspection(tmp_path: Path) -> Any:
    settings = Settings(data=tmp_path / "data")
    supervisor = Supervisor(settings)
    supervisor.start()
    with gr.Blocks():
        studio, rows = Studio(settings, supervisor, Servers(settings)), build_rows(LEARNING)
        yield build_inspection(studio, rows, (), learning(studio, rows, {}))
    supervisor.stop()


def given(rows: RowsForm, **values: Any) -> dict[Any, Any]:
    """What a handler gets from an untouched form, and `values` by elem_id without its prefix."""
    found = {component: getattr(component, "value", None) for component in rows.components}
    by_id = {component.elem_id.removeprefix("rows-"): component for component in found}
    return found | {by_id[name]: value for name, value in values.items()}


def after(found: dict[Any, Any], updates: dict[Any, Any]) -> dict[Any, Any]:
    """What the form holds after updates."""
    changed = {c: u.get("value", found[c]) if isinstance(u, dict) else u for c, u in updates.items() if c in found}
    return found | changed


def seen(folder: Path, name: str, data: bytes, **options: Any) -> Seen:
    (folder / name).write_bytes(data)
    found = examine(Source(name=name, files=(folder / name,)), parse(DatasetOptions, options))
    return Seen(examination=found, findings=found.findings)


def job(state: JobState, error: str | None = None) -> Job:
    spec = Preview(base_model="demo", options=FinetuneOptions())
    return Job(
        id="j", owner="me", kind="preview", spec=spec.model_dump(), state=state, steps=("fetch", "examine", "render"),
        created=0, error=error,
    )  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"split": "[:200]", "system_prompt": "Be brief.", "validation_size": 20},
        {"dataset": "me/rows", "config": "de", "split": "train[:9]", "revision": "main", "header": False},
        {"dataset": "me/rows", "user_column": "q", "assistant_column": "a", "header": True, "delimiter": "tab"},
        {"dataset": "me/rows", "template": "{{{q}}}", "on_fault": "drop", "encoding": "cp1252", "quoting": False},
    ],
)
def test_options_fill_the_form_and_come_back(rows: RowsForm, options: dict[str, Any]) -> None:
    wanted = parse(DatasetOptions, options)
    filled = rows.fill(wanted)
    assert set(filled) <= set(rows.outputs())
    assert parse(DatasetOptions, rows.values(after(given(rows), filled))) == wanted


def test_only_what_the_chosen_source_has_counts(rows: RowsForm) -> None:
    typed = given(rows, source=HUB, dataset="me/rows", revision="v1", user_column="q", assistant_column="a")
    assert rows.values(typed)["dataset"] == "me/rows"
    own = rows.values({**typed, rows.source: UPLOAD, rows.file: "/tmp/rows.csv"})
    assert (own.get("dataset"), own.get("revision"), own["user_column"]) == (None, None, "q")
    bundled = rows.values({**typed, rows.source: USUAL, rows.file: "/tmp/rows.csv"})
    assert "user_column" not in bundled
    assert rows.upload({**typed, rows.source: USUAL, rows.file: "/tmp/rows.csv"}) is None
    assert "upload a file" in rows.missing({**typed, rows.source: UPLOAD})["dataset"]
    assert "data set's id" in rows.missing({**typed, rows.form.fields["dataset"]: " "})["dataset"]


def test_what_was_said_of_other_rows_is_forgotten(rows: RowsForm) -> None:
    typed = given(rows, source=UPLOAD, user_column="q", header="True", on_fault="drop", system_prompt="Be brief.")
    begun = rows.begin(UPLOAD)
    assert set(begun) <= set(rows.outputs())
    assert parse(DatasetOptions, rows.values(after(typed, begun))) == DatasetOptions(system_prompt="Be brief.")


def test_columns_are_offered_and_what_was_recognized_is_named(rows: RowsForm, tmp_path: Path) -> None:
    offered = rows.offer(seen(tmp_path, "rows.jsonl", jsonl(*[{**pair, "id": 1} for pair in PAIRS])))
    fields = rows.form.fields
    assert offered[fields["user_column"]]["choices"] == [("prompt (recognized)", ""), "prompt", "completion", "id"]
    assert offered[fields["text_column"]]["choices"][0] == ("not set", "")
    assert "{prompt}, {completion}, {id}" in offered[fields["template"]]["placeholder"]
    hub = rows.offer(Seen(splits={"de": ("train", "test"), "en": ("train",)}))
    assert hub[fields["config"]]["choices"] == ["de", "en"]
    assert hub[fields["split"]]["choices"] == ["train", "test"]


def test_each_question_stands_at_its_field_and_any_other_in_the_panel(rows: RowsForm, tmp_path: Path) -> None:
    found = seen(tmp_path, "rows.csv", b"What is <2>?,4\nWhat is 3?,6\n")
    asked = rows.ask(found)
    assert "Is the first row a header" in asked[rows.questions["header"]]
    assert "&lt;2&gt;" in asked[rows.questions["header"]]
    assert [place for place, text in asked.items() if text] == [rows.questions["header"]]
    template = Finding(kind="choice", text="It brings none: choose plain.", option="chat_template", asks=True)
    other = found.model_copy(update={"findings": (template,)})
    assert "It brings none" in panel(job(JobState.COMPLETED), other, rows.questions)
    assert "It brings none" not in panel(job(JobState.COMPLETED), found, rows.questions)
    unread = Seen(faults={"split": "The slice holds no rows."})
    assert rows.ask(unread)[rows.questions["split"]]
    assert "no &lt;rows&gt;" in panel(job(JobState.ERROR, "There are no <rows>."), unread, rows.questions)


def test_the_panel_says_what_was_recognized_and_counts_every_row(rows: RowsForm, tmp_path: Path) -> None:
    data = GOOD + jsonl(PAIRS[0], {"prompt": "x"})
    found = seen(tmp_path, "rows.jsonl", data, on_fault="drop", validation_size=1)
    shown = html.unescape(panel(job(JobState.COMPLETED), found, rows.questions))
    for words in (
        "JSON lines, in UTF-8. Prompts with completions: prompt → user, completion → assistant.",
        "<dt>read</dt><dd>5</dd>",
        "<dt>without a sample (1 missing)</dt><dd>1</dd>",
        "<dt>repeat an earlier one</dt><dd>1</dd>",
        "Ready for training",
        "'completion' is missing in 1 of 5 rows (row 5): left out.",
    ):
        assert words in shown


def test_samples_keep_their_white_space_and_are_text_and_nothing_else() -> None:
    pieces = (Piece(text="<b>\n  Q\t</b>", learned=False), Piece(text="A & <mark>", learned=True))
    survey = Survey(
        rows=2, tokens=8, learned_tokens=2, longest=9, truncated=1, masked=0, endless=0, histogram=((4, 1), (8, 3)),
        samples=(pieces,),
    )  # fmt: skip
    shown = sight(Seen(survey=survey))
    assert "&lt;b&gt;\n  Q\t&lt;/b&gt;<mark>A &amp; &lt;mark&gt;</mark>" in shown
    assert '<i style="height:33.3%" title="1 to 4 tokens: 1 row">' in shown
    assert '<i style="height:100.0%" title="5 to 8 tokens: 3 rows">' in shown
    assert "<dt>cut at max_length</dt><dd>1</dd>" in shown
    assert sight(Seen()) == ""
    none = survey.model_copy(update={"rows": 0, "masked": 3, "histogram": (), "samples": ()})
    assert "Nothing in any row would be learned: raise max_length" in sight(Seen(survey=none))
    assert "3  left out" in view(Seen(survey=none), color=False)


def test_an_upload_is_looked_at_where_it_stays_and_nothing_is_done_twice(
    inspection: Inspection, tmp_path: Path
) -> None:
    upload = tmp_path / "gradio" / "rows.jsonl"
    upload.parent.mkdir()
    upload.write_bytes(GOOD)
    typed = given(inspection.rows, source=UPLOAD, upload=str(upload)) | {inspection.job: None}
    begun = inspection.look(typed, demo_facts(), "me", None)
    assert set(begun) <= set(inspection.outputs())
    assert (
        inspection.look(typed | {inspection.job: begun[inspection.job]}, demo_facts(), "me", None)[inspection.job]
        == begun[inspection.job]
    )
    spec = inspection.studio.supervisor.get(begun[inspection.job], "me").read_spec()
    assert isinstance(spec, Preview)
    assert Path(spec.options.dataset).is_relative_to(tmp_path / "data" / "uploads")
    assert inspection.tick(begun[inspection.job], "ben", None)[inspection.job] is None
    changed = inspection.look(
        {**typed, inspection.job: begun[inspection.job], inspection.rows.form.fields["on_fault"]: "drop"},
        demo_facts(),
        "me",
        None,
    )
    assert changed[inspection.job] != begun[inspection.job]
    assert "another window" in inspection.tick(begun[inspection.job], "me", None)[inspection.rows.panel]


def test_a_look_that_begins_while_another_is_shown_is_not_forgotten(inspection: Inspection) -> None:
    ended = ("a job", "completed", 2)
    for job_id, stood in ((None, None), (None, ended), ("a job", ended)):
        assert inspection.job not in inspection.tick(job_id, "me", stood)


def test_what_is_wrong_with_a_field_stands_beside_it_and_nothing_is_looked_at(inspection: Inspection) -> None:
    typed = given(inspection.rows, split="[:", validation_size=-1) | {inspection.job: None}
    refused = inspection.look(typed, demo_facts(), "me", None)
    assert set(refused) <= set(inspection.outputs())
    assert "is no split" in refused[inspection.rows.form.fields["split"]]["info"]
    assert "at least 0" in refused[inspection.rows.form.fields["validation_size"]]["info"]
    assert refused[inspection.job] is None
    assert "is no split" in refused[inspection.rows.panel]


@pytest.mark.real
def test_findings_are_shown_before_the_rows_are_rendered(inspection: Inspection, tmp_path: Path) -> None:
    upload = tmp_path / "rows.jsonl"
    upload.write_bytes(GOOD)
    typed = given(inspection.rows, source=UPLOAD, upload=str(upload)) | {inspection.job: None}
    job_id = inspection.look(typed, demo_facts(), "me", None)[inspection.job]
    stood, told = None, []
    while stood is None or stood[1] in UNFINISHED:
        updates = inspection.tick(job_id, "me", stood)
        stood = updates[inspection.stood]
        if inspection.rows.panel in updates:
            told.append((updates[inspection.rows.panel], updates.get(inspection.rows.sight)))
        time.sleep(0.05)
    found = next(i for i, (text, _) in enumerate(told) if "prompt → user" in text)
    assert told[found][1] is None
    assert "mark" in told[-1][1]


def test_rows_are_rendered_with_what_another_form_says(inspection: Inspection, tmp_path: Path) -> None:
    length = gr.Number(64)
    ask = learning(inspection.studio, inspection.rows, {"max_length": length})
    other = dataclasses.replace(inspection, others=(length,), ask=ask)
    assert length in other.inputs()
    typed = given(inspection.rows) | {inspection.job: None, length: 64}
    spec = inspection.studio.supervisor.get(
        other.look(typed, demo_facts(), "me", None)[inspection.job], "me"
    ).read_spec()
    assert isinstance(spec, Preview)
    assert spec.options.max_length == 64
    too_long = other.look(typed | {length: 10_000}, demo_facts(), "me", None)
    assert "more than the 8192 tokens" in too_long[inspection.rows.panel]
