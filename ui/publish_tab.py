"""The Publish tab: what would be published, where to, and what came of it."""

from dataclasses import dataclass
from typing import Any

import gradio as gr
from backend.publish.card import build_card

from backend.jobs.store import Job, JobState, Publication
from backend.options import parse
from backend.publish import PublishOptions
from ui.errors import shown
from ui.format import escape, size
from ui.forms import Updates
from ui.job_view import view
from ui.studio import Result, Studio
from ui.users import can_sign_in, hub_token, require_owner

FOLDER, HUB = "folder", "hub"

_EMPTY = (
    '<section class="panel empty"><h2>Nothing to publish yet</h2><p>Press <b>Start</b> beside your recipe. When the job'
    " is done, its result and the model card can be looked at here, and published.</p></section>"
)


@dataclass(frozen=True)
class PublishTab:
    """Its components."""

    studio: Studio
    empty: gr.HTML
    room: gr.Column
    artifact: gr.Dropdown
    where: gr.Radio
    folder: gr.Textbox
    repo: gr.Textbox
    private: gr.Checkbox
    token: gr.Textbox
    start: gr.Button
    note: gr.HTML
    result: gr.HTML
    files: gr.HTML
    card: gr.Markdown

    def list(self, results: list[Result], chosen: str | None) -> Updates:
        """Offer an owner's results; keep the chosen one where it still exists."""
        keys = [r.key for r in results]
        value = chosen if chosen in keys else keys[0] if keys else None
        return {
            self.empty: gr.update(visible=not results),
            self.room: gr.update(visible=bool(results)),
            self.artifact: gr.update(choices=[(r.label, r.key) for r in results], value=value),
        }

    def choose(self, where: str) -> Updates:
        """Show the fields of a destination."""
        hub = where == HUB
        return {
            self.folder: gr.update(visible=not hub),
            self.repo: gr.update(visible=hub),
            self.private: gr.update(visible=hub),
            self.token: gr.update(visible=hub and not can_sign_in() and not self.studio.settings.on_space),
        }

    def publication(self, given: dict[Any, Any], result: Result) -> Publication:
        """Read the form.

        Raises:
            SpecError: Every fault, each with its field.
        """
        hub = given[self.where] == HUB or self.studio.settings.on_space
        options: dict[str, Any] = {"private": given[self.private]}
        options |= {"repo_id": given[self.repo] or None} if hub else {"to_folder": given[self.folder] or None}
        return Publication(job_id=result.job.id, stage=result.folder.name, options=parse(PublishOptions, options))

    def preview(self, result: Result, repo_id: str) -> Updates:
        """Show the card and the files as they would be published."""
        return {self.files: files(result), self.card: shown_card(build_card(result.folder, repo_id.strip() or None))}

    def progress(self, key: str | None, owner: str | None) -> Updates:
        """Show the newest publication of the chosen result."""
        if not key or not owner:
            return {self.result: ""}
        job_id, _, stage = key.partition("/")
        for job in self.studio.supervisor.list(owner):
            if job.kind == "publication" and (job.spec.get("job_id"), job.spec.get("stage")) == (job_id, stage):
                return {self.result: self._state(job, owner)}
        return {self.result: ""}

    def _state(self, job: Job, owner: str) -> str:
        if job.state != JobState.COMPLETED:
            return view(job)
        found = self.studio.supervisor.result(job.id, owner)
        url, folder = found.get("url"), found.get("folder")
        place = (
            f'<a href="{escape(url)}" target="_blank" rel="noopener noreferrer">{escape(url)}</a>'
            if str(url or "").startswith(("https://", "http://"))
            else f"<code>{escape(folder or url)}</code>"
        )
        return f'<section class="panel done"><header><h2>Published</h2></header><p>{place}</p></section>'


