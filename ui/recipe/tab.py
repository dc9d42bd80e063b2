"""The Recipe tab: training, adapters to merge, the method, their options, and the recipe as a file."""

import json
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.blocks import Block

from backend.errors import SpecError
from backend.merge.options import MergeOptions
from backend.models.facts import ModelFacts
from backend.options import Frozen, parse
from backend.quantize import METHODS
from backend.quantize.calibrated.options import CalibratedOptions
from backend.quantize.groups import GroupedOptions
from backend.quantize.targets import TARGETS, UNSURE, layout_of
from ui.jobs.variants import NAMED, variant_name
from ui.kit.events import QUIET
from ui.kit.format import lead, part
from ui.kit.forms import Given, OptionForm, Updates, Values, both, label, option_form
from ui.recipe.draft import Parts
from ui.recipe.finetune import Finetuning, build_finetuning
from ui.recipe.others import StageForm, build_others
from ui.recipe.target import build_target, choices, offered

UNQUANTIZED = "none"

_FIRST = next(iter(METHODS))
_UNQUANTIZED = (
    "No quantization: keep 16 bits\nThe merged model alone: no loss of quality, no savings.",
    UNQUANTIZED,
)


OF_OTHERS = ("adapters", "adapter_weights", "adapter_revisions", "other_base")
"""Fields of a merge for external adapters: the one that is trained before needs none of them."""

OF_DATA = ("calibration",)
"""Fields of a method that the Data tab asks for."""

_MERGING = {
    False: (
        "Merge adapters first",
        "Adds LoRA adapters, such as QLoRA produces, to the weights permanently: the result needs no PEFT and can"
        " be quantized. Takes one more pass over the weights.",
    ),
    True: (
        "Merge the fine-tuned adapter",
        "Adds the trained adapter to the weights permanently: you can chat with, measure and quantize the result. Off:"
        " the adapter alone, which is small and needs the base model.",
    ),
}


