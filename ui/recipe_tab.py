"""The Recipe tab: adapters to merge, the method, their options, and the recipe as a file for whoever wants it."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from backend.merge import MergeOptions
from backend.quantize import METHODS
from ui.draft import Parts
from ui.format import lead, part
from ui.forms import OptionForm, Updates, option_form

UNQUANTIZED = "none"

_FIRST = next(iter(METHODS))
_METHODS = [(f"{module.TITLE}\n{module.SUMMARY}", name) for name, module in METHODS.items()]
_UNQUANTIZED = (
    "No quantization: keep it in 16 bit\nThe merged model alone: nothing is lost, nothing gets smaller.",
    UNQUANTIZED,
)


@dataclass(frozen=True)
class RecipeTab:
    """Its components; `pasted` holds a recipe that says more than the forms can show."""

    merging: gr.Checkbox
    adapters: gr.Column
    merge: OptionForm
    method: gr.Radio
    groups: dict[str, gr.Column]
    forms: dict[str, OptionForm]
    evaluate: gr.Checkbox
    text: gr.Textbox
    apply: gr.Button
    note: gr.HTML
    pasted: gr.State

    @property
    def fields(self) -> list[gr.components.Component]:
        """What mark() changes, whatever the method."""
        return [c for form in (self.merge, *self.forms.values()) for c in form.components]

    @property
    def components(self) -> list[gr.components.Component]:
        """Everything that the forms hold."""
        return [self.merging, self.method, self.evaluate, *self.fields]

    def outputs(self) -> list[Any]:
        """What fill() changes."""
        return [*self.components, self.adapters, *self.groups.values()]

    def stages(self, given: dict[Any, Any]) -> dict[str, dict[str, Any]]:
        """Read the stages that make a model."""
        method = self._quantizing(given)
        merge = {"merge": self.merge.values(given)} if given[self.merging] else {}
        return merge | ({"quantize": {"method": method, **self.forms[method].values(given)}} if method else {})

    def fill(self, known: Parts) -> Updates:
        """Show a recipe in the forms."""
        method = known.quantize.method if known.quantize else UNQUANTIZED  # type: ignore[attr-defined]
        filled = {self.merging: known.merge is not None, self.evaluate: known.evaluate is not None}
        filled |= self.merge.fill(known.merge) if known.merge else {}
        filled |= self.forms[method].fill(known.quantize) if known.quantize else {}
        return filled | self.switch(known.merge is not None, method)

    def take(self, adapter: str, method: str) -> Updates:
        """Merge an adapter first, and leave everything after it as it is."""
        return {self.merging: True} | self.merge.fill(MergeOptions(adapters=(adapter,))) | self.switch(True, method)

    def mark(self, given: dict[Any, Any], faults: dict[str, dict[str, str]]) -> Updates:
        """Show faults of each stage beside its fields."""
        method, marks = self._quantizing(given), self.merge.mark(faults.get("merge", {}))
        return marks | (self.forms[method].mark(faults.get("quantize", {})) if method else {})

    def switch(self, merging: bool, method: str) -> Updates:
        """Show what goes with merging or not: without it, the model is quantized in any case."""
        method = method if merging else _needed(method)
        methods = gr.update(choices=[*_METHODS, *[_UNQUANTIZED] * merging], value=method)
        return {self.adapters: gr.update(visible=merging), self.method: methods} | self.choose(method)

    def choose(self, method: str) -> Updates:
        """Show the form of a method."""
        return {group: gr.update(visible=name == method) for name, group in self.groups.items()}

    def _quantizing(self, given: dict[Any, Any]) -> str | None:
        """Give the method; None: the merged model stays as it is."""
        if not given[self.merging]:
            return _needed(given[self.method])
        return None if given[self.method] == UNQUANTIZED else str(given[self.method])


def build_recipe_tab() -> RecipeTab:
    """Build it inside the open Blocks."""
    gr.HTML(lead("Recipe", "What is made of the model: adapters are merged into it, it is quantized, or both."))
    merging = gr.Checkbox(
        label="Merge adapters first",
        info="Adds LoRA adapters, such as a QLoRA training leaves, to the weights for good: the result needs no PEFT"
        " and can be quantized. Costs one more pass over the weights.",
        elem_id="merging",
    )
    with gr.Column(visible=False, elem_classes=["fields", "inset"]) as adapters:
        merge = option_form(MergeOptions, "merge")
    gr.HTML(
        part(
            "Quantize",
            "Fewer bits a weight: a smaller model, a little less exact. The report after the run says how much.",
        )
    )
    method = gr.Radio(_METHODS, value=_FIRST, label="Method", show_label=False, elem_id="method", elem_classes=["rows"])
    groups, forms = {}, {}
    for name, module in METHODS.items():
        with gr.Column(visible=name == _FIRST, elem_classes=["fields"]) as groups[name]:
            forms[name] = option_form(module.Options, f"quantize-{name}")
    evaluate = gr.Checkbox(
        value=True,
        label="Measure the quality afterwards",
        info="Perplexity, KL divergence and agreement with the model that the result was made from, on the text chosen"
        " under Data.",
        elem_id="evaluate",
    )
    tab = RecipeTab(merging, adapters, merge, method, groups, forms, evaluate, *_file(), gr.State(None))
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    method.input(tab.choose, method, list(groups.values()), **quiet)
    merging.input(tab.switch, [merging, method], [adapters, method, *groups.values()], **quiet)
    return tab


def _file() -> tuple[gr.Textbox, gr.Button, gr.HTML]:
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
    return text, apply, note


def _needed(method: str) -> str:
    return _FIRST if method == UNQUANTIZED else method