def build_publish_tab(studio: Studio) -> PublishTab:
    """Build it inside the open Blocks."""
    gr.HTML(
        '<header class="lead"><h1>Publish</h1><p>Weights, tokenizer, recipe and a model card that says what was done and'
        " measured.</p></header>"
    )
    empty = gr.HTML(_EMPTY, elem_id="publish-empty")
    hub_only = studio.settings.on_space
    with gr.Column(visible=False, elem_id="publish-room") as room:
        artifact = gr.Dropdown([], label="Model", elem_id="publish-artifact")
        where = gr.Radio(
            [
                ("A folder on this machine\nExactly what the Hub would get. No account needed.", FOLDER),
                ("The Hugging Face Hub\nA new repo of yours, with everything in one commit.", HUB),
            ],
            value=HUB if hub_only else FOLDER, visible=not hub_only, label="Where to", elem_id="publish-where",
            elem_classes=["rows"],
        )  # fmt: skip
        with gr.Column(elem_classes=["fields"]):
            folder, repo, private, token = _destination(hub_only)
        start = gr.Button("Publish", variant="primary", scale=0, elem_id="publish-start")
        note = gr.HTML("", elem_id="publish-note")
        result = gr.HTML("", elem_id="publish-result")
        files_ = gr.HTML("", elem_id="publish-files")
        with gr.Column(elem_classes=["panel", "paper"]):
            gr.HTML("<header><h2>Model card</h2><p>What readers of the repo will see.</p></header>")
            card = gr.Markdown("", elem_id="publish-card", sanitize_html=True)
    return PublishTab(
        studio, empty, room, artifact, where, folder, repo, private, token, start, note, result, files_, card
    )


def _destination(hub_only: bool) -> tuple[gr.Textbox, gr.Textbox, gr.Checkbox, gr.Textbox]:
    fields = PublishOptions.model_fields
    folder = gr.Textbox(
        label="Folder", info="It is made, and must be empty if it exists.", max_lines=1, visible=not hub_only,
        placeholder="~/models/my-model", elem_id="publish-folder",
    )  # fmt: skip
    repo = gr.Textbox(
        label="Repo", info=fields["repo_id"].description, placeholder="your-name/model-nf4", max_lines=1,
        visible=hub_only, elem_id="publish-repo",
    )  # fmt: skip
    private = gr.Checkbox(
        value=True, label="Private", info=fields["private"].description, visible=hub_only, elem_id="publish-private"
    )
    token = gr.Textbox(
        label="Token", type="password", visible=False, max_lines=1, elem_id="publish-token",
        info="With write access, from huggingface.co/settings/tokens. Used for this visit and never stored. Empty: the one"
        " of `hf auth login`.",
    )  # fmt: skip
    return folder, repo, private, token


def wire_publish_tab(tab: PublishTab, timer: gr.Timer) -> None:
    """Connect what happens inside the tab."""
    studio = tab.studio
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}

    @shown(tab.note)
    def preview(key: str | None, repo: str, profile: gr.OAuthProfile | None) -> Updates:
        if not key:
            return {tab.note: ""}
        owner = require_owner(studio.settings, profile)
        return {tab.note: "", **tab.preview(studio.result(key, owner), repo), **tab.progress(key, owner)}

    @shown(tab.note)
    def start(given: dict[Any, Any], profile: gr.OAuthProfile | None, oauth: gr.OAuthToken | None) -> Updates:
        owner = require_owner(studio.settings, profile)
        result = studio.result(given[tab.artifact], owner)
        token = hub_token(studio.settings, oauth, given[tab.token])
        studio.supervisor.submit(tab.publication(given, result), owner, token)
        return {tab.note: "", timer: gr.Timer(active=True), **tab.progress(result.key, owner)}

    form = {tab.artifact, tab.where, tab.folder, tab.repo, tab.private, tab.token}
    shown_ = [tab.note, tab.files, tab.card, tab.result]
    tab.artifact.change(preview, [tab.artifact, tab.repo], shown_, **quiet)
    gr.on([tab.repo.blur, tab.repo.submit], preview, [tab.artifact, tab.repo], shown_, **quiet)
    tab.where.input(tab.choose, tab.where, [tab.folder, tab.repo, tab.private, tab.token], **quiet)
    tab.start.click(start, form, [tab.note, timer, tab.result], **quiet)


def files(result: Result) -> str:
    """Write the list of files."""
    rows = "".join(
        f"<tr><th scope='row'>{escape(name)}</th><td>{size(file.size)}</td></tr>"
        for name, file in sorted(result.artifact.files.items(), key=lambda item: -item[1].size)
    )
    return (
        f'<section class="panel"><header><h2>Files</h2><p>{len(result.artifact.files)} files,'
        f' {size(result.artifact.size)}</p></header><div class="wide"><table class="files"><tbody>{rows}</tbody></table>'
        "</div></section>"
    )


def shown_card(text: str) -> str:
    """Give a card as Markdown shows it: the front matter as code, the rest rendered."""
    parts = text.split("---\n", 2)
    if not text.startswith("---\n") or len(parts) < 3:
        return text
    return f"```yaml\n{parts[1].strip()}\n```\n{parts[2]}"
