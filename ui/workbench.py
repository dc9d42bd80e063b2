"""Workbench: all parts of the page together, and what their handlers do across tabs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from backend.errors import SpecError
from backend.evaluate import EvaluateOptions
from backend.jobs.store import UNFINISHED
from backend.models.facts import ModelFacts
from backend.recipes import Recipe, parse_recipe
from ui.chat_tab import ChatTab
from ui.data_tab import DataTab, keep
from ui.draft import Draft, check, parts, read_yaml, with_text
from ui.forms import Updates
from ui.jobs_tab import JobsTab
from ui.model_tab import ModelTab
from ui.preview import Looking
from ui.publish_tab import PublishTab
from ui.recipe_tab import RecipeTab
from ui.sidebar import Sidebar, empty, faulty, summary
from ui.studio import Studio
from ui.users import alone


@dataclass(frozen=True)
class Workbench:
    """The page's parts; `remembered` is the recipe that the browser keeps, `seen` what the clock showed last."""

    studio: Studio
    sidebar: Sidebar
    tabs: gr.Tabs
    model: ModelTab
    data: DataTab
    recipe: RecipeTab
    jobs: JobsTab
    chat: ChatTab
    publish: PublishTab
    chat_door: gr.Tab
    publish_door: gr.Tab
    looking: Looking
    timer: gr.Timer
    remembered: gr.BrowserState
    seen: gr.State

    @property
    def paths(self) -> bool:
        """Whether recipes may name folders of this machine."""
        return alone(self.studio.settings)

    @property
    def form(self) -> list[Any]:
        """Every component in which one sets something for the recipe."""
        return [*self.data.components, *self.recipe.components]

    def inputs(self) -> set[Any]:
        """What the recipe is read from."""
        text, pasted, token = self.recipe.text, self.recipe.pasted, self.publish.token
        return {self.model.facts, self.model.revision, text, pasted, token, *self.form}

    def outputs(self) -> list[Any]:
        """What refresh() changes."""
        recipe, fields = self.recipe, [*self.data.form.components, *self.recipe.fields]
        return [self.sidebar.summary, self.sidebar.start, self.remembered, recipe.text, recipe.pasted, *fields]

    def filled(self) -> list[Any]:
        """What a whole new recipe changes."""
        recipe, data = self.recipe, [*self.data.components, self.data.note]
        return [*self.model.outputs(), *data, *recipe.outputs(), recipe.pasted, recipe.note]

    def refresh(self, given: dict[Any, Any]) -> Updates:
        """Show the recipe as the forms have it now, or beside each field why there is none."""
        marks = self.data.form.mark({}) | self.recipe.mark(given, {})
        facts = given[self.model.facts]
        if facts is None:
            return marks | {self.sidebar.summary: empty(), self.sidebar.start: gr.update(interactive=False)}
        try:
            recipe = self.draft_recipe(given)
            check(recipe, facts)
        except SpecError as e:
            faults = self.draft(given).faults(e)
            marks |= self.recipe.mark(given, faults) | self.data.form.mark(faults.get("evaluate", {}))
            return marks | {self.sidebar.summary: faulty(e), self.sidebar.start: gr.update(interactive=False)}
        return marks | {
            self.sidebar.summary: summary(recipe, facts, self.studio.settings.data),
            self.sidebar.start: gr.update(interactive=True),
            self.recipe.text: _as_typed(recipe).to_yaml(),
            self.remembered: _memory(recipe),
        }

    def draft_recipe(self, given: dict[Any, Any]) -> Recipe:
        """Give the recipe that stands: the pasted one, or that of the forms.

        Raises:
            SpecError: Every fault, each with its field.
        """
        facts: ModelFacts = given[self.model.facts]
        pasted = given[self.recipe.pasted]
        if pasted and pasted["base_model"] == facts.model:
            return parse_recipe(pasted, paths=self.paths)
        draft = self.draft(given)
        if "evaluate" in draft.stages and (missing := self.data.missing(given)):
            raise SpecError("\n".join(missing.values()), {draft.field("evaluate", k): v for k, v in missing.items()})
        return draft.recipe(self.paths)

    def draft(self, given: dict[Any, Any]) -> Draft:
        """Read the forms."""
        facts: ModelFacts = given[self.model.facts]
        evaluate = {"evaluate": self.data.values(given)} if given[self.recipe.evaluate] else {}
        return Draft(facts.model, facts.commit, self.recipe.stages(given) | evaluate, self.data.text(given))

    def stored_recipe(self, given: dict[Any, Any]) -> Recipe:
        """Give the recipe for a job: an uploaded text is copied to where it stays.

        Raises:
            SpecError: Every fault, each with its field.
        """
        if given[self.model.facts] is None:
            raise SpecError("Choose a model first.")
        recipe = self.draft_recipe(given)
        upload = self.data.text(given)
        if upload and any(isinstance(stage, EvaluateOptions) and stage.text == upload for stage in recipe.stages):
            return with_text(recipe, str(keep(Path(upload), self.studio.settings)))
        return recipe

    def apply(self, given: dict[Any, Any], token: str | None) -> Updates:
        """Take a pasted recipe: into the forms where they can show it, as it stands where they cannot."""
        return self.fill(read_yaml(given[self.recipe.text], self.paths), token)

    def remember(self, remembered: dict[str, Any] | None, token: str | None) -> Updates:
        """Take the recipe that the browser kept, or begin with the demo model."""
        if not remembered or "recipe" not in remembered:
            return self.model.choose_demo()
        filled = self.fill(parse_recipe(remembered["recipe"], paths=self.paths), token)
        return filled | (self.data.ask_again(remembered["upload"]) if remembered.get("upload") else {})

    def fill(self, recipe: Recipe, token: str | None) -> Updates:
        """Show a recipe in the forms; its model is looked at first, so a wrong one changes nothing."""
        found = self.model.choose(recipe.base_model, recipe.revision or "", token)
        known = parts(recipe)
        if known is None:
            words = "In use as it stands: it says more than the forms can show. Changing a form leaves it."
            note = f'<p class="quiet">{words}</p>'
            return {**found, self.recipe.pasted: recipe.model_dump(mode="json"), self.recipe.note: note}
        filled = self.recipe.fill(known)
        filled |= self.data.fill(known.evaluate) if known.evaluate else {}
        return {**found, **filled, self.recipe.pasted: None, self.recipe.note: ""}

    def merge(self, given: dict[Any, Any], token: str | None) -> Updates:
        """Choose the base model of the adapter that was named as a model, and merge the adapter first."""
        adapter, base = given[self.model.adapter]
        found = self.model.choose(base, "", token) | self.model.no_hits()
        taken = self.recipe.take(adapter, given[self.recipe.method])
        shown = {self.recipe.pasted: None, self.recipe.note: "", self.tabs: gr.Tabs(selected="recipe")}
        return {**found, **taken, **shown}

    def tick(self, owner: str | None, job_id: str | None, key: str | None, seen: dict[int, str]) -> Updates:
        """Show how far things are; only what has changed since the last tick is sent."""
        live = any(job.state in UNFINISHED for job in self.studio.supervisor.list(owner)) if owner else False
        updates = self.jobs.show(owner, job_id)
        if owner and key:
            updates |= self.publish.progress(self.studio.result(key, owner), owner)
        now = {component._id: repr(value) for component, value in updates.items()}
        changed = {c: value for c, value in updates.items() if seen.get(c._id) != now[c._id]}
        return changed | {self.seen: now, self.timer: gr.Timer(active=live)}


def _as_typed(recipe: Recipe) -> Recipe:
    """Give a recipe as its author may read it: what is its own where it lies, of an upload the name."""
    public = recipe.public(recipe.base_model)
    stages = tuple(
        stage if stage.stage == "evaluate" else own for own, stage in zip(recipe.stages, public.stages, strict=True)
    )
    return public.model_copy(update={"stages": stages})


def _memory(recipe: Recipe) -> dict[str, Any]:
    """Give what the browser remembers: the recipe, and of an upload the name alone."""
    data = _as_typed(recipe).model_dump(mode="json", exclude_none=True)
    names = [stage.pop("text") for stage in data["stages"] if "text" in stage]
    return {"recipe": data, "upload": names[0] if names else None}
