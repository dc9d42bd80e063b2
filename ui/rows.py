"""RowsForm: which rows are learned from and what becomes of their columns, as the page asks for it."""

from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component

from backend.finetune.columns import Mapping
from backend.finetune.dataset import DEMO_DATASET, DatasetOptions, is_file
from backend.jobs.previews import Seen
from ui.errors import fault
from ui.examination import NOTHING, question
from ui.format import part
from ui.forms import OptionForm, Updates, both, option_field

DEMO, UPLOAD, HUB = "demo", "upload", "hub"

_SOURCES = [
    ("Bundled questions and answers\nWhat Python's standard library does, from its docstrings: to try it out.", DEMO),
    ("My own file\nCSV, TSV, JSON, JSON lines, Parquet or plain text, also packed with gzip.", UPLOAD),
    ("A data set on the Hub\nIts id, with the config, split and revision that are wanted.", HUB),
]
_OF_THE_HUB = ("dataset", "config", "revision")
_PLACE = ("dataset", "config", "split", "revision")
_COLUMNS = (
    "user_column", "assistant_column", "context_column", "system_column", "messages_column", "text_column",
)  # fmt: skip
_READING = (
    "on_fault", "drop_duplicates", "allow_identical", "header", "delimiter", "quoting", "encoding", "sample_by",
    "parse_json", "decode_binary",
)  # fmt: skip
_VALIDATION = ("validation_size", "validation_split", "validation_dataset")
_OF_THE_ROWS = (*_COLUMNS, "template", *_READING)
"""What is said of one source's rows, and of no other's."""


@dataclass(frozen=True)
class RowsForm:
    """Its components; `questions` stand above the fields that answer them, `panel` and `sight` show what was found."""

    room: gr.Column
    source: gr.Radio
    file: gr.File
    note: gr.HTML
    look: gr.Button
    panel: gr.HTML
    form: OptionForm
    questions: dict[str, gr.HTML]
    sight: gr.HTML

    @property
    def components(self) -> list[Component]:
        """Everything that says what is learned from."""
        return [self.source, self.file, *self.form.components]

    def outputs(self) -> list[Any]:
        """What fill(), begin() and ask_again() change."""
        return [*self.components, self.note]

    def values(self, given: dict[Any, Any]) -> dict[str, Any]:
        """Read the form as DatasetOptions takes it, but for the upload; only what the chosen source has counts."""
        source, values = given[self.source], self.form.values(given)
        left_out = {HUB: (), UPLOAD: _OF_THE_HUB, DEMO: (*_OF_THE_HUB, *_OF_THE_ROWS)}[source]
        return {name: value for name, value in values.items() if name not in left_out}

    def upload(self, given: dict[Any, Any]) -> str | None:
        """Give where the upload lies that is learned from, if one is."""
        return given[self.file] or None if given[self.source] == UPLOAD else None

    def missing(self, given: dict[Any, Any]) -> dict[str, str]:
        """Name what a chosen source lacks; the option model alone cannot know that it was chosen."""
        if given[self.source] == HUB and not (given[self.form.fields["dataset"]] or "").strip():
            return {"dataset": "give a data set's id, such as timdettmers/openassistant-guanaco"}
        if given[self.source] == UPLOAD and not given[self.file]:
            return {"dataset": "upload a file with rows to learn from, or choose another source"}
        return {}

    def fill(self, options: DatasetOptions) -> Updates:
        """Show options in the form; a file of this machine cannot be shown as an upload."""
        source = DEMO if options.dataset == DEMO_DATASET else UPLOAD if is_file(options.dataset) else HUB
        filled = self.form.fill(options)
        if source != HUB:
            filled[self.form.fields["dataset"]] = gr.update(value="")
        return both(filled, self.choose(source)) | {self.source: source}

    def mark(self, faults: dict[str, str]) -> Updates:
        """Say beside each field what is wrong with it, and take back what no longer is."""
        return self.form.mark(faults)

    def ask_again(self, name: str) -> Updates:
        """Keep to an upload of an earlier visit: nothing starts on other rows until it is given again."""
        words = f"Your own file '{name}' did not outlive the reload: upload it again, or choose another source."
        return {**self.choose(UPLOAD), self.source: UPLOAD, self.note: fault(words)}

    def choose(self, source: str) -> Updates:
        """Show the fields that the source needs."""
        fields = self.form.fields
        shown = {fields[name]: gr.update(visible=source == HUB) for name in _OF_THE_HUB}
        shown |= {fields[name]: gr.update(visible=source != DEMO) for name in _OF_THE_ROWS}
        return {**shown, self.file: gr.update(visible=source == UPLOAD), self.note: ""}

    def begin(self, source: str) -> Updates:
        """Begin with other rows: what was said of those before does not hold for them."""
        fields, blank = self.form.fields, self.form.fill(DatasetOptions())
        unsaid = {fields[name]: blank[fields[name]] for name in ("config", "split", *_OF_THE_ROWS)}
        return both(unsaid, self.choose(source))

    def ask(self, seen: Seen) -> Updates:
        """Put each question above the field that answers it, and take back those that are answered."""
        texts: dict[str, list[str]] = {}
        for finding in seen.questions:
            texts.setdefault(finding.option or "", []).append(finding.text)
        texts |= {name: ["This may answer it."] for name in seen.faults}
        return {
            place: "".join(map(question, texts.get(name, []))) for name, place in self.questions.items()
        }  # fmt: skip

    def offer(self, seen: Seen) -> Updates:
        """Let one choose among what there is: columns, configs and splits."""
        found, fields = seen.examination, self.form.fields
        updates: Updates = {}
        for name in _COLUMNS:
            role, columns = name.removesuffix("_column"), [column.name for column in found.columns] if found else []
            updates[fields[name]] = gr.update(choices=[(_unset(found and found.mapping, role), ""), *columns])
        names = ", ".join(f"{{{column.name}}}" for column in found.columns[:20]) if found else ""
        updates[fields["template"]] = gr.update(placeholder=f"There are {names}" if names else "")
        splits = dict.fromkeys(split for there in seen.splits.values() for split in there)
        updates[fields["config"]] = gr.update(choices=list(seen.splits))
        updates[fields["split"]] = gr.update(choices=list(splits))
        return updates


