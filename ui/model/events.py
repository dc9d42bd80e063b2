"""What happens in the Model tab: looking for a model by words, by id, the bundled one, or one of those found."""

import gradio as gr
from gradio.events import Dependency

from backend.models.demo import first_model
from backend.models.facts import ModelFacts
from ui.kit.errors import shown
from ui.kit.events import BUSY, QUIET
from ui.kit.forms import Given, Updates
from ui.model.tab import standing
from ui.recipe_state import Workbench
from ui.visitor import Visitor, handler


def wire_model(bench: Workbench) -> None:
    """Connect the tab."""
    model = bench.model
    begun = [model.find.click, model.query.submit, model.hits.input, model.demo.click]
    # Before the events that ask: Gradio runs what hangs on one trigger in turn.
    gr.on(begun, None, None, model.note, js="() => ''", api_name="model_begin", **QUIET)
    for name, event in _wire_choices(bench).items():
        told = event.then(standing, [model.note, model.facts], model.note, api_name=f"{name}_standing", **QUIET)
        bench.refresh_after(told, name)


def _wire_choices(bench: Workbench) -> dict[str, Dependency]:
    """Connect what chooses a model, and return these events by name."""
    model, settings = bench.model, bench.studio.settings

    @handler(settings, model.note, model.offer)
    def look(query: str, typed: str, who: Visitor) -> Updates:
        return model.look(query, who.token(typed))

    @handler(settings, model.note, model.offer)
    def pick(name: str, typed: str, who: Visitor) -> Updates:
        return model.pick(name, who.token(typed))

    @handler(settings, model.note)
    def merge(given: Given, who: Visitor) -> Updates:
        return bench.merge(given, who.token(given[bench.token]))

    @handler(settings, model.note, model.offer)
    def again(facts: ModelFacts | None, revision: str, typed: str, who: Visitor) -> Updates:
        return model.choose(facts.model if facts else first_model(), revision, who.token(typed))

    demo = shown(model.note)(model.choose_demo)
    busy = {**BUSY, "show_progress_on": model.card}
    found = model.outputs()
    asked = [model.find.click, model.query.submit]
    revised = [model.revision.submit, model.revision.blur]
    inputs = [model.facts, model.revision, bench.token]
    whole = [*bench.filled(), bench.tabs]
    return {
        "model_find": gr.on(asked, look, [model.query, bench.token], found, api_name="model_find", **busy),
        "model_pick": model.hits.input(pick, [model.hits, bench.token], found, api_name="model_pick", **busy),
        "model_merge": model.offer.click(
            merge, {*bench.inputs(), model.adapter}, whole, api_name="model_merge", **busy
        ),
        "model_demo": model.demo.click(demo, None, found, api_name="model_demo", **busy),
        "model_revise": gr.on(revised, again, inputs, found, api_name="model_revise", **busy),
    }