@dataclass(frozen=True)
class RecipeTab:
    """Its components; `pasted` holds a recipe that the forms cannot show."""

    finetuning: Finetuning
    merging: gr.Checkbox
    adapters: gr.Column
    merge: OptionForm
    quantizing: gr.Column
    target: gr.Radio
    method: gr.Radio
    groups: dict[str, gr.Column]
    forms: dict[str, OptionForm]
    variants: gr.CheckboxGroup
    another: gr.Button
    evaluate: gr.Checkbox
    others: dict[str, StageForm]
    text: gr.Textbox
    apply: gr.Button
    note: gr.HTML
    pasted: gr.State

    @property
    def fields(self) -> list[gr.components.Component]:
        """What mark() changes, whatever the method."""
        others = [other.form for other in self.others.values()]
        forms = (self.finetuning.form, self.merge, *self.forms.values(), *others)
        return [component for form in forms for component in form.components]

    @property
    def components(self) -> list[gr.components.Component]:
        """Everything that the forms hold."""
        return [
            self.finetuning.wanted,
            self.merging,
            self.target,
            self.method,
            self.variants,
            self.evaluate,
            *(other.wanted for other in self.others.values()),
            *self.fields,
        ]

    def outputs(self) -> list[Block]:
        """What fill() changes."""
        rooms = [other.room for other in self.others.values()]
        return list(dict.fromkeys([*self.components, *self.finetuning.outputs(), *self.switched(), *rooms]))

    def switched(self) -> list[Block]:
        """What switch() changes."""
        others = [self.merge.fields[name] for name in OF_OTHERS]
        rooms = [self.adapters, self.quantizing, *self.groups.values(), *(o.place for o in self.others.values())]
        return [self.finetuning.wanted, self.finetuning.room, self.merging, self.method, self.evaluate, *others, *rooms]

    def stages(self, given: Given) -> dict[str, dict[str, Any]]:
        """Read the stages that make an adapter or a model, without the training data."""
        finetuning = given[self.finetuning.wanted]
        method = self._quantizing(given)
        stages = {"finetune": self.finetuning.form.values(given)} if finetuning else {}
        if given[self.merging]:
            left_out = OF_OTHERS if finetuning else ()
            stages["merge"] = {k: v for k, v in self.merge.values(given).items() if k not in left_out}
        kept = (
            [json.loads(text) for text in given[self.variants] or []] if given[self.merging] or not finetuning else []
        )
        stages |= {f"quantize {i}": values for i, values in enumerate(kept, 1)}
        if method and (values := {"method": method, **self.forms[method].values(given)}) and not _among(values, kept):
            stages["quantize"] = values
        return stages

    def more(self, given: Given, whole: bool) -> dict[str, dict[str, Any]]:
        """Read the stages that have no form elsewhere.

        Args:
            given: What the form holds.
            whole: Whether the stages before make a whole model, not an adapter alone.
        """
        found = {name: other.values(given, whole) for name, other in self.others.items()}
        return {name: values for name, values in found.items() if values is not None}

    def calibrates(self, given: Given) -> bool:
        """Return whether any stage reads calibration data."""
        return any(is_calibrated(values) for name, values in self.stages(given).items() if "quantize" in name)

    def calibrated(self, given: Given) -> CalibratedOptions:
        """Return the first quantization that reads calibration data.

        Raises:
            SpecError: It is not said right, or there is none.
        """
        found = [values for name, values in self.stages(given).items() if "quantize" in name and is_calibrated(values)]
        if not found:
            raise SpecError("Nothing is calibrated: choose a method that reads text, such as GPTQ, under Recipe.")
        options = parse(METHODS[found[0]["method"]].Options, found[0])
        assert isinstance(options, CalibratedOptions)
        return options

    def keep(self, given: Given) -> Updates:
        """Keep the form as a variant, so that it is free for another one."""
        kept = [json.loads(text) for text in given[self.variants] or []]
        values = {"method": given[self.method], **self.forms[given[self.method]].values(given)}
        return {self.variants: _offered(kept if _among(values, kept) else [*kept, _known(values) or values])}

    def fill(self, known: Parts, target: str = UNSURE) -> Updates:
        """Show a recipe in the forms; it does not say where its result will run."""
        *kept, last = known.quantize or (None,)
        method = last.method if last else UNQUANTIZED
        filled: Updates = {self.evaluate: gr.update(value=known.evaluate is not None)}
        filled |= self.finetuning.form.fill(known.finetune) if known.finetune else {}
        filled |= self.merge.fill(known.merge) if known.merge else {}
        filled |= self.forms[method].fill(last) if last else {}
        for name, other in self.others.items():
            filled |= other.fill(known.others.get(name))
        filled[self.variants] = _offered([_written(options) for options in kept if options])
        filled[self.target] = gr.update(value=target)
        return both(filled, self.switch(known.finetune is not None, known.merge is not None, method, target))

    def take(self, adapter: str, method: str, target: str) -> Updates:
        """Merge an adapter, of the Hub or in a folder, first, and leave everything after it as it is."""
        options = parse(MergeOptions, {"adapters": [adapter]}, context={"paths": True})
        return both(self.merge.fill(options), self.switch(False, True, method, target))

    def mark(self, given: Given, faults: dict[str, dict[str, str]]) -> Updates:
        """Show faults of each stage beside its fields."""
        method = self._quantizing(given)
        marks = self.merge.mark(faults.get("merge", {}))
        marks |= self.finetuning.form.mark(faults.get("finetune", {}))
        for name, other in self.others.items():
            marks |= other.form.mark(faults.get(name, {}))
        return marks | (self.forms[method].mark(faults.get("quantize", {})) if method else {})

    def begin(self, finetuning: bool, adapters: str, method: str, target: str = UNSURE) -> Updates:
        """Fine-tune first and merge the adapter, or no longer; external adapters, if any, are merged then."""
        return self.switch(finetuning, finetuning or bool(adapters.strip()), method, target)

    def switch(self, finetuning: bool, merging: bool, method: str, target: str = UNSURE) -> Updates:
        """Show what goes with fine-tuning and merging; without either the model is quantized in any case."""
        whole = merging or not finetuning  # an adapter alone is neither quantized nor measured
        method = method if merging else _needed(method)
        methods = gr.update(choices=_choices(target, merging), value=method)
        label, info = _MERGING[finetuning]
        others: Updates = {self.merge.fields[name]: gr.update(visible=not finetuning) for name in OF_OTHERS}
        for other in self.others.values():
            others |= other.switch(whole)
        return {
            **self.finetuning.switch(finetuning),
            **others,
            self.merging: gr.update(value=merging, label=label, info=info),
            self.adapters: gr.update(visible=merging),
            self.quantizing: gr.update(visible=whole),
            self.evaluate: gr.update(visible=whole),
            self.method: methods,
            **self.choose(method),
        }

    def choose(self, method: str) -> Updates:
        """Show the form of a method."""
        return {group: gr.update(visible=name == method) for name, group in self.groups.items()}

    def suit(self, given: Given, facts: ModelFacts | None) -> Updates:
        """Show the form of a method, in the layout that suits where it will run and with groups that suit the model.

        Those are the largest that divide its layers, where the usual do not.
        """
        method = str(given[self.method])
        shown = self.choose(method)
        fields = self.forms[method].fields if method in self.forms else {}
        if TARGETS[given[self.target]].reader and "layout" in fields:
            offer = next(offer for offer in offered(given[self.target]) if offer.method == method)
            shown[fields["layout"]] = layout_of(offer.options)
        if "group_size" not in fields or facts is None:
            return shown
        options = METHODS[method].Options()
        assert isinstance(options, GroupedOptions)
        there = options.group_sizes(facts)
        return shown | ({fields["group_size"]: there[0]} if given[fields["group_size"]] not in there else {})

    def answer(self, given: Given, facts: ModelFacts | None) -> Updates:
        """Offer the methods in the order that suits where the result will run, and choose the first of them."""
        target, method = given[self.target], given[self.method]
        if TARGETS[target].reader and method != UNQUANTIZED:
            method = offered(target)[0].method
        listed = gr.update(choices=_choices(target, given[self.merging]), value=method)
        return {self.method: listed} | self.suit({**given, self.method: method}, facts)

    def _quantizing(self, given: Given) -> str | None:
        """Return the method; None: the adapter, or the merged model, stays as it is."""
        if not given[self.merging]:
            return None if given[self.finetuning.wanted] else _needed(given[self.method])
        return None if given[self.method] == UNQUANTIZED else str(given[self.method])


