"""RowsForm: which rows are learned from, or calibrated on, and what becomes of their columns, as the page asks it."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import gradio as gr
from gradio.components import Component

from backend.data.columns import Mapping
from backend.data.options import DEMO_DATASET, DatasetOptions, RowsOptions, is_file
from backend.jobs.previews import Seen
from ui.errors import fault
from ui.examination import nothing, question
from ui.format import part
from ui.forms import OptionForm, Updates, both, option_field

USUAL, UPLOAD, HUB = "usual", "upload", "hub"

_OWN = [
    ("My own file\nCSV, TSV, JSON, JSON lines, Parquet or plain text, also packed with gzip.", UPLOAD),
    ("A data set on the Hub\nIts id, with the config, split and revision that are wanted.", HUB),
]


class Purpose(NamedTuple):
    """What rows are for.

    Attributes:
        name: Begins each component's elem_id.
        title: Of the form.
        words: Below the title.
        usual: What is read where nobody names rows.
        look: What the button says that has them looked at.
        wanted: What a file is uploaded for.
        nothing: What the panel says before that.
        always: Options that hold for what is usually read, too.
        beside: Options that stand beside the columns.
        reading: Options of how files are read.
    """

    name: str
    title: str
    words: str
    usual: str
    look: str
    wanted: str
    nothing: str
    always: tuple[str, ...]
    beside: tuple[str, ...]
    reading: tuple[str, ...]


_BESIDE = ("system_prompt", "validation_size", "validation_split", "validation_dataset")
_FILES = ("header", "delimiter", "quoting", "encoding", "sample_by", "parse_json", "decode_binary")

LEARNING = Purpose(
    "rows",
    "Learn from",
    "The rows that the model is tuned on. They are looked through as soon as chosen.",
    "Bundled questions and answers\nWhat Python's standard library does, from its docstrings: to try it out.",
    "Show what the model will see",
    "rows to learn from",
    "Choose where the rows come from. They are looked through at once: what they are, what is wrong with them, and what"
    " the model will see.",
    ("split", *_BESIDE),
    _BESIDE,
    ("on_fault", "drop_duplicates", "allow_identical", *_FILES),
)
CALIBRATING = Purpose(
    "calibration",
    "Calibrate on",
    "What the model reads while its weights are rounded, so that little is lost where they matter. Best is what the"
    " model will be used for; never the text that quality is measured on.",
    "Automatic\nThe rows that the recipe tunes on; where it tunes nothing, embedded English prose.",
    "Show what calibration reads",
    "rows or text to calibrate on",
    "Press the button to see how much calibration reads, and whether that will do.",
    (),
    ("system_prompt",),
    _FILES,
)

_OF_THE_HUB = ("dataset", "config", "revision")
_PLACE = ("dataset", "config", "split", "revision")
_COLUMNS = (
    "user_column", "assistant_column", "context_column", "system_column", "messages_column", "text_column",
)  # fmt: skip
_OF_THE_ROWS = (*_COLUMNS, "template", *LEARNING.reading)
"""What is said of one source's rows, and of no other's."""


@dataclass(frozen=True)
class RowsForm:
    """Its components; `questions` stand above the fields that answer them, `panel` and `sight` show what was found."""

    purpose: Purpose
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
        left_out = {HUB: (), UPLOAD: _OF_THE_HUB, USUAL: (*_OF_THE_HUB, *_OF_THE_ROWS)}[source]
        return {name: value for name, value in values.items() if name not in left_out}

    def upload(self, given: dict[Any, Any]) -> str | None:
        """Give where the upload lies that is learned from, if one is."""
        return given[self.file] or None if given[self.source] == UPLOAD else None

    def missing(self, given: dict[Any, Any]) -> dict[str, str]:
        """Name what a chosen source lacks; the option model alone cannot know that it was chosen."""
        if given[self.source] == HUB and not (given[self.form.fields["dataset"]] or "").strip():
            return {"dataset": "give a data set's id, such as timdettmers/openassistant-guanaco"}
        if given[self.source] == UPLOAD and not given[self.file]:
            return {"dataset": f"upload a file with {self.purpose.wanted}, or choose another source"}
        return {}

    def fill(self, options: RowsOptions) -> Updates:
        """Show options in the form; a file of this machine cannot be shown as an upload."""
        source = USUAL if options.dataset == DEMO_DATASET else UPLOAD if is_file(options.dataset) else HUB
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
        own = [name for name in fields if name not in (*_OF_THE_HUB, *self.purpose.always)]
        shown |= {fields[name]: gr.update(visible=source != USUAL) for name in own}
        return {**shown, self.file: gr.update(visible=source == UPLOAD), self.note: ""}

    def begin(self, source: str) -> Updates:
        """Begin with other rows: what was said of those before does not hold for them."""
        fields, blank = self.form.fields, self.form.fill(DatasetOptions())
        said = [name for name in ("config", "split", *_OF_THE_ROWS) if name in fields]
        unsaid = {fields[name]: blank[fields[name]] for name in said}
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


def build_rows(purpose: Purpose) -> RowsForm:
    """Build it inside the open Blocks."""
    fields, questions, name = dict[str, Component](), dict[str, gr.HTML](), purpose.name
    with gr.Column(elem_id=name, elem_classes=["of-rows"]) as room:
        gr.HTML(part(purpose.title, purpose.words))
        source = gr.Radio(
            [(purpose.usual, USUAL), *_OWN], value=USUAL, label="Rows", show_label=False, elem_id=f"{name}-source",
            elem_classes=["rows"],
        )  # fmt: skip
        file = gr.File(
            label="File with rows", file_count="single", type="filepath", visible=False, elem_id=f"{name}-upload",
            height=96,
        )  # fmt: skip
        gr.HTML(f'<div id="{name}-upload-refused" class="refused"></div>')
        note = gr.HTML("", elem_id=f"{name}-note")
        with gr.Column(elem_classes=["slots"]):
            _slots(name, _PLACE, fields, questions)
        look = gr.Button(purpose.look, size="sm", elem_id=f"{name}-look", elem_classes=["pick"])
        panel = gr.HTML(nothing(purpose.nothing), elem_id=f"{name}-panel")
        with gr.Column(elem_id=f"{name}-fields", elem_classes=["slots", "of-fields"]):
            _head("Columns", "of-columns")
            _slots(name, (*_COLUMNS, "template"), fields, questions)
            _head("Beside the rows", "beside")
            _slots(name, purpose.beside, fields, questions)
            gr.Checkbox(label="More options", container=False, elem_id=f"{name}-more", elem_classes=["open-deep"])
            _slots(name, purpose.reading, fields, questions, "deep")
        sight = gr.HTML("", elem_id=f"{name}-sight", elem_classes=["sight"])
    for field in fields.keys() - set(purpose.always):
        fields[field].visible = False
    fields["dataset"].value = ""  # the bundled rows are a source of their own
    form = OptionForm(DatasetOptions, fields)
    return RowsForm(purpose, room, source, file, note, look, panel, form, questions, sight)


def _head(title: str, *classes: str) -> None:
    gr.HTML(f'<h3 class="eyebrow">{title}</h3>', elem_classes=["head", *classes])


def _slots(
    prefix: str, names: tuple[str, ...], fields: dict[str, Component], questions: dict[str, gr.HTML], *classes: str
) -> None:
    """Build fields, each below the question that it answers."""
    for name in names:
        with gr.Column(elem_classes=["slot", f"of-{name}", *classes], min_width=0):
            questions[name] = gr.HTML("", elem_classes=["question"], elem_id=f"{prefix}-ask-{name}")
            fields[name] = _field(prefix, name)


def _field(prefix: str, name: str) -> Component:
    if name in _COLUMNS:
        choices = [("not set", "")]
        return option_field(DatasetOptions, name, prefix, gr.Dropdown, choices=choices, allow_custom_value=True)
    if name in ("config", "split"):
        return option_field(DatasetOptions, name, prefix, gr.Dropdown, choices=[], allow_custom_value=True)
    if name in ("system_prompt", "template"):
        return option_field(DatasetOptions, name, prefix, gr.Textbox, lines=2, max_lines=12)
    return option_field(DatasetOptions, name, prefix)


def _unset(mapping: Mapping | None, role: str) -> str:
    """Name what a column's role is while nobody has chosen one."""
    column = getattr(mapping, role) if mapping else None
    return f"{column} (recognized)" if column else "not set"
