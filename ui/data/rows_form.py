"""RowsForm: the form for training data or calibration data, and for the role of each column."""

from dataclasses import dataclass
from typing import NamedTuple

import gradio as gr
from gradio.blocks import Block
from gradio.components import Component

from backend.data.columns import Mapping
from backend.data.options import DEMO_DATASET, DatasetOptions, RowsOptions, is_file
from backend.jobs.previews import Seen
from ui.data.findings import nothing, question
from ui.kit.errors import fault
from ui.kit.format import part
from ui.kit.forms import Given, OptionForm, Updates, Values, both, option_field

USUAL = "usual"
UPLOAD = "upload"
HUB = "hub"

_OWN = [
    ("My own file\nCSV, TSV, JSON, JSON lines, Parquet or plain text, also packed with gzip.", UPLOAD),
    ("A data set on the Hub\nIts id, and the config, split and revision to use.", HUB),
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
    "Training data",
    "The rows that the model is fine-tuned on. They are inspected as soon as you choose them.",
    "Bundled questions and answers\nWhat Python's standard library does, from its docstrings: for a first try.",
    "Show what the model will see",
    "training data",
    "Choose where the rows come from. You see at once what they hold, what is wrong with them, and what the model will"
    " see.",
    ("split", *_BESIDE),
    _BESIDE,
    ("on_fault", "drop_duplicates", "allow_identical", *_FILES),
)
CALIBRATING = Purpose(
    "calibration",
    "Calibration data",
    "What the model reads while its weights are rounded, so that little is lost where they matter. Use text like what"
    " the model will see, never the text that quality is measured on.",
    "Automatic\nEmbedded prose and conversations, with thoughts and tool calls if the model's chat template has them,"
    " and the training data of the recipe.",
    "Show what calibration reads",
    "rows or text for calibration",
    "Press the button to see how much calibration reads, and whether that is enough.",
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
"""Options that belong to the rows of one source."""


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
        """Everything that sets which rows are read."""
        return [self.source, self.file, *self.form.components]

    def outputs(self) -> list[Block]:
        """What fill(), begin() and ask_again() change."""
        return [*self.components, self.note]

    def values(self, given: Given) -> Values:
        """Read the form as DatasetOptions takes it, but for the upload; only what the chosen source has counts."""
        source = given[self.source]
        values = self.form.values(given)
        left_out = {HUB: (), UPLOAD: _OF_THE_HUB, USUAL: (*_OF_THE_HUB, *_OF_THE_ROWS)}[source]
        return {name: value for name, value in values.items() if name not in left_out}

    def upload(self, given: Given) -> str | None:
        """Return the path of the uploaded rows, if they are used."""
        return given[self.file] or None if given[self.source] == UPLOAD else None

    def missing(self, given: Given) -> dict[str, str]:
        """Name what is missing for a chosen source; the option model alone cannot know that it was chosen."""
        if given[self.source] == HUB and not (given[self.form.fields["dataset"]] or "").strip():
            return {"dataset": "enter a data set's id, such as timdettmers/openassistant-guanaco"}
        if given[self.source] == UPLOAD and not given[self.file]:
            return {"dataset": f"upload a file with {self.purpose.wanted}, or choose another source"}
        return {}

    def fill(self, options: RowsOptions) -> Updates:
        """Show options in the form; a file of this machine cannot be shown as an upload."""
        source = HUB
        if options.dataset == DEMO_DATASET:
            source = USUAL
        elif is_file(options.dataset):
            source = UPLOAD
        filled = self.form.fill(options)
        if source != HUB:
            filled[self.form.fields["dataset"]] = gr.update(value="")
        return both(filled, self.choose(source)) | {self.source: source}

    def mark(self, faults: dict[str, str]) -> Updates:
        """Say beside each field what is wrong with it, and take back what no longer is."""
        return self.form.mark(faults)

    def ask_again(self, name: str) -> Updates:
        """Ask again for an upload of an earlier visit: nothing starts on other rows meanwhile."""
        words = f"Your own file '{name}' was lost when the page reloaded: upload it again, or choose another source."
        return {**self.choose(UPLOAD), self.source: UPLOAD, self.note: fault(words)}

    def choose(self, source: str) -> Updates:
        """Show the fields that the source needs."""
        fields = self.form.fields
        shown: Updates = {fields[name]: gr.update(visible=source == HUB) for name in _OF_THE_HUB}
        own = [name for name in fields if name not in (*_OF_THE_HUB, *self.purpose.always)]
        shown |= {fields[name]: gr.update(visible=source != USUAL) for name in own}
        return {**shown, self.file: gr.update(visible=source == UPLOAD), self.note: ""}

    def begin(self, source: str) -> Updates:
        """Begin with other rows: the settings of the rows before do not apply to them."""
        fields = self.form.fields
        blank = self.form.fill(DatasetOptions())
        said = [name for name in ("config", "split", *_OF_THE_ROWS) if name in fields]
        unsaid: Updates = {fields[name]: blank[fields[name]] for name in said}
        return both(unsaid, self.choose(source))

    def ask(self, seen: Seen) -> Updates:
        """Put each question above the field that answers it, and take back those that are answered."""
        texts: dict[str, list[str]] = {}
        for finding in seen.questions:
            texts.setdefault(finding.option or "", []).append(finding.text)
        texts |= {name: ["This field may answer it."] for name in seen.faults}
        return {
            place: "".join(map(question, texts.get(name, []))) for name, place in self.questions.items()
        }  # fmt: skip

    def offer(self, seen: Seen) -> Updates:
        """Let one choose among what there is: columns, configs and splits."""
        found, fields = seen.examination, self.form.fields
        columns = [column.name for column in found.columns] if found else []
        mapping = found.mapping if found else None
        updates: Updates = {}
        for name in _COLUMNS:
            unset = _unset(mapping, name.removesuffix("_column"))
            updates[fields[name]] = gr.update(choices=[(unset, ""), *columns])
        names = ", ".join(f"{{{name}}}" for name in columns[:20])
        updates[fields["template"]] = gr.update(placeholder=f"Columns: {names}" if names else "")
        splits = dict.fromkeys(split for there in seen.splits.values() for split in there)
        updates[fields["config"]] = gr.update(choices=list(seen.splits))
        updates[fields["split"]] = gr.update(choices=list(splits))
        return updates


def can_show_rows(options: DatasetOptions) -> bool:
    """Return whether the form can show these options: no local file, and no columns of the bundled rows."""
    said = [name for name in _OF_THE_ROWS if getattr(options, name) != DatasetOptions.model_fields[name].default]
    return not is_file(options.dataset) and not (options.dataset == DEMO_DATASET and said)


def build_rows(purpose: Purpose) -> RowsForm:
    """Build it inside the open Blocks."""
    fields = dict[str, Component]()
    questions = dict[str, gr.HTML]()
    name = purpose.name
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
            _head("Prompt and validation" if len(purpose.beside) > 1 else "Prompt", "beside")
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
