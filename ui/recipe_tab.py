"""The Recipe tab: the method, its options, and the recipe as a file for whoever wants it."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from backend.options import Frozen
from backend.quantize import METHODS
from ui.format import lead
from ui.forms import OptionForm, Updates, option_form


@dataclass(frozen=True)
class RecipeTab:
    """Its components; `pasted` holds a recipe that says more than the forms can show."""

    method: gr.Radio
    groups: dict[str, gr.Column]
    forms: dict[str, OptionForm]
    evaluate: gr.Checkbox
    text: gr.Textbox
    apply: gr.Button
    note: gr.HTML
    pasted: gr.State

    @property
    def components(self) -> list[gr.components.Component]:
        """Everything that the forms hold."""
        return [self.method, self.evaluate, *(c for form in self.forms.values() for c in form.components)]

    def values(self, given: dict[Any, Any]) -> dict[str, Any]:
        """Read the chosen method's form."""
        method = given[self.method]
        return {"method": method, **self.forms[method].values(given)}

    def fill(self, options: Frozen, evaluate: bool) -> Updates:
        """Show a quantize stage in the forms."""
        method = options.method  # type: ignore[attr-defined]
        return {self.method: method, self.evaluate: evaluate} | self.forms[method].fill(options) | self.choose(method)

    def mark(self, method: str, faults: dict[str, str]) -> Updates:
        """Show faults beside the fields of the chosen method."""
        return self.forms[method].mark(faults)

    def choose(self, method: str) -> Updates:
        """Show the form of a method."""
        return {group: gr.update(visible=name == method) for name, group in self.groups.items()}


def build_recipe_tab() -> RecipeTab:
    """Build it inside the open Blocks."""
    gr.HTML(
        lead(
            "Quantize",
            "Fewer bits a weight: a smaller model, a little less exact. The report after the run says how much.",
        )
    )
    first = next(iter(METHODS))
    method = gr.Radio(
        [(f"{module.TITLE}\n{module.SUMMARY}", name) for name, module in METHODS.items()],
        value=first,
        label="Method",
        show_label=False,
        elem_id="method",
        elem_classes=["rows"],
    )
    groups, forms = {}, {}
    for name, module in METHODS.items():
        with gr.Column(visible=name == first, elem_classes=["fields"]) as groups[name]:
            forms[name] = option_form(module.Options, f"quantize-{name}")
    evaluate = gr.Checkbox(
        value=True,
        label="Measure the quality afterwards",
        info="Perplexity, KL divergence and agreement with the original, on the text chosen under Data.",
        elem_id="evaluate",
    )
    with gr.Accordion("Recipe file", open=False, elem_classes=["more"]):
        gr.HTML(
            '<p class="quiet">The same recipe as YAML. <code>python -m backend run recipe.yaml</code> runs it without'
            " this page. Paste another one and use it here.</p>"
        )
        text = gr.Textbox(
            lines=14, max_lines=30, label="YAML", show_label=False, elem_id="recipe-yaml", elem_classes=["mono"]
        )
        apply = gr.Button("Use this recipe", size="sm", elem_id="recipe-apply")
        note = gr.HTML("", elem_id="recipe-note")
    tab = RecipeTab(method, groups, forms, evaluate, text, apply, note, gr.State(None))
    method.input(tab.choose, method, list(groups.values()), show_progress="hidden", api_visibility="private")
    return tab
