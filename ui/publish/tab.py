"""The Publish tab: what is published, where to, and the result."""

import itertools
import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.blocks import Block

from backend.errors import SpecError
from backend.jobs.store import Job, JobState
from backend.options import parse
from backend.publish.adopt import preview
from backend.publish.card.base_card import read_base_card
from backend.publish.card.licenses import fitting
from backend.publish.options import PublishOptions
from ui.jobs.job import view
from ui.jobs.question import Question, build_question
from ui.jobs.variants import variant_name
from ui.kit.format import lead, size
from ui.kit.forms import Given, Updates
from ui.publish.fields import Contents, HubFields, build_contents, build_hub_fields, published, token_box
from ui.studio import Result, Studio, model_name
from ui.visitor import alone

FOLDER, HUB = "folder", "hub"

_EMPTY = (
    '<section class="panel empty"><h2>Nothing to publish yet</h2><p>Press <b>Start</b> beside your recipe. When the job'
    " is done, you can review its result and model card here, and publish them.</p></section>"
)


@dataclass(frozen=True)
class PublishTab:
    """Its components."""

    studio: Studio
    empty: gr.HTML
    room: gr.Column
    artifact: gr.Dropdown
    variants: gr.CheckboxGroup
    where: gr.Radio
    folder: gr.Textbox
    hub: HubFields
    insist: gr.Checkbox
    start: gr.Button
    question: Question
    note: gr.HTML
    result: gr.HTML
    contents: Contents

    @property
    def repo(self) -> gr.Dropdown:
        """The repo on the Hub."""
        return self.hub.repo

    @property
    def token(self) -> gr.Textbox:
        """The token that every tab uses."""
        return self.hub.token

    def outputs(self) -> list[Block]:
        """What enter() changes."""
        return [self.empty, self.room, self.artifact, *self.chosen()]

    def chosen(self) -> list[Block]:
        """What show() changes."""
        return [self.folder, self.variants, *self.shown()]

    def shown(self) -> list[Block]:
        """What preview() and progress() change."""
        return [self.note, self.insist, *self.contents.components, self.result]

    def enter(self, owner: str | None, chosen: str | None, repo: str | None) -> Updates:
        """Offer an owner's results, keep the chosen one where it still exists, and show it."""
        results = self.studio.results(owner) if owner else []
        result = next((r for r in results if r.key == chosen), results[0] if results else None)
        updates: Updates = {
            self.empty: gr.update(visible=not results),
            self.room: gr.update(visible=bool(results)),
            self.artifact: gr.update(choices=[(r.label, r.key) for r in results], value=result and result.key),
            self.note: "",
        }
        return updates | (self.show(result, owner, repo) if result and owner else {})

    def show(self, result: Result, owner: str, repo: str | None) -> Updates:
        """Show a result that has just been chosen, its variants, and a folder for it that is free."""
        others = [r for r in self.studio.results_of(result.job, owner) if r.key != result.key]
        choices = [(f"{variant_name(r.artifact.options)} · {size(r.artifact.size)}", r.key) for r in others]
        beside = {
            self.variants: gr.update(choices=choices, value=[], visible=bool(others)),
            self.folder: self.free_folder(result),
        }
        return self.preview(result, owner, repo) | self.progress(result, owner) | beside

    def choose(self, where: str) -> Updates:
        """Show the fields of a destination."""
        hub = where == HUB
        return {
            self.folder: gr.update(visible=not hub),
            self.hub.room: gr.update(visible=hub),
            self.token: gr.update(visible=hub and alone(self.studio.settings)),
        }

    def destination(self, given: Given) -> PublishOptions:
        """Read the form.

        Raises:
            SpecError: Every fault, each with its field.
        """
        said = {"insist": given[self.insist], "card": self.contents.edited(given)}
        if given[self.where] == HUB or self.studio.settings.on_space:
            return parse(PublishOptions, self.hub.place(given) | said)
        if not (given[self.folder] or "").strip():
            raise SpecError("Name the folder first.")
        return parse(PublishOptions, {"to_folder": self.place(given[self.folder]), **said})

    @property
    def shelf(self) -> Path:
        """Where folders are created unless a whole path is given."""
        return self.studio.settings.data.resolve() / "published"

    def free_folder(self, result: Result, taken: Path | None = None) -> str:
        """Return a folder for a result that neither exists nor is taken."""
        return str(_free(self.shelf / _name(result), taken))

    def place(self, typed: str) -> Path:
        """Return the folder for what was typed: a name alone lies on the shelf."""
        return Path(os.path.normpath(self.shelf / Path(typed.strip()).expanduser()))

    def destinations(self, given: Given, owner: str) -> list[tuple[Result, PublishOptions]]:
        """Return the destination of the chosen result, and of each variant published with it under its own name.

        Raises:
            SpecError: Every fault, each with its field.
        """
        result = self.studio.result(given[self.artifact], owner)
        first = self.destination(given)
        found = [(result, first)]
        shared = first.model_dump(exclude={"repo_id", "to_folder", "card"})
        for key in given[self.variants] or []:
            variant = self.studio.result(key, owner)
            place: dict[str, Any] = {}
            if first.repo_id:
                place["repo_id"] = _beside(first.repo_id, variant)
            else:
                assert first.to_folder
                place["to_folder"] = _free(first.to_folder.with_name(_name(variant)))
            found.append((variant, parse(PublishOptions, place | shared)))
        linked = [options.repo_id for _, options in found if options.repo_id]
        return [
            (each, options.model_copy(update={"variants": tuple(name for name in linked if name != options.repo_id)}))
            for each, options in found
        ]

    def preview(
        self, result: Result, owner: str, repo: str | None, chosen: Collection[str] = (), edited: str | None = None
    ) -> Updates:
        """Show the card and the files as they would be published.

        Args:
            result: What is published.
            owner: Of the result.
            repo: The repo as typed, if it is.
            chosen: Keys of the variants that go with it.
            edited: The owner's own text of its card.
        """
        repo_id = parse(PublishOptions, {"repo_id": repo}).repo_id if (repo or "").strip() else None
        linked = [_beside(repo_id, self.studio.result(key, owner)) for key in chosen] if repo_id else []
        return self.contents.show(preview(result.folder, repo_id, card=edited, variants=linked), edited)

    def offer(self, given: Given, owner: str | None, token: str | None) -> Updates:
        """Offer repos for the chosen result, where it is to go to the Hub."""
        to_hub = given[self.where] == HUB or self.studio.settings.on_space
        if not (owner and to_hub and given[self.artifact]):
            return {self.repo: gr.skip()}
        result = self.studio.result(given[self.artifact], owner)
        return self.hub.offer(result.folder, _name(result), token)

    def progress(self, result: Result, owner: str) -> Updates:
        """Show the newest publication of a result, and of each of its variants."""
        newest: dict[str, Job] = {}
        for job in self.studio.supervisor.list(owner):
            if job.kind == "publication":
                newest.setdefault(job.spec["folder"], job)
        made = [result, *self.studio.results_of(result.job, owner)]
        failed = any(r.artifact.check and not r.artifact.check.passed for r in made)
        told = "".join(self._state(newest[f], owner) for f in dict.fromkeys(str(r.folder) for r in made) if f in newest)
        insist = gr.update(visible=failed)
        if not failed:
            insist["value"] = False
        return {self.insist: insist, self.result: told}

    def _state(self, job: Job, owner: str) -> str:
        if job.state != JobState.COMPLETED:
            return view(job)
        return published(self.studio.supervisor.published(job.id, owner))