def build_recipe_tab() -> RecipeTab:
    """Build it inside the open Blocks."""
    gr.HTML(lead("Recipe", "Choose the steps: fine-tune, merge adapters, quantize."))
    finetuning = build_finetuning()
    label, info = _MERGING[False]
    merging = gr.Checkbox(label=label, info=info, elem_id="merging", elem_classes=["stage"])
    with gr.Column(visible=False, elem_classes=["fields", "inset"]) as adapters:
        merge = option_form(MergeOptions, "merge")
    with gr.Column() as quantizing:
        methods = _methods()
    evaluate = gr.Checkbox(
        value=True,
        label="Measure the quality afterwards",
        info="Perplexity, KL divergence and agreement with the model it was made from, on the text chosen under Data.",
        elem_id="evaluate",
    )
    others = build_others()
    tab = RecipeTab(
        finetuning, merging, adapters, merge, quantizing, *methods, evaluate, others, *_file(), gr.State(None)
    )
    method = tab.method
    finetuning.wanted.input(
        tab.begin,
        [finetuning.wanted, merge.fields["adapters"], method, tab.target],
        tab.switched(),
        api_name="recipe_finetune",
        **QUIET,
    )
    switched = [finetuning.wanted, merging, method, tab.target]
    merging.input(tab.switch, switched, tab.switched(), api_name="recipe_merge", **QUIET)
    return tab


