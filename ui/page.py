"""The page: a sidebar with the recipe as it stands, and one tab for each thing one does with a model.

Every event is `api_visibility="private"`. Handlers return dictionaries: component to new value.
"""

import gradio as gr

from backend.spec import RENDERING
from ui.changes import listen
from ui.chat.events import wire_chat
from ui.chat.tab import build_chat_tab
from ui.data.events import wire_data
from ui.data.look import build_inspection, calibrating, learning
from ui.data.tab import build_data_tab
from ui.jobs.events import wire_jobs
from ui.jobs.tab import build_jobs_tab
from ui.kit.events import QUIET
from ui.model.events import wire_model
from ui.model.tab import build_model_tab
from ui.publish.deploy import build_deploy
from ui.publish.events import wire_publish
from ui.publish.tab import build_publish_tab
from ui.recipe.events import wire_recipe, wire_sidebar
from ui.recipe.sidebar import build_sidebar
from ui.recipe.tab import build_recipe_tab
from ui.recipe_state import Workbench
from ui.studio import Studio
from ui.visitor import can_sign_in

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


def build_page(studio: Studio) -> gr.Blocks:
    """Build the page; nothing of the machine or the Hub is asked before it is shown."""
    page = gr.Blocks(title="Weightsmith", fill_width=True, analytics_enabled=False, delete_cache=(600, 3600))
    with page:
        bench = build_parts(studio)
        page.load(None, None, None, js=_KEEP_TAB, api_name="keep_tab", **QUIET)
        listen(page)
        wire_model(bench)
        wire_recipe(page, bench)
        wire_data(page, bench)
        wire_sidebar(bench)
        wire_jobs(page, bench)
        wire_chat(bench.chat, bench.chat_door)
        wire_publish(bench.publish, bench.publish_door)
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
    rendering = {name: recipe.finetuning.form.fields[name] for name in RENDERING}
    training = build_inspection(studio, data.rows, rendering.values(), learning(studio, data.rows, rendering))
    others = [*recipe.components, *data.rows.components, *data.components]
    calibration = build_inspection(studio, data.calibration, others, calibrating(studio, data, recipe))
    return Workbench(
        studio, sidebar, tabs, model, data, recipe, jobs, chat, publish, data_door, chat_door, publish_door,
        training, calibration,
        # A fixed key and secret: what the browser remembers outlives a restart. It never holds a token.
        gr.BrowserState(None, storage_key="weightsmith-recipe", secret="weightsmith"),
    )  # fmt: skip
