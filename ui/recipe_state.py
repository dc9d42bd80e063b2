"""The recipe as it stands: all parts of the page together, and what their handlers do across tabs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.blocks import Block
from gradio.events import Dependency

from backend.data.options import DEMO_DATASET
from backend.errors import SpecError
from backend.models.facts import ModelFacts
from backend.quantize.targets import TARGETS, UNSURE
from backend.recipes import Recipe, parse_recipe
from ui.chat.tab import ChatTab
from ui.data.look import Inspection
from ui.data.rows_form import USUAL
from ui.data.tab import DataTab
from ui.jobs.tab import JobsTab
from ui.kit.events import QUIET
from ui.kit.forms import Given, Updates, both
from ui.model.tab import ModelTab
from ui.publish.tab import PublishTab
from ui.recipe.draft import (
    NO_UPLOADS,
    Draft,
    Uploads,
    in_order,
    parts,
    read_yaml,
    suits,
    with_uploads,
)
from ui.recipe.finetune import Price
from ui.recipe.sidebar import Sidebar, empty, faulty, summary
from ui.recipe.tab import RecipeTab, is_calibrated
from ui.studio import Result, Studio
from ui.visitor import alone

_ROWS = "calibration."
"""Begins the name of a fault in what calibration reads."""


@dataclass(frozen=True)
class Workbench:
    """The page's parts.

    Attributes:
        training_inspection: Shows what is found in the training data.
        calibration_inspection: Shows what calibration reads.
        remembered: The recipe that the browser keeps.
    """

    studio: Studio
    sidebar: Sidebar
    tabs: gr.Tabs
    model: ModelTab
    data: DataTab
    recipe: RecipeTab
    jobs: JobsTab
    chat: ChatTab
    publish: PublishTab
    data_door: gr.Tab
    chat_door: gr.Tab
    publish_door: gr.Tab
    training_inspection: Inspection
    calibration_inspection: Inspection
    remembered: gr.BrowserState

    @property
    def token(self) -> gr.Textbox:
        """The token that every tab uses."""
        return self.publish.token

    @property
    def paths(self) -> bool:
        """Return whether recipes may name folders of this machine."""
        return alone(self.studio.settings)

    @property
    def form(self) -> list[Block]:
        """Every component that sets something in the recipe."""
        data = self.data
        return [*data.components, *data.rows.components, *data.calibration.components, *self.recipe.components]

    def inputs(self) -> set[Block]:
        """What the recipe is read from."""
        text = self.recipe.text
        pasted = self.recipe.pasted
        token = self.token
        shown = {self.training_inspection.survey, self.recipe.finetuning.preset}
        return {self.model.facts, self.model.revision, text, pasted, token, *shown, *self.form}

    def outputs(self) -> list[Block]:
        """What refresh() changes."""
        data, recipe = self.data, self.recipe
        told = [recipe.finetuning.preset, recipe.finetuning.rows, *data.switched()]
        forms = (data.form, data.rows.form, data.calibration.form)
        fields = [*(component for form in forms for component in form.components), *recipe.fields]
        return [self.sidebar.summary, self.sidebar.start, self.remembered, recipe.text, recipe.pasted, *told, *fields]

    def filled(self) -> list[Block]:
        """What a whole new recipe changes."""
        recipe, data = self.recipe, self.data
        of_data = [*data.components, data.note, *data.rows.outputs(), *data.calibration.outputs()]
        return [*self.model.outputs(), *of_data, *recipe.outputs(), recipe.pasted, recipe.note]

    def refresh_after(self, event: Dependency, name: str) -> None:
        """Show the recipe anew once an event of this name has happened; inside the open Blocks."""
        event.then(self.refresh, self.inputs(), self.outputs(), api_name=f"{name}_refresh", **QUIET)

    def change_after(self, event: Dependency, name: str) -> None:
        """Show the recipe anew once an event of this name has set something; inside the open Blocks."""
        event.then(self.changed, self.inputs(), self.outputs(), api_name=f"{name}_changed", **QUIET)

    def changed(self, given: Given) -> Updates:
        """Show the recipe of the forms now that one of them has changed: a pasted one is discarded."""
        return self.refresh({**given, self.recipe.pasted: None}) | {self.recipe.pasted: None}

    def refresh(self, given: Given) -> Updates:
        """Show the recipe of the forms, or beside each field what is wrong with it."""
        facts = given[self.model.facts]
        shown = self.data.switch(given[self.recipe.finetuning.wanted], self.recipe.calibrates(given))
        marks = self._mark(given, {}) | shown
        if facts is None:
            return marks | {self.sidebar.summary: empty(), self.sidebar.start: gr.update(interactive=False)}
        draft = self.draft(given)
        survey = given[self.training_inspection.survey]
        if "finetune" in draft.stages:
            finetuning = self.recipe.finetuning
            rows = {"dataset": draft.uploads.rows} if draft.uploads.rows else {}
            values = draft.stages["finetune"] | rows
            marks |= finetuning.tell(values, given[finetuning.preset], Price(facts, self.studio.settings.data, survey))
        try:
            recipe = self.draft_recipe(given)
            suits(recipe, facts)
        except SpecError as e:
            marks |= self._mark(given, draft.faults(e))
            return marks | {self.sidebar.summary: faulty(e), self.sidebar.start: gr.update(interactive=False)}
        return marks | {
            self.sidebar.summary: summary(recipe, facts, self.studio.settings.data, survey),
            self.sidebar.start: gr.update(interactive=True),
            self.recipe.text: _as_typed(recipe, draft.uploads).to_yaml(),
            self.remembered: _memory(recipe, draft.uploads, given[self.recipe.target]),
        }

    def _mark(self, given: Given, faults: dict[str, dict[str, str]]) -> Updates:
        """Show faults by stage beside the fields of every tab."""
        data = self.data
        of_data = data.form.mark(faults.get("evaluate", {})) | data.rows.mark(faults.get("finetune", {}))
        of_rows: dict[str, str] = {}
        for found in faults.values():
            of_rows |= {name.removeprefix(_ROWS): text for name, text in found.items() if name.startswith(_ROWS)}
        of_data |= data.calibration.mark(of_rows)
        return of_data | self.recipe.mark(given, faults)

    def draft_recipe(self, given: Given) -> Recipe:
        """Return the recipe that stands: the pasted one, or that of the forms.

        Raises:
            SpecError: Every fault, each with its field.
        """
        facts: ModelFacts = given[self.model.facts]
        pasted = given[self.recipe.pasted]
        if pasted and pasted["base_model"] == facts.model:
            return parse_recipe(pasted, paths=self.paths)
        draft = self.draft(given)
        asked = {"evaluate": self.data.missing(given), "finetune": self.data.rows.missing(given)}
        if unsaid := self.data.calibration.missing(given):
            calibrated = (name for name, values in draft.stages.items() if "calibration" in values)
            asked |= {name: {_ROWS + field: text for field, text in unsaid.items()} for name in calibrated}
        missing = {draft.field(s, k): v for s in draft.stages for k, v in asked.get(s, {}).items()}
        if missing:
            raise SpecError("\n".join(missing.values()), missing)
        return draft.recipe(self.paths)

    def draft(self, given: Given) -> Draft:
        """Read the forms."""
        facts: ModelFacts = given[self.model.facts]
        stages = self.recipe.stages(given)
        data = self.data
        if "finetune" in stages:
            stages["finetune"] = data.rows.values(given) | stages["finetune"]
        if given[data.calibration.source] != USUAL:
            # an upload takes the place of the bundled rows, as where rows are learned from
            rows = {"calibration": {"dataset": DEMO_DATASET} | data.calibration.values(given)}
            calibrated = [n for n, values in stages.items() if n.startswith("quantize") and is_calibrated(values)]
            stages |= {name: stages[name] | rows for name in calibrated}
        whole = any(name.split()[0] in ("merge", "quantize") for name in stages)
        if given[self.recipe.evaluate] and whole:
            stages["evaluate"] = data.values(given)
        stages = in_order(stages | self.recipe.more(given, whole))
        uploads = Uploads(data.text(given), data.rows.upload(given), data.calibration.upload(given))
        return Draft(facts.model, facts.commit, stages, uploads)

    def stored_recipe(self, given: Given, owner: str) -> Recipe:
        """Return the recipe for an owner's job, with uploads moved to where they are kept.

        Raises:
            SpecError: Every fault, each with its field.
        """
        if given[self.model.facts] is None:
            raise SpecError("Choose a model first.")
        recipe = self.draft_recipe(given)
        used = self.draft(given).uploads.used(recipe)
        uploads = self.studio.supervisor.uploads
        return with_uploads(recipe, Uploads(*(path and str(uploads.keep(Path(path), owner)) for path in used)))

    def apply(self, given: Given, token: str | None) -> Updates:
        """Take a pasted recipe: into the forms if they can show it, otherwise as it stands."""
        return self.fill(read_yaml(given[self.recipe.text], self.paths), token, target=given[self.recipe.target])

    def remember(self, remembered: dict[str, Any] | None, token: str | None) -> Updates:
        """Take the recipe that the browser kept, or begin with the demo model."""
        if not remembered or "recipe" not in remembered:
            return self.model.choose_demo()
        recipe = parse_recipe(remembered["recipe"], paths=self.paths)
        names = Uploads(*(remembered.get(name) for name in Uploads._fields))
        target = str(remembered.get("target"))
        filled = self.fill(recipe, token, names, target if target in TARGETS else UNSURE)
        data = self.data
        asked = data.ask_again(names.text) if names.text else {}
        asked |= data.rows.ask_again(names.rows) if names.rows else {}
        asked |= data.calibration.ask_again(names.calibration) if names.calibration else {}
        return both(filled, asked)

    def fill(self, recipe: Recipe, token: str | None, uploads: Uploads = NO_UPLOADS, target: str = UNSURE) -> Updates:
        """Show a recipe in the forms; its model is looked at first, so a wrong one changes nothing."""
        found = self.model.choose(recipe.base_model, recipe.revision or "", token)
        known = parts(recipe, uploads)
        if known is None:
            words = "This recipe is in use, but the form cannot show all of it. Changing the form discards it."
            note = f'<p class="quiet">{words}</p>'
            return {**found, self.recipe.pasted: recipe.model_dump(mode="json"), self.recipe.note: note}
        filled = self.recipe.fill(known, target)
        filled |= self.data.fill(known.evaluate) if known.evaluate else {}
        filled |= self.data.rows.fill(known.finetune) if known.finetune else {}
        filled |= self.data.calibration.fill(known.calibration) if known.calibration else {}
        return {**found, **filled, self.recipe.pasted: None, self.recipe.note: ""}

    def merge(self, given: Given, token: str | None) -> Updates:
        """Choose the base model of the adapter that was named as a model, and merge the adapter first."""
        adapter, base = given[self.model.adapter]
        found = self.model.choose(base, "", token) | self.model.no_hits()
        taken = self.recipe.take(adapter, given[self.recipe.method], given[self.recipe.target])
        shown = {self.recipe.pasted: None, self.recipe.note: "", self.tabs: gr.Tabs(selected="recipe")}
        return {**found, **taken, **shown}

    def merge_finetuned(self, result: Result, method: str, token: str | None, target: str = UNSURE) -> Updates:
        """Choose the model that an adapter was trained on, and merge the adapter first."""
        recipe = result.job.read_spec()
        assert isinstance(recipe, Recipe)
        found = self.model.choose(recipe.base_model, recipe.revision or "", token) | self.model.no_hits()
        shown = {self.recipe.pasted: None, self.recipe.note: "", self.tabs: gr.Tabs(selected="recipe")}
        return {**found, **self.recipe.take(str(result.folder), method, target), **shown}


def _as_typed(recipe: Recipe, uploads: Uploads) -> Recipe:
    """Return a recipe as its author may read it: with the names of uploads, not their paths."""
    return with_uploads(recipe, uploads.used(recipe).names)


def _memory(recipe: Recipe, uploads: Uploads, target: str) -> dict[str, Any]:
    """Return what the browser remembers: the recipe, only the names of uploads, and where the result will run."""
    used = uploads.used(recipe)
    data = with_uploads(recipe, used.names).model_dump(mode="json", exclude_none=True)
    uploaded = {"evaluate": used.text and "text", "finetune": used.rows and "dataset"}
    for stage in data["stages"]:
        if name := uploaded.get(stage["stage"]):
            stage.pop(name)
        if used.calibration and "calibration" in stage:
            stage["calibration"]["dataset"] = DEMO_DATASET
    return {"recipe": data, **used.names._asdict(), "target": target}
