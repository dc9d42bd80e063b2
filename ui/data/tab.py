"""The Data tab: rows that are learned from, what calibration reads, and the text that quality is measured on."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from backend.evaluate import EvaluateOptions
from ui.data.rows_form import CALIBRATING, LEARNING, RowsForm, build_rows
from ui.kit.errors import fault
from ui.kit.events import QUIET
from ui.kit.format import lead, part
from ui.kit.forms import Given, OptionForm, Updates, option_form

AUTOMATIC, DATASET, UPLOAD = "automatic", "dataset", "upload"

_SOURCES = [
    ("Automatic\nWikiText-2, the usual yardstick. For the bundled model, prose that needs no network.", AUTOMATIC),
    ("A data set on the Hub\nAny one with a text column.", DATASET),
    ("My own text\nA plain text file in the language and style that the model is for.", UPLOAD),
]


@dataclass(frozen=True)
class DataTab:
    """Its components; `rows` and `calibration` are forms of their own, all others say what is measured on."""

    rows: RowsForm
    calibration: RowsForm
    untrained: gr.Column
    finetune: gr.Button
    source: gr.Radio
    upload: gr.File
    note: gr.HTML
    form: OptionForm

    @property
    def components(self) -> list[gr.components.Component]:
        """Everything that says what is measured on."""
        return [self.source, self.upload, *self.form.components]

    def switched(self) -> list[Any]:
        """What switch() changes."""
        return [self.rows.room, self.untrained, self.calibration.room]

    def switch(self, finetuning: bool, calibrating: bool) -> Updates:
        """Ask for rows where something learns from them, or reads them; elsewhere say how to begin."""
        return {
            self.rows.room: gr.update(visible=finetuning),
            self.untrained: gr.update(visible=not finetuning),
            self.calibration.room: gr.update(visible=calibrating),
        }

    def values(self, given: Given) -> dict[str, Any]:
        """Read the tab as EvaluateOptions takes it, but for the upload; only the chosen source counts."""
        values = self.form.values(given)
        dataset = values.pop("dataset", None)
        if given[self.source] == DATASET:
            values["dataset"] = dataset
        return values

    def text(self, given: Given) -> str | None:
        """Return where the upload lies that is measured on, if one is."""
        return given[self.upload] or None if given[self.source] == UPLOAD else None

    def missing(self, given: Given) -> dict[str, str]:
        """Name what a chosen source lacks; the option model alone cannot know that it was chosen."""
        if given[self.source] == DATASET and not (given[self.form.fields["dataset"]] or "").strip():
            return {"dataset": "give a data set's id, such as Salesforce/wikitext"}
        if given[self.source] == UPLOAD and not given[self.upload]:
            return {"text": "upload a text file, or choose another source"}
        return {}

    def fill(self, options: EvaluateOptions) -> Updates:
        """Show options in the tab; an upload of another visit cannot be shown again."""
        source = DATASET if options.dataset else AUTOMATIC
        dataset = gr.update(value=options.dataset or "", visible=source == DATASET)
        rest = self.form.fill(options) | self.choose(source)
        return {**rest, self.source: source, self.form.fields["dataset"]: dataset}

    def ask_again(self, name: str) -> Updates:
        """Keep to an upload of an earlier visit: nothing starts on another text until it is given again."""
        words = f"Your own text '{name}' did not outlive the reload: upload it again, or choose another source."
        return {**self.choose(UPLOAD), self.source: UPLOAD, self.note: fault(words)}

    def choose(self, source: str) -> Updates:
        """Show the field that the source needs."""
        dataset = self.form.fields["dataset"]
        return {
            self.upload: gr.update(visible=source == UPLOAD),
            self.note: "",
            dataset: gr.update(visible=source == DATASET),
        }


def build_data_tab() -> DataTab:
    """Build it inside the open Blocks."""
    gr.HTML(lead("Data", "What the model learns from, what calibration reads, and what quality is measured on."))
    with gr.Column() as untrained:
        gr.HTML(
            part(
                "Learn from",
                "Nothing yet: your recipe tunes nothing. Tuned on rows of yours, a model answers as they do.",
            )
        )
        finetune = gr.Button("Tune on rows of mine", size="sm", elem_id="data-tune", elem_classes=["pick"])
    rows, calibration = build_rows(LEARNING), build_rows(CALIBRATING)
    rows.room.visible = calibration.room.visible = False
    gr.HTML(
        part("Measure on", "Original and result read the same text, and Weightsmith counts how far apart they are.")
    )
    source = gr.Radio(
        _SOURCES, value=AUTOMATIC, label="Text", show_label=False, elem_id="data-source", elem_classes=["rows"]
    )
    upload = gr.File(
        label="Text file", file_count="single", type="filepath", visible=False, elem_id="data-upload", height=140
    )
    gr.HTML('<div id="data-upload-refused" class="refused"></div>')
    note = gr.HTML("", elem_id="data-note")
    with gr.Group(elem_classes=["fields"]):
        form = option_form(EvaluateOptions, "evaluate", leave_out=("text",))
    tab = DataTab(rows, calibration, untrained, finetune, source, upload, note, form)
    dataset = form.fields["dataset"]
    dataset.visible = False
    source.input(tab.choose, source, [upload, note, dataset], api_name="data_source", **QUIET)
    upload.upload(lambda: "", None, note, api_name="data_uploaded", **QUIET)
    return tab