def can_show_rows(options: DatasetOptions) -> bool:
    """Whether the form gives options back as they are: no file of this machine, and of the bundled rows no columns."""
    said = [name for name in _OF_THE_ROWS if getattr(options, name) != DatasetOptions.model_fields[name].default]
    return not is_file(options.dataset) and not (options.dataset == DEMO_DATASET and said)


def build_rows() -> RowsForm:
    """Build it inside the open Blocks."""
    fields, questions = dict[str, Component](), dict[str, gr.HTML]()
    with gr.Column(elem_id="rows") as room:
        gr.HTML(part("Learn from", "The rows that the model is tuned on. They are looked through as soon as chosen."))
        source = gr.Radio(
            _SOURCES, value=DEMO, label="Rows", show_label=False, elem_id="rows-source", elem_classes=["rows"]
        )
        file = gr.File(
            label="File with rows", file_count="single", type="filepath", visible=False, elem_id="rows-upload",
            height=96,
        )  # fmt: skip
        gr.HTML('<div id="rows-upload-refused"></div>')
        note = gr.HTML("", elem_id="rows-note")
        with gr.Column(elem_classes=["slots"]):
            _slots(_PLACE, fields, questions)
        look = gr.Button("Show what the model will see", size="sm", elem_id="rows-look", elem_classes=["pick"])
        panel = gr.HTML(NOTHING, elem_id="rows-panel")
        with gr.Column(elem_id="rows-fields", elem_classes=["slots"]):
            _head("Columns", "of-columns")
            _slots((*_COLUMNS, "template"), fields, questions)
            _head("Beside the rows")
            _slots(("system_prompt", *_VALIDATION), fields, questions)
            gr.Checkbox(label="More options", container=False, elem_id="rows-more")
            _slots(_READING, fields, questions, "deep")
        sight = gr.HTML("", elem_id="rows-sight")
    for name in (*_OF_THE_HUB, *_OF_THE_ROWS):
        fields[name].visible = False
    fields["dataset"].value = ""  # the bundled rows are a source of their own
    form = OptionForm(DatasetOptions, fields)
    return RowsForm(room, source, file, note, look, panel, form, questions, sight)


def _head(title: str, *classes: str) -> None:
    gr.HTML(f'<h3 class="eyebrow">{title}</h3>', elem_classes=["head", *classes])


def _slots(names: tuple[str, ...], fields: dict[str, Component], questions: dict[str, gr.HTML], *classes: str) -> None:
    """Build fields, each below the question that it answers."""
    for name in names:
        with gr.Column(elem_classes=["slot", *classes], min_width=0):
            questions[name] = gr.HTML("", elem_classes=["question"], elem_id=f"ask-{name}")
            fields[name] = _field(name)


def _field(name: str) -> Component:
    if name in _COLUMNS:
        choices = [("not set", "")]
        return option_field(DatasetOptions, name, "rows", gr.Dropdown, choices=choices, allow_custom_value=True)
    if name in ("config", "split"):
        return option_field(DatasetOptions, name, "rows", gr.Dropdown, choices=[], allow_custom_value=True)
    if name in ("system_prompt", "template"):
        return option_field(DatasetOptions, name, "rows", gr.Textbox, lines=2, max_lines=12)
    return option_field(DatasetOptions, name, "rows")


def _unset(mapping: Mapping | None, role: str) -> str:
    """Name what a column's role is while nobody has chosen one."""
    column = getattr(mapping, role) if mapping else None
    return f"{column} (recognized)" if column else "not set"