def _methods() -> tuple[gr.Radio, gr.Radio, dict[str, gr.Column], dict[str, OptionForm], gr.CheckboxGroup, gr.Button]:
    """Build the question of where it will run, the methods with their forms, and the variants made beside one."""
    gr.HTML(
        part(
            "Quantize",
            "Fewer bits per weight: a smaller, slightly less accurate model. The report after the run says how much.",
        )
    )
    target = build_target()
    method = gr.Radio(
        _choices(UNSURE, False), value=_FIRST, label="Method", show_label=False, elem_id="method", elem_classes=["rows"]
    )
    groups, forms = {}, {}
    for name, row in METHODS.items():
        with gr.Column(visible=name == _FIRST, elem_classes=["fields"]) as groups[name]:
            forms[name] = option_form(row.Options, f"quantize-{name}", leave_out=OF_DATA)
    variants = gr.CheckboxGroup(
        [], visible=False, label="Variants", elem_id="variants",
        info="Made from the same model as the method above, and compared with it in one table. Variants that differ in"
        " layout alone are calibrated once.",
    )  # fmt: skip
    another = gr.Button("Keep this and add another variant", size="sm", scale=0, elem_id="variant-add")
    return target, method, groups, forms, variants, another


def _file() -> tuple[gr.Textbox, gr.Button, gr.HTML]:
    with gr.Accordion("Recipe file", open=False, elem_classes=["more"]):
        gr.HTML(
            '<p class="quiet">The same recipe as YAML. <code>python -m backend run recipe.yaml</code> runs it without'
            " this page. To use another recipe, paste it here.</p>"
        )
        text = gr.Textbox(
            lines=14, max_lines=30, label="YAML", show_label=False, elem_id="recipe-yaml", elem_classes=["mono"]
        )
        apply = gr.Button("Use this recipe", size="sm", elem_id="recipe-apply")
        note = gr.HTML("", elem_id="recipe-note")
    return text, apply, note


def is_calibrated(values: Values) -> bool:
    """Return whether typed options are those of a method that reads calibration data."""
    return issubclass(METHODS[values["method"]].Options, CalibratedOptions)


def _choices(target: str, merging: bool) -> list[tuple[str, str]]:
    """Return what can become of the weights; those of a merge may stay as they are."""
    return [*choices(target), _UNQUANTIZED] if merging else choices(target)


def _offered(kept: list[dict[str, Any]]) -> Any:
    """Show variants, all of them chosen."""
    choices = [(_title(values), json.dumps(values)) for values in kept]
    return gr.update(choices=choices, value=[value for _, value in choices], visible=bool(kept))


def _title(values: Values) -> str:
    """Name a variant, with the options that are not the usual ones."""
    more = [f"{label(name)}: {value}" for name, value in values.items() if name not in ("method", *NAMED)]
    return ", ".join([variant_name(_known(values, whole=True) or values), *more])


def _known(values: Values, whole: bool = False) -> dict[str, Any] | None:
    """Return typed options as understood, the usual ones left out unless the whole is wanted; None if wrong."""
    try:
        options = parse(METHODS[values["method"]].Options, values, context={"stored": True})
    except SpecError:
        return None
    return options.model_dump(mode="json") if whole else _written(options)


def _written(options: Frozen) -> Values:
    """Return options that differ from the usual, but for what the Data tab says."""
    said = options.model_dump(mode="json", exclude_defaults=True)
    rest = {name: value for name, value in said.items() if name not in OF_DATA}
    return {"method": options.method, **rest}  # type: ignore[attr-defined]


def _among(values: Values, kept: list[dict[str, Any]]) -> bool:
    """Return whether a variant has the same options."""
    known = _known(values)
    return known is not None and known in kept


def _needed(method: str) -> str:
    return _FIRST if method == UNQUANTIZED else method
