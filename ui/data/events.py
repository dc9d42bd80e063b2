"""What happens in the Data tab: rows are inspected once they are chosen, and when something else changes them."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from ui.changes import hear
from ui.data.look import Inspection, Stood
from ui.kit.events import LATEST, QUIET
from ui.kit.forms import Given, Updates
from ui.recipe_state import Workbench
from ui.visitor import Visitor, handler

# The server ends an upload at its limit (413); the browser knows the size before, and can say it where one looks.
_REFUSE_LARGE = """() => {
  const most = %d, words = (file) => `'${file.name}' has ${Math.ceil(file.size / 1e6)} MB, at most`
    + ` ${Math.floor(most / 1e6)} MB can be uploaded: choose a part of it.`;
  const refuse = (event, files, block) => {
    const place = document.querySelector(`#${block.id}-refused`), large = [...files].find((file) => file.size > most);
    place.replaceChildren();
    if (!large) return;
    event.preventDefault(); event.stopImmediatePropagation();
    const text = document.createElement('p');
    text.className = 'fault'; text.setAttribute('role', 'alert'); text.textContent = words(large);
    place.append(text);
  };
  const block = (event) => event.target.closest?.('#rows-upload, #calibration-upload, #data-upload');
  const hear = (name, files) => document.addEventListener(name, (event) => {
    if (block(event)) refuse(event, files(event) ?? [], block(event));
  }, true);
  hear('change', (event) => event.target.files);
  hear('drop', (event) => event.dataTransfer?.files);
}"""


def wire_data(page: gr.Blocks, bench: Workbench) -> None:
    """Connect the tab."""
    most = bench.studio.settings.max_upload_bytes
    page.load(None, None, None, js=_REFUSE_LARGE % most, api_name="data_refuse_large", **QUIET)
    _wire_rows(bench, bench.training_inspection, lambda given: bool(given[bench.recipe.finetuning.wanted]))
    _wire_rows(bench, bench.calibration_inspection, bench.recipe.calibrates)
    _wire_news(bench, bench.training_inspection)
    _wire_news(bench, bench.calibration_inspection)


def _wire_rows(bench: Workbench, inspection: Inspection, wanted: Callable[[Given], bool]) -> None:
    """Connect one form of rows.

    Args:
        bench: The page.
        inspection: Of these rows.
        wanted: Says whether the recipe reads them, from the values of the page.
    """
    settings = bench.studio.settings
    rows = inspection.rows
    name = rows.purpose.name

    def see(given: Given, who: Visitor) -> Updates:
        return inspection.look(given, given[bench.model.facts], who.member(), who.token(given[bench.token]))

    @handler(settings, rows.panel)
    def look(given: Given, who: Visitor) -> Updates:
        return see(given, who)

    @handler(settings, rows.panel)
    def again(given: Given, who: Visitor) -> Updates:
        job = given[inspection.job]
        return see(given, who) if job and wanted(given) else {inspection.job: job}

    @handler(settings, rows.panel)
    def enter(given: Given, who: Visitor) -> Updates:
        job = given[inspection.job]
        return see(given, who) if wanted(given) and not job else {inspection.job: job}

    inputs = {bench.model.facts, bench.token, *inspection.inputs(), *bench.recipe.components}
    outputs = inspection.outputs()
    fields = [event for field in rows.form.components for event in _left(field)]
    others = [event for field in inspection.others for event in _left(field)]
    gr.on([rows.look.click, rows.file.clear, *fields], look, inputs, outputs, api_name=f"{name}_look", **LATEST)
    bench.data_door.select(enter, inputs, outputs, api_name=f"{name}_enter", **LATEST)
    for event, chosen in ((rows.source.input, f"{name}_source"), (rows.file.upload, f"{name}_upload")):
        begun = event(rows.begin, rows.source, rows.outputs(), api_name=chosen, **QUIET)
        bench.change_after(begun, chosen)
        begun.then(look, inputs, outputs, api_name=f"{chosen}_look", **QUIET)
    gr.on([bench.model.card.change, *others], again, inputs, outputs, api_name=f"{name}_again", **LATEST)


def _wire_news(bench: Workbench, inspection: Inspection) -> None:
    name = inspection.rows.purpose.name

    @handler(bench.studio.settings, inspection.rows.panel)
    def tick(job_id: str | None, stood: Stood | None, who: Visitor) -> Updates:
        return inspection.tick(job_id, who.owner, stood)

    stood = [inspection.job, inspection.stood]
    hear(name, tick, stood, inspection.outputs())
    # What has ended before it was known here is told no more.
    inspection.job.change(tick, stood, inspection.outputs(), api_name=f"{name}_begun", **QUIET)


def _left(field: Any) -> list[Any]:
    """Return the events that end a change of a field; for a text field that is leaving it."""
    if isinstance(field, gr.Textbox | gr.Number):
        return [field.blur, field.submit]
    return [field.upload, field.clear] if isinstance(field, gr.File) else [field.input]
