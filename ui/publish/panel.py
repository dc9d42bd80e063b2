"""The publish panel: what a model folder is, its card and files, and the push, for the page of any Gradio app.

    with gr.Blocks() as app:
        publish_panel("outputs/my-model")

It needs no jobs and no data folder. The token is the visitor's own, from their sign-in or the password box: never the
one of whoever runs the app.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import gradio as gr
from gradio.blocks import Block
from gradio.context import Context

from backend.errors import LoginError
from backend.options import parse
from backend.progress import Report
from backend.publish.adopt import Preview, preview
from backend.publish.options import PublishOptions
from backend.publish.plan import plan
from backend.publish.push import publish
from ui.kit.errors import shown, warning
from ui.kit.events import LATEST, QUIET
from ui.kit.format import escape, size
from ui.kit.forms import Given, Updates
from ui.kit.progress import bar
from ui.publish.fields import Contents, HubFields, build_contents, build_hub_fields, published, token_box
from ui.visitor import can_sign_in

_STYLE = """<style>
.publish-panel table { width: 100%; } .publish-panel th { text-align: left; } .publish-panel td { text-align: right; }
.publish-panel .bar { height: 6px; border-radius: 3px; background: var(--border-color-primary); overflow: hidden; }
.publish-panel .bar i { display: block; height: 100%; background: var(--color-accent); }
.publish-panel .bar.unknown i { width: 30%; }
.publish-panel .fault { color: var(--error-text-color); }
.publish-panel .warn { padding-left: 12px; border-left: 3px solid var(--color-accent); }
</style>"""
"""What the page of another app is missing; its colors are that app's."""


@dataclass(frozen=True)
class PublishPanel:
    """Its components."""

    folder: Path
    about: gr.HTML
    hub: HubFields
    insist: gr.Checkbox
    start: gr.Button
    note: gr.HTML
    result: gr.HTML
    contents: Contents

    def shown(self) -> list[Block]:
        """What preview() changes."""
        return [self.note, self.about, self.insist, *self.contents.components]

    def preview(self, given: Given) -> Updates:
        """Show what the folder is, and its card and files as they would be published."""
        repo = given[self.hub.repo] or ""
        edited = self.contents.edited(given)
        repo_id = parse(PublishOptions, {"repo_id": repo}).repo_id if repo.strip() else None
        found = preview(self.folder, repo_id, card=edited)
        told = {self.note: "", self.about: _about(self.folder.name, found), **self.contents.show(found, edited)}
        return told | {self.insist: gr.update(visible=not (found.artifact.check and found.artifact.check.passed))}

    def push(self, given: Given, token: str | None) -> Iterator[Updates]:
        """Publish the folder and tell how far it is; a push that has begun ends, also when the page is closed.

        Raises:
            AppError: As publish() does.
        """
        if not token:
            raise LoginError("A Hugging Face token is required: sign in, or paste one with write access above.")
        said = {"insist": bool(given[self.insist]), "card": self.contents.edited(given)}
        options = parse(PublishOptions, self.hub.place(given) | said)
        warned: list[str] = []
        plan([(self.folder, options)], token, warned.append)
        events: SimpleQueue[dict[str, Any]] = SimpleQueue()
        yield {self.note: "".join(map(warning, warned)), self.result: bar(None, "starting", "publish-bar")}
        with ThreadPoolExecutor(1) as pool:
            going = pool.submit(publish, self.folder, options, token, Report(events.put))
            while not going.done():
                with suppress(Empty):
                    event = events.get(timeout=0.2)
                    if event["event"] == "progress":
                        yield {self.result: bar(event, event["phase"], "publish-bar")}
        yield {self.result: ""}
        yield {self.result: published([going.result().model_dump()])}


def publish_panel(folder: str | Path, sign_in: bool = True) -> PublishPanel:
    """Build the panel inside the open Blocks.

    Args:
        folder: The model's folder; it may come into being later, and is looked at when the page is opened.
        sign_in: Whether to build a login button where there is OAuth; False where the app has one already.
    """
    with gr.Column(elem_classes=["publish-panel"]):
        gr.HTML(_STYLE)
        if sign_in and can_sign_in():
            gr.LoginButton("Sign in with Hugging Face", size="sm", elem_id="publish-sign-in")
        about = gr.HTML("", elem_id="publish-about")
        hub = build_hub_fields("publish", True, token_box("publish", visible=not can_sign_in()))
        insist = gr.Checkbox(
            label="Publish even without a passing check", info="The card will say so.", visible=False,
            elem_id="publish-insist",
        )  # fmt: skip
        start = gr.Button("Publish", variant="primary", elem_id="publish-start")
        note = gr.HTML("", elem_id="publish-note")
        result = gr.HTML("", elem_id="publish-result")
        contents = build_contents("publish")
    panel = PublishPanel(Path(folder), about, hub, insist, start, note, result, contents)
    _wire(panel)
    return panel


def _wire(panel: PublishPanel) -> None:
    hub, text = panel.hub, panel.contents.text
    look = shown(panel.note)(panel.preview)

    @shown(panel.note)
    def push(given: Given, oauth: gr.OAuthToken | None) -> Iterator[Updates]:
        yield from panel.push(given, visitors(oauth, given[hub.token]))

    def visitors(oauth: gr.OAuthToken | None, typed: str | None) -> str | None:
        return oauth.token if oauth else (typed or "").strip() or None

    @shown()
    def offer(typed: str | None, oauth: gr.OAuthToken | None) -> Updates:
        return hub.offer(panel.folder, panel.folder.resolve().name, visitors(oauth, typed))

    page = Context.root_block
    assert page
    named = {hub.repo, *panel.contents.form}
    looked = [page.load, hub.repo.change, text.blur]
    gr.on(looked, look, named, panel.shown(), api_name="publish_look", **LATEST)
    asked = [page.load, hub.token.blur, hub.token.submit]
    gr.on(asked, offer, hub.token, hub.repo, api_name="publish_offer", **LATEST)
    # What came of an earlier try goes first; Gradio runs what hangs on one trigger in turn.
    panel.start.click(None, None, [panel.note, panel.result], js="() => ['', '']", api_name="publish_begin", **QUIET)
    form = {*named, *hub.components, hub.token, panel.insist}
    panel.start.click(push, form, [panel.note, panel.result], api_name="publish_start", **QUIET)


def _about(name: str, found: Preview) -> str:
    """Write what the folder is: kind, base model, size, and whether it was tested."""
    artifact = found.artifact
    facts = [artifact.kind, *([f"of {artifact.base_model}"] if artifact.base_model else [])]
    facts.append(size(sum(found.files.values())))
    check = artifact.check.words if artifact.check else "It was not tested in the engine that would serve it."
    return (
        f'<section class="panel"><header><h2>{escape(name)}</h2><p>{escape(" · ".join(facts))}</p></header>'
        f"<p>{escape(check)}</p></section>"
    )
