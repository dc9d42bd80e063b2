"""RowsForm: which rows are learned from and what becomes of their columns, as the page asks for it."""

from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component

from backend.finetune.dataset import DEMO_DATASET, DatasetOptions, is_file
from ui.errors import fault
from ui.format import part
from ui.forms import OptionForm, Updates, both, option_field

DEMO, UPLOAD, HUB = "demo", "upload", "hub"

_SOURCES = [
    ("Bundled questions and answers\nWhat Python's standard library does, from its docstrings: to try it out.", DEMO),
    ("My own file\nCSV, TSV, JSON, JSON lines, Parquet or plain text, also packed with gzip.", UPLOAD),
    ("A data set on the Hub\nIts id, with the config, split and revision that are wanted.", HUB),
]  # fmt: skip
_PLACE = ("dataset", "config", "split", "revision")
_COLUMNS = (
    "user_column", "assistant_column", "context_column", "system_column", "messages_column", "text_column",
)  # fmt: skip
_READING = (
    "on_fault", "allow_identical", "drop_duplicates", "header", "delimiter", "quoting", "encoding", "sample_by",
    "parse_json", "decode_binary",
)  # fmt: skip
_VALIDATION = ("validation_size", "validation_split", "validation_dataset")
_OF_THE_HUB = ("dataset", "config", "revision")
_OF_THE_ROWS = (*_COLUMNS, "template", *_READING)
"""What is said of one source's rows, and of no other's."""


@dataclass(frozen=True)
class RowsForm:
    """Its components; `questions` stand above the fields that answer them."""

    room: gr.Column
    source: gr.Radio
    file: gr.File
    note: gr.HTML
    mapping: gr.Column
    form: OptionForm
    questions: dict[str, gr.HTML]

    @property
    def components(self) -> list[Component]:
        """Everything that says what is learned from."""
        return [self.source, self.file, *self.form.components]

    def outputs(self) -> list[Any]:
        """What fill(), choose() and ask_again() change."""
        return [*self.components, self.note, self.mapping]

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
        shown = {self.form.fields[name]: gr.update(visible=source == HUB) for name in _OF_THE_HUB}
        return {
            **shown,
            self.file: gr.update(visible=source == UPLOAD),
            self.mapping: gr.update(visible=source != DEMO),
            self.note: "",
        }

    def forget(self) -> Updates:
        """Take back what was said of another source's rows."""
        blank = self.form.fill(DatasetOptions())
        return {self.form.fields[name]: blank[self.form.fields[name]] for name in ("config", "split", *_OF_THE_ROWS)}


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
            height=140,
        )  # fmt: skip
        note = gr.HTML("", elem_id="rows-note")
        with gr.Column(elem_classes=["grid"], elem_id="rows-place"):
            _slots(_PLACE, fields, questions)
        with gr.Column(visible=False, elem_id="rows-mapping") as mapping:
            gr.HTML(part("Columns", "What becomes of each. Leave them as recognized, or choose."))
            with gr.Column(elem_classes=["grid"]):
                _slots(_COLUMNS, fields, questions)
            _slots(("template",), fields, questions)
            gr.HTML(part("Reading", "What to do with rows that are not as they should be, and how the file is read."))
            _slots(_READING, fields, questions)
        gr.HTML(part("System prompt and validation", "What is added to every conversation, and what is held back."))
        _slots(("system_prompt",), fields, questions)
        with gr.Column(elem_classes=["grid"]):
            _slots(_VALIDATION, fields, questions)
    for name in _OF_THE_HUB:
        fields[name].visible = False
    form = OptionForm(DatasetOptions, fields)
    rows = RowsForm(room, source, file, note, mapping, form, questions)
    shown: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    source.input(rows.choose, source, [file, mapping, note, *(fields[name] for name in _OF_THE_HUB)], **shown)
    return rows


def _slots(names: tuple[str, ...], fields: dict[str, Component], questions: dict[str, gr.HTML]) -> None:
    """Build fields, each below the question that it answers."""
    for name in names:
        with gr.Column(elem_classes=["slot"], min_width=0):
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
