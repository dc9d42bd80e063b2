"""The Data tab: training data, calibration data, and the text that quality is measured on."""

from dataclasses import dataclass

import gradio as gr
from gradio.blocks import Block

from backend.evaluate import EvaluateOptions
from ui.data.rows_form import CALIBRATING, LEARNING, RowsForm, build_rows
from ui.kit.errors import fault
from ui.kit.events import QUIET
from ui.kit.format import lead, part
from ui.kit.forms import Given, OptionForm, Updates, Values, option_form

AUTOMATIC = "automatic"
DATASET = "dataset"
UPLOAD = "upload"

_SOURCES = [
    ("Automatic\nWikiText-2, the usual benchmark. For the bundled model, prose that needs no network.", AUTOMATIC),
    ("A data set on the Hub\nAny data set with a text column.", DATASET),
    ("My own text\nA plain text file in the language and style of your use.", UPLOAD),
]


@dataclass(frozen=True)
class DataTab:
    """Its components; `rows` and `calibration` are forms of their own, all others set the evaluation text."""

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
        """Everything that sets the evaluation text."""
        return [self.source, self.upload, *self.form.components]

    def switched(self) -> list[Block]:
        """What switch() changes."""
        return [self.rows.room, self.untrained, self.calibration.room]

    def switch(self, finetuning: bool, calibrating: bool) -> Updates:
        """Ask for training and calibration data where the recipe uses them; otherwise say how to begin."""
        return {
            self.rows.room: gr.update(visible=finetuning),
            self.untrained: gr.update(visible=not finetuning),
            self.calibration.room: gr.update(visible=calibrating),
        }

    def values(self, given: Given) -> Values:
        """Read the tab as EvaluateOptions takes it, but for the upload; only the chosen source counts."""
        values = self.form.values(given)
        dataset = values.pop("dataset", None)
        if given[self.source] == DATASET:
            values["dataset"] = dataset
        return values

    def text(self, given: Given) -> str | None:
        """Return the path of the uploaded evaluation text, if it is used."""
        return given[self.upload] or None if given[self.source] == UPLOAD else None

    def missing(self, given: Given) -> dict[str, str]:
        """Name what is missing for a chosen source; the option model alone cannot know that it was chosen."""
        if given[self.source] == DATASET and not (given[self.form.fields["dataset"]] or "").strip():
            return {"dataset": "enter a data set's id, such as Salesforce/wikitext"}
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
        """Ask again for an upload of an earlier visit: nothing starts on another text meanwhile."""
        words = f"Your own text '{name}' was lost when the page reloaded: upload it again, or choose another source."
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
    gr.HTML(lead("Data", "The training data, the calibration data, and the text that quality is measured on."))
    with gr.Column() as untrained:
        gr.HTML(
            part(
                "Training data",
                "Fine-tuning is off. Turn it on to teach the model from your own examples.",
            )
        )
        finetune = gr.Button("Fine-tune on my data", size="sm", elem_id="data-tune", elem_classes=["pick"])
    rows = build_rows(LEARNING)
    calibration = build_rows(CALIBRATING)
    rows.room.visible = calibration.room.visible = False
    gr.HTML(part("Evaluation text", "Original and result read the same text, and Weightsmith measures the difference."))
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
