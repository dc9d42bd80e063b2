"""Stages that no tab asks for in a way of its own: for each a check box, and a form of what it can be told."""

from dataclasses import dataclass

import gradio as gr
from gradio.blocks import Block

from backend.recipes import STAGES
from backend.stage import Stage
from backend.stages import STEPS
from ui.kit.events import QUIET
from ui.kit.forms import Given, OptionForm, Updates, Values, option_form

OWN = ("finetune", "merge", "quantize", "evaluate")
"""Stages that the Recipe tab and the Data tab ask for in ways of their own."""


@dataclass(frozen=True)
class StageForm:
    """The components of one stage."""

    place: gr.Column
    wanted: gr.Checkbox
    room: gr.Column
    form: OptionForm

    @property
    def components(self) -> list[gr.components.Component]:
        """What sets something in the recipe."""
        return [self.wanted, *self.form.components]

    def outputs(self) -> list[Block]:
        """What fill() and switch() change."""
        return [self.place, self.room, *self.components]

    def values(self, given: Given, whole: bool) -> Values | None:
        """Return the options as typed; None where the stage is not wanted, or the recipe makes no model for it."""
        return self.form.values(given) if given[self.wanted] and self._fits(whole) else None

    def fill(self, stage: Stage | None) -> Updates:
        """Show a stage of a recipe, or that the recipe has none."""
        filled = self.form.fill(stage) if stage else {}
        return filled | {self.wanted: stage is not None, self.room: gr.update(visible=stage is not None)}

    def switch(self, whole: bool) -> Updates:
        """Offer the stage where the recipe makes what it works on.

        Args:
            whole: Whether it makes a whole model, not an adapter alone.
        """
        return {self.place: gr.update(visible=self._fits(whole))}

    def _fits(self, whole: bool) -> bool:
        options = self.form.options
        assert issubclass(options, Stage)
        return whole or not options.whole


def build_others() -> dict[str, StageForm]:
    """Build a form for each stage that has none elsewhere, inside the open Blocks."""
    return {name: _build(name, models[0]) for name, models in STAGES.items() if name not in OWN}


def _build(name: str, options: type[Stage]) -> StageForm:
    step = STEPS[name]
    title, _ = step.words(options.model_validate({}))
    with gr.Column() as place:
        wanted = gr.Checkbox(label=title, info=step.summary, elem_id=name)
        with gr.Column(visible=False, elem_classes=["fields", "inset"]) as room:
            form = option_form(options, name)
    wanted.input(lambda on: gr.update(visible=on), wanted, room, api_name=f"recipe_{name}", **QUIET)
    return StageForm(place, wanted, room, form)