def build_publish_tab(studio: Studio) -> PublishTab:
    """Build it inside the open Blocks."""
    gr.HTML(lead("Publish", "Weights, tokenizer, recipe, and a model card that says what was done and measured."))
    empty = gr.HTML(_EMPTY, elem_id="publish-empty")
    hub_only = studio.settings.on_space
    with gr.Column(visible=False, elem_id="publish-room") as room:
        artifact = gr.Dropdown([], label="Model", elem_id="publish-artifact")
        variants = gr.CheckboxGroup(
            [], label="Also publish from this job", visible=False, elem_id="publish-variants",
            info="Each goes into a repo or folder of its own, named after its method.",
        )  # fmt: skip
        where = gr.Radio(
            [
                ("A folder on this machine\nExactly what the Hub would get. No account needed.", FOLDER),
                ("The Hugging Face Hub\nA new repo of yours, with everything in one commit.", HUB),
            ],
            value=HUB if hub_only else FOLDER, visible=not hub_only, label="Where to", elem_id="publish-where",
            elem_classes=["rows"],
        )  # fmt: skip
        with gr.Column(elem_classes=["fields"]):
            folder = gr.Textbox(
                label="Folder", max_lines=1, visible=not hub_only, elem_id="publish-folder",
                info="Created if missing; must be empty. A name alone is a folder in the data folder.",
            )  # fmt: skip
            token = token_box("publish", visible=False, empty="If empty, the token of `hf auth login` is used.")
            hub = build_hub_fields("publish", hub_only, token)
        insist = gr.Checkbox(
            label="Publish even though the check failed", info="The card will say so.", visible=False,
            elem_id="publish-insist",
        )  # fmt: skip
        start = gr.Button("Publish", variant="primary", scale=0, elem_id="publish-start")
        question = build_question(studio, "publish")
        note = gr.HTML("", elem_id="publish-note")
        result = gr.HTML("", elem_id="publish-result")
        contents = build_contents("publish")
    return PublishTab(
        studio, empty, room, artifact, variants, where, folder, hub, insist, start, question, note, result, contents
    )


def _name(result: Result) -> str:
    merged = "merged" if result.artifact.merged and result.artifact.kind != "merged" else ""
    made = re.sub(r"\W+", "-", variant_name(result.artifact.options).lower())
    return "-".join(part for part in (model_name(result.job.spec["base_model"]), merged, made) if part)


def _beside(repo_id: str, variant: Result) -> str:
    """Name the repo of a variant that is published with another."""
    return f"{repo_id.split('/')[0]}/{fitting(_name(variant), read_base_card(variant.folder).licenses)}"


def _free(folder: Path, taken: Path | None = None) -> Path:
    """Return a folder that neither exists nor is taken: the name itself, or with a number behind it."""
    tries = (folder.with_name(f"{folder.name}-{i}") for i in itertools.count(2))
    return next(path for path in itertools.chain([folder], tries) if not path.exists() and path != taken)
