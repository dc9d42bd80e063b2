"""The page: a sidebar with the recipe as it stands, and one tab for each thing one does with a model.

Every event is `api_visibility="private"`. Handlers return dictionaries: component to new value.
"""

from collections.abc import Callable
from typing import Any

import gradio as gr

from backend.errors import AppError
from backend.finetune.presets import PresetName
from backend.models.demo import first_model
from backend.models.facts import ModelFacts
from backend.spec import RENDERING
from backend.stages.prepare import prepare
from ui.changes import hear, listen
from ui.chat_tab import build_chat_tab, wire_chat_tab
from ui.data_tab import build_data_tab
from ui.deploy import build_deploy
from ui.errors import shown, warning
from ui.events import BUSY, LATEST, QUIET
from ui.forms import Updates
from ui.jobs_tab import build_jobs_tab, wire_jobs_tab
from ui.model_tab import build_model_tab, standing
from ui.preview import Looking, build_looking, calibrating, learning
from ui.publish_tab import build_publish_tab, wire_publish_tab
from ui.recipe_tab import build_recipe_tab
from ui.sidebar import build_sidebar
from ui.studio import Studio
from ui.users import can_sign_in, hub_token, require_alone, require_member, require_owner, visitor
from ui.workbench import Workbench

# Gradio builds the page anew when the app has been away. Which tab was open is known to this browser tab alone.
_KEEP_TAB = """() => {
  const key = 'weightsmith-tab', all = document.querySelector('#tabs');
  const buttons = () => [...all.querySelectorAll('.tab-container button[role=tab]')];
  const name = (button) => button?.textContent.trim();
  const open = () => buttons().find((b) => b.getAttribute('aria-selected') === 'true');
  const before = buttons().find((b) => name(b) === sessionStorage.getItem(key));
  if (before && before !== open()) before.click();
  const note = () => open() && sessionStorage.setItem(key, name(open()));
  new MutationObserver(note).observe(all, { subtree: true, attributes: true, attributeFilter: ['aria-selected'] });
}"""


