"""Tuning: the part of the Recipe tab that says how an adapter is trained, with presets and what each of them costs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from backend.data.options import DEMO_DATASET, DatasetOptions
from backend.errors import SpecError
from backend.finetune.options import FinetuneOptions
from backend.finetune.presets import PRESETS, PresetName, preset_of, preset_values
from backend.finetune.rendered import Survey
from backend.models.facts import ModelFacts
from backend.options import parse
from backend.recipes import Recipe
from backend.stages.estimate import estimate
from ui.format import duration, escape, size
from ui.forms import OptionForm, Updates, option_form

OF_THE_ROWS = tuple(DatasetOptions.model_fields)
"""Fields that the Data tab asks for."""


class Price(NamedTuple):
    """What the costs of a training depend on, beside its options."""

    facts: ModelFacts
    data: Path  # the data folder
    survey: Survey | None  # of the rows, where they were looked at

    def words(self, name: PresetName, options: FinetuneOptions) -> str:
        """Write a preset as a choice: its title, what it is, and what it costs beside the options that it leaves."""
        preset, stage = PRESETS[name], options.model_copy(update=preset_values(name, self.facts))
        recipe = Recipe(base_model=self.facts.model, stages=(stage,))
        needed = estimate(recipe, self.facts, self.data, survey=self.survey)
        place, parts = list(needed.training_memory.items())[-1]  # a GPU's, where there is one
        cost = f"About {duration(needed.seconds)} and {size(sum(parts.values()))} of {place}."
        return f"{preset.title}\n{preset.summary}\n{cost}"


@dataclass(frozen=True)
class Tuning:
    """Its components; `door` leads to the rows."""

    wanted: gr.Checkbox
    room: gr.Column
    rows: gr.HTML
    door: gr.Button
    preset: gr.Radio
    form: OptionForm

    def outputs(self) -> list[Any]:
        """What fill(), switch() and tell() change."""
        return [self.wanted, self.room, self.rows, self.preset, *self.form.components]

    def switch(self, wanted: bool) -> Updates:
        """Show how it is trained, where it is."""
        return {self.wanted: wanted, self.room: gr.update(visible=wanted)}

    def take(self, name: PresetName, facts: ModelFacts | None) -> Updates:
        """Fill the form from a preset; it leaves the fields that no preset sets."""
        filled = self.form.fill(FinetuneOptions(**preset_values(name, facts)))
        return {self.form.fields[field]: filled[self.form.fields[field]] for field in preset_values(name, facts)}

    def tell(self, values: dict[str, Any], shown: PresetName | None, price: Price) -> Updates:
        """Say which rows are learned from, and what each preset costs with them.

        Args:
            values: Of the forms, rows included; faults in them are told elsewhere.
            shown: The preset that the page shows as chosen.
            price: Reckons the costs.
        """
        facts = price.facts
        try:
            options: FinetuneOptions | None = parse(FinetuneOptions, values, context={"stored": True})
        except SpecError:
            options = None
        choices = [(price.words(name, options or FinetuneOptions()), name) for name in PRESETS]
        chosen = preset_of(options, facts) if options else None
        # not the same value again: another may have been clicked meanwhile
        told = {self.preset: gr.update(choices=choices, **({} if chosen == shown else {"value": chosen}))}
        return told | ({self.rows: _rows(options)} if options else {})


def build_tuning() -> Tuning:
    """Build it inside the open Blocks."""
    wanted = gr.Checkbox(
        label="Tune first",
        info="Trains an adapter on rows of yours with QLoRA: the model stays as it is, held in 4 bits, and a small"
        " addition to it learns. Costs the most time and memory of all steps.",
        elem_id="tuning",
        elem_classes=["stage"],
    )
    with gr.Column(visible=False, elem_classes=["fields", "inset"]) as room:
        with gr.Row(elem_classes=["ask", "told"]):
            rows = gr.HTML("", elem_id="tuning-rows")
            door = gr.Button("Choose the rows", size="sm", scale=0, min_width=140, elem_id="tuning-door")
        choices = [(f"{preset.title}\n{preset.summary}", name) for name, preset in PRESETS.items()]
        preset = gr.Radio(
            choices, value="balanced", label="Preset", info="Sets the options below; each can be changed afterwards.",
            elem_id="tuning-preset", elem_classes=["rows"],
        )  # fmt: skip
        with gr.Column(elem_classes=["grid"], elem_id="tuning-form"):
            form = option_form(FinetuneOptions, "finetune", leave_out=OF_THE_ROWS)
    return Tuning(wanted, room, rows, door, preset, form)


def _rows(options: DatasetOptions) -> str:
    """Write which rows are learned from."""
    bundled = options.dataset == DEMO_DATASET
    name = "the bundled questions and answers" if bundled else options.dataset.rpartition("/")[2]
    part = f", {escape(options.split)}" if options.split else ""
    return f'<p class="quiet">Learns from <b>{escape(name)}</b>{part}.</p>'
