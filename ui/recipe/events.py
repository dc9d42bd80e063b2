"""What happens in the Recipe tab and the sidebar: forms write the recipe, a pasted one fills them, a button starts."""

from typing import Any

import gradio as gr

from backend.errors import AppError
from backend.finetune.presets import PresetName
from backend.models.facts import ModelFacts
from backend.stages.prepare import prepare
from ui.kit.errors import warning
from ui.kit.events import BUSY, LATEST, QUIET
from ui.kit.forms import Given, Updates
from ui.recipe_state import Workbench
from ui.visitor import Visitor, handler


def wire_recipe(page: gr.Blocks, bench: Workbench) -> None:
    """Connect the tab; after a reload the recipe is the one that the browser keeps."""
    _wire_forms(bench)
    _wire_choices(bench)
    _wire_file(bench)
    _wire_load(page, bench)


def _wire_forms(bench: Workbench) -> None:
    cleared = [bench.data.upload.clear, bench.data.rows.file.clear]
    both = (bench.data.rows, bench.data.calibration)  # what names rows is heard by the Data tab
    left_out = {field for rows in both for field in (rows.source, rows.file)}
    changed = [*(_set(field) for field in bench.form if field not in left_out), *cleared]
    gr.on(changed, bench.changed, bench.inputs(), bench.outputs(), api_name="recipe_changed", **LATEST)
    survey = bench.training_inspection.survey
    survey.change(bench.refresh, bench.inputs(), bench.outputs(), api_name="recipe_surveyed", **QUIET)


def _set(field: Any) -> Any:
    """Return the event of a field that somebody sets."""
    if isinstance(field, gr.Textbox):
        return field.change  # its `input` is not heard when one pastes or deletes
    return field.upload if isinstance(field, gr.File) else field.input


def _wire_choices(bench: Workbench) -> None:
    recipe, finetuning = bench.recipe, bench.recipe.finetuning

    def take(name: PresetName, facts: ModelFacts | None) -> Updates:
        return finetuning.take(name, facts)

    def begin(adapters: str, method: str, target: str) -> Updates:
        return recipe.begin(True, adapters, method, target)

    def suit(given: Given) -> Updates:
        return recipe.suit(given, given[bench.model.facts])

    def answer(given: Given) -> Updates:
        return recipe.answer(given, given[bench.model.facts])

    suited = [*recipe.groups.values(), *recipe.fields]
    begun = [recipe.merge.fields["adapters"], recipe.method, recipe.target]
    answered = [recipe.method, *suited]
    taken = [finetuning.preset, bench.model.facts]
    chosen = {
        "recipe_method": recipe.method.input(suit, bench.inputs(), suited, api_name="recipe_method", **QUIET),
        "recipe_target": recipe.target.input(answer, bench.inputs(), answered, api_name="recipe_target", **QUIET),
        "recipe_preset": finetuning.preset.input(take, taken, finetuning.outputs(), api_name="recipe_preset", **QUIET),
        "data_finetune": bench.data.finetune.click(begin, begun, recipe.switched(), api_name="data_finetune", **QUIET),
        "recipe_keep": recipe.another.click(
            recipe.keep, bench.inputs(), recipe.variants, api_name="recipe_keep", **QUIET
        ),
    }
    for name, event in chosen.items():
        bench.change_after(event, name)
    finetuning.door.click(lambda: gr.Tabs(selected="data"), None, bench.tabs, api_name="recipe_to_data", **QUIET)


def _wire_file(bench: Workbench) -> None:
    recipe = bench.recipe

    @handler(bench.studio.settings, recipe.note)
    def apply(given: Given, who: Visitor) -> Updates:
        return bench.apply(given, who.token(given[bench.token]))

    busy = {**BUSY, "show_progress_on": bench.sidebar.summary}
    applied = recipe.apply.click(apply, bench.inputs(), bench.filled(), api_name="recipe_apply", **busy)
    bench.refresh_after(applied, "recipe_apply")


def _wire_load(page: gr.Blocks, bench: Workbench) -> None:
    model = bench.model

    @handler(bench.studio.settings, model.note)
    def load(remembered: dict[str, Any] | None, who: Visitor) -> Updates:
        try:
            return bench.remember(remembered, who.token())
        except AppError:  # the model has gone or the recipe is of another version: begin anew
            return model.choose_demo()

    loaded = page.load(load, bench.remembered, bench.filled(), api_name="recipe_load", **QUIET)
    bench.refresh_after(loaded, "recipe_load")


def wire_sidebar(bench: Workbench) -> None:
    """Connect the one button that starts the recipe, and the question that may come before."""
    studio = bench.studio
    jobs = bench.jobs
    sidebar = bench.sidebar

    def begin(given: Given, owner: str, token: str | None, agreed: bool) -> Updates:
        told: list[str] = []
        recipe = prepare(bench.stored_recipe(given, owner), studio.settings.data, token, tell=told.append)
        if asked := sidebar.question.put(recipe, owner, agreed):
            return {sidebar.note: "", **asked}
        job_id = studio.supervisor.submit(recipe, owner, token)
        shown = {sidebar.note: "".join(map(warning, told)), **sidebar.question.hidden(), **jobs.show(owner, job_id)}
        return {bench.tabs: gr.Tabs(selected="jobs"), **shown}

    @handler(studio.settings, sidebar.note)
    def start(given: Given, who: Visitor) -> Updates:
        return begin(given, who.member(), who.token(given[bench.token]), agreed=False)

    @handler(studio.settings, sidebar.note, sidebar.question.room)
    def unload(given: Given, who: Visitor) -> Updates:
        return begin(given, who.member(), who.token(given[bench.token]), agreed=True)

    outputs = [sidebar.note, *sidebar.question.outputs(), bench.tabs, *jobs.outputs()]
    busy = {**BUSY, "show_progress_on": sidebar.summary}
    sidebar.start.click(start, bench.inputs(), outputs, api_name="recipe_start", **busy)
    sidebar.question.unload.click(unload, bench.inputs(), outputs, api_name="recipe_unload_and_start", **busy)