# The server ends an upload at its limit (413); the browser knows the size before, and can say it where one looks.
_REFUSE_LARGE = """() => {
  const most = %d, words = (file) => `'${file.name}' has ${Math.ceil(file.size / 1e6)} MB, ${Math.floor(most / 1e6)} MB`
    + ' at the most: give a part of it.';
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


def build_page(studio: Studio) -> gr.Blocks:
    """Build the page; nothing of the machine or the Hub is asked before it is shown."""
    with gr.Blocks(title="Weightsmith", fill_width=True, analytics_enabled=False, delete_cache=(600, 3600)) as page:
        bench = build_parts(studio)
        wire_jobs_tab(bench.jobs, bench.publish.token)
        wire_chat_tab(bench.chat, bench.chat_door)
        wire_publish_tab(bench.publish, bench.publish_door)
        _wire_model(bench)
        _wire_recipe(bench)
        _wire_rows(bench, bench.looking, lambda given: bool(given[bench.recipe.tuning.wanted]))
        _wire_rows(bench, bench.hearing, bench.recipe.calibrates)
        page.load(None, None, None, js=_REFUSE_LARGE % studio.settings.max_upload_bytes, **QUIET)
        _wire_start(bench)
        _wire_results(bench)
        _wire_load(page, bench)
    page.queue(default_concurrency_limit=16, max_size=256)
    return page


def build_parts(studio: Studio) -> Workbench:
    """Build everything that is seen, inside the open Blocks; nothing is connected yet."""
    with gr.Row(elem_id="top"):
        gr.HTML('<p class="brand">Weightsmith</p>')
        if can_sign_in():
            gr.LoginButton("Sign in with Hugging Face", size="sm", scale=0, elem_id="sign-in")
    with gr.Row(elem_id="frame"):
        sidebar = build_sidebar(studio)
        with gr.Column(elem_id="room", scale=1, min_width=0), gr.Tabs(selected="model", elem_id="tabs") as tabs:
            with gr.Tab("Model", id="model"):
                model = build_model_tab(studio)
            with gr.Tab("Data", id="data") as data_door:
                data = build_data_tab()
            with gr.Tab("Recipe", id="recipe"):
                recipe = build_recipe_tab()
            with gr.Tab("Jobs", id="jobs"):
                jobs = build_jobs_tab(studio)
            with gr.Tab("Chat", id="chat") as chat_door:
                chat = build_chat_tab(studio)
            with gr.Tab("Publish", id="publish") as publish_door:
                publish = build_publish_tab(studio)
                build_deploy(studio)
    rendering = {name: recipe.tuning.form.fields[name] for name in RENDERING}
    looking = build_looking(studio, data.rows, rendering.values(), learning(studio, data.rows, rendering))
    others = [*recipe.components, *data.rows.components, *data.components]
    hearing = build_looking(studio, data.calibration, others, calibrating(studio, data, recipe))
    return Workbench(
        studio, sidebar, tabs, model, data, recipe, jobs, chat, publish, data_door, chat_door, publish_door,
        looking, hearing,
        # A fixed key and secret: what the browser remembers outlives a restart. It never holds a token.
        gr.BrowserState(None, storage_key="weightsmith-recipe", secret="weightsmith"),
    )  # fmt: skip


def _wire_model(bench: Workbench) -> None:
    """Looking for a model: by words, by id, the bundled one, or one of those found."""
    model, studio = bench.model, bench.studio

    @shown(model.note, model.offer)
    def look(query: str, typed: str, oauth: gr.OAuthToken | None) -> Updates:
        return model.look(query, hub_token(studio.settings, oauth, typed))

    @shown(model.note, model.offer)
    def pick(name: str, typed: str, oauth: gr.OAuthToken | None) -> Updates:
        return model.pick(name, hub_token(studio.settings, oauth, typed))

    @shown(model.note)
    def merge(given: dict[Any, Any], oauth: gr.OAuthToken | None) -> Updates:
        return bench.merge(given, hub_token(studio.settings, oauth, given[bench.publish.token]))

    @shown(model.note, model.offer)
    def again(facts: ModelFacts | None, revision: str, typed: str, oauth: gr.OAuthToken | None) -> Updates:
        return model.choose(facts.model if facts else first_model(), revision, hub_token(studio.settings, oauth, typed))

    busy = {**BUSY, "show_progress_on": model.card}
    token = bench.publish.token
    found = [model.facts, model.revision, token]
    begun = [model.find.click, model.query.submit, model.hits.input, model.demo.click]
    # Before the events that ask: Gradio runs what hangs on one trigger in turn.
    gr.on(begun, None, None, model.note, js="() => ''", **QUIET)
    asked = [
        gr.on([model.find.click, model.query.submit], look, [model.query, token], model.outputs(), **busy),
        model.hits.input(pick, [model.hits, token], model.outputs(), **busy),
        model.offer.click(merge, {*bench.inputs(), model.adapter}, [*bench.filled(), bench.tabs], **busy),
        model.demo.click(shown(model.note)(model.choose_demo), None, model.outputs(), **busy),
        gr.on([model.revision.submit, model.revision.blur], again, found, model.outputs(), **busy),
    ]
    for event in asked:
        told = event.then(standing, [model.note, model.facts], model.note, **QUIET)
        told.then(bench.refresh, bench.inputs(), bench.outputs(), **QUIET)


def _wire_recipe(bench: Workbench) -> None:
    """The forms write the recipe, and a pasted recipe fills the forms."""
    recipe = bench.recipe

    def take(name: PresetName, facts: ModelFacts | None) -> Updates:
        return recipe.tuning.take(name, facts)

    def begin(adapters: str, method: str) -> Updates:
        return recipe.begin(True, adapters, method)

    def suit(given: dict[Any, Any]) -> Updates:
        return recipe.suit(given, given[bench.model.facts])

    @shown(recipe.note)
    def apply(given: dict[Any, Any], oauth: gr.OAuthToken | None) -> Updates:
        return bench.apply(given, hub_token(bench.studio.settings, oauth, given[bench.publish.token]))

    cleared = [bench.data.upload.clear, bench.data.rows.file.clear]
    asked = {rows.source for rows in (bench.data.rows, bench.data.calibration)}
    asked |= {rows.file for rows in (bench.data.rows, bench.data.calibration)}  # see _wire_rows()
    gr.on(
        [*(_set(field) for field in bench.form if field not in asked), *cleared],
        bench.changed,
        bench.inputs(),
        bench.outputs(),
        trigger_mode="always_last",
        **QUIET,
    )
    chosen = [
        recipe.method.input(suit, bench.inputs(), [*recipe.groups.values(), *recipe.fields], **QUIET),
        recipe.tuning.preset.input(take, [recipe.tuning.preset, bench.model.facts], recipe.tuning.outputs(), **QUIET),
        bench.data.tune.click(begin, [recipe.merge.fields["adapters"], recipe.method], recipe.switched(), **QUIET),
    ]
    for event in chosen:
        event.then(bench.changed, bench.inputs(), bench.outputs(), **QUIET)
    bench.looking.survey.change(bench.refresh, bench.inputs(), bench.outputs(), **QUIET)
    recipe.tuning.door.click(lambda: gr.Tabs(selected="data"), None, bench.tabs, **QUIET)
    kept = recipe.another.click(recipe.keep, bench.inputs(), recipe.variants, **QUIET)
    kept.then(bench.changed, bench.inputs(), bench.outputs(), **QUIET)
    applied = recipe.apply.click(apply, bench.inputs(), bench.filled(), show_progress_on=bench.sidebar.summary, **BUSY)
    applied.then(bench.refresh, bench.inputs(), bench.outputs(), **QUIET)


def _set(field: Any) -> Any:
    """Give the event of a field that somebody sets."""
    if isinstance(field, gr.Textbox):
        return field.change  # its `input` is not heard when one pastes or deletes
    return field.upload if isinstance(field, gr.File) else field.input


def _wire_rows(bench: Workbench, looking: Looking, wanted: Callable[[dict[Any, Any]], bool]) -> None:
    """Rows are looked at as soon as they are chosen, and again whenever something is set that changes them.

    Args:
        bench: The page.
        looking: What looks at them.
        wanted: Whether the recipe reads them, from the values of the page.
    """
    studio, rows = bench.studio, looking.rows

    @shown(rows.panel)
    def look(given: dict[Any, Any], profile: gr.OAuthProfile | None, oauth: gr.OAuthToken | None) -> Updates:
        owner = require_member(studio.settings, profile)
        token = hub_token(studio.settings, oauth, given[bench.publish.token])
        return looking.look(given, given[bench.model.facts], owner, token)

    @shown(rows.panel)
    def again(given: dict[Any, Any], profile: gr.OAuthProfile | None, oauth: gr.OAuthToken | None) -> Updates:
        return (
            look(given, profile, oauth) if given[looking.job] and wanted(given) else {looking.job: given[looking.job]}
        )

    @shown(rows.panel)
    def enter(given: dict[Any, Any], profile: gr.OAuthProfile | None, oauth: gr.OAuthToken | None) -> Updates:
        new = wanted(given) and not given[looking.job]
        return look(given, profile, oauth) if new else {looking.job: given[looking.job]}

    @shown(rows.panel)
    def tick(job_id: str | None, stood: Any, profile: gr.OAuthProfile | None) -> Updates:
        return looking.tick(job_id, visitor(studio.settings, profile), stood)

    inputs = {bench.model.facts, bench.publish.token, *looking.inputs(), *bench.recipe.components}
    fields = [event for field in rows.form.components for event in _left(field)]
    others = [event for field in looking.others for event in _left(field)]
    gr.on([rows.look.click, rows.file.clear, *fields], look, inputs, looking.outputs(), **LATEST)
    bench.data_door.select(enter, inputs, looking.outputs(), **LATEST)
    for event in (rows.source.input, rows.file.upload):
        chosen = event(rows.begin, rows.source, rows.outputs(), **QUIET)
        chosen.then(bench.changed, bench.inputs(), bench.outputs(), **QUIET)
        chosen.then(look, inputs, looking.outputs(), **QUIET)
    gr.on([bench.model.card.change, *others], again, inputs, looking.outputs(), **LATEST)
    hear(looking.rows.purpose.name, tick, [looking.job, looking.stood], looking.outputs())
    # What has ended before it was known here is told no more.
    looking.job.change(tick, [looking.job, looking.stood], looking.outputs(), **QUIET)


def _left(field: Any) -> list[Any]:
    """Give the events of a field that has been set, which one that is typed into is when one leaves it."""
    if isinstance(field, gr.Textbox | gr.Number):
        return [field.blur, field.submit]
    return [field.upload, field.clear] if isinstance(field, gr.File) else [field.input]


def _wire_start(bench: Workbench) -> None:
    studio, jobs, sidebar = bench.studio, bench.jobs, bench.sidebar

    def begin(given: dict[Any, Any], owner: str, oauth: gr.OAuthToken | None, agreed: bool) -> Updates:
        token = hub_token(studio.settings, oauth, given[bench.publish.token])
        told: list[str] = []
        recipe = prepare(bench.stored_recipe(given, owner), studio.settings.data, token, tell=told.append)
        if asked := sidebar.question.put(recipe, owner, agreed):
            return {sidebar.note: "", **asked}
        job_id = studio.supervisor.submit(recipe, owner, token)
        shown_ = {sidebar.note: "".join(map(warning, told)), **sidebar.question.hidden(), **jobs.show(owner, job_id)}
        return {bench.tabs: gr.Tabs(selected="jobs"), **shown_}

    @shown(sidebar.note)
    def start(given: dict[Any, Any], profile: gr.OAuthProfile | None, oauth: gr.OAuthToken | None) -> Updates:
        return begin(given, require_member(studio.settings, profile), oauth, agreed=False)

    @shown(sidebar.note, sidebar.question.room)
    def unload(given: dict[Any, Any], profile: gr.OAuthProfile | None, oauth: gr.OAuthToken | None) -> Updates:
        return begin(given, require_member(studio.settings, profile), oauth, agreed=True)

    outputs = [sidebar.note, *sidebar.question.outputs(), bench.tabs, *jobs.outputs()]
    for button, handler in ((sidebar.start, start), (sidebar.question.unload, unload)):
        button.click(handler, bench.inputs(), outputs, show_progress_on=sidebar.summary, **BUSY)


def _wire_results(bench: Workbench) -> None:
    """From a finished job to the tabs that use its result."""
    studio, jobs, chat, publish = bench.studio, bench.jobs, bench.chat, bench.publish

    @shown()
    def to_chat(job_id: str, profile: gr.OAuthProfile | None) -> Updates:
        owner = require_member(studio.settings, profile)
        results = studio.results_of(studio.supervisor.get(job_id, owner), owner)
        result = [result for result in results if result.answers][-1]
        studio.load(result, owner)
        return chat.enter(owner, result.key) | {bench.tabs: gr.Tabs(selected="chat")}

    @shown()
    def to_publish(job_id: str, repo: str, profile: gr.OAuthProfile | None) -> Updates:
        owner = require_owner(studio.settings, profile)
        result = studio.results_of(studio.supervisor.get(job_id, owner), owner)[-1]
        return publish.enter(owner, result.key, repo) | {bench.tabs: gr.Tabs(selected="publish")}

    @shown()
    def to_merge(
        job_id: str, method: str, typed: str, profile: gr.OAuthProfile | None, oauth: gr.OAuthToken | None
    ) -> Updates:
        owner = require_owner(studio.settings, profile)
        require_alone(studio.settings)
        result = studio.results_of(studio.supervisor.get(job_id, owner), owner)[-1]
        return bench.merge_tuned(result, method, hub_token(studio.settings, oauth, typed))

    jobs.chat.click(to_chat, jobs.job, [*chat.outputs(), bench.tabs], **QUIET)
    asked, taken = [jobs.job, bench.recipe.method, publish.token], [*bench.filled(), bench.tabs]
    merged = jobs.merge.click(to_merge, asked, taken, **QUIET)
    merged.then(bench.refresh, bench.inputs(), bench.outputs(), **QUIET)
    jobs.publish.click(to_publish, [jobs.job, publish.repo], [*publish.outputs(), bench.tabs], **QUIET)


def _wire_load(page: gr.Blocks, bench: Workbench) -> None:
    """After a reload everything stands as it did: jobs from the database, the recipe from the browser."""
    studio, jobs, model = bench.studio, bench.jobs, bench.model

    @shown()
    def load_jobs(job_id: str | None, profile: gr.OAuthProfile | None) -> Updates:
        return jobs.show(visitor(studio.settings, profile), job_id)

    @shown(model.note)
    def load_recipe(remembered: dict[str, Any] | None, oauth: gr.OAuthToken | None) -> Updates:
        try:
            return bench.remember(remembered, hub_token(studio.settings, oauth))
        except AppError:  # the model has gone or the recipe is of another version: begin anew
            return model.choose_demo()

    page.load(None, None, None, js=_KEEP_TAB, **QUIET)
    listen(page)
    page.load(load_jobs, jobs.job, jobs.outputs(), **QUIET)
    loaded = page.load(load_recipe, bench.remembered, bench.filled(), **QUIET)
    loaded.then(bench.refresh, bench.inputs(), bench.outputs(), **QUIET)
