"""Running this app as a Space: the form, what it would cost, and the second click that makes it."""

from dataclasses import dataclass

import gradio as gr
from gradio.blocks import Block
from huggingface_hub import SpaceHardware

from backend.deploy.options import ZERO_GPU, DeployOptions
from backend.deploy.space import Plan, deploy, plan
from backend.errors import LoginError, SpecError
from backend.options import parse
from ui.kit.events import BUSY, QUIET
from ui.kit.format import escape
from ui.kit.forms import Given, OptionForm, Updates, option_field, option_form
from ui.publish.fields import TOKEN_NEEDED, link, token_box
from ui.studio import Studio
from ui.visitor import Visitor, alone, handler

_SECRETS = "secrets"  # their values come from the environment of this process, which is not every visitor's
_HARDWARE = [("current, or the free one", ""), *(str(item.value) for item in SpaceHardware if item.value != ZERO_GPU)]


@dataclass(frozen=True)
class DeployForm:
    """Its components; `planned` holds what the shown cost is of, on the server."""

    studio: Studio
    form: OptionForm
    token: gr.Textbox
    ask: gr.Button
    question: gr.Column
    cost: gr.HTML
    agree: gr.Button
    refuse: gr.Button
    note: gr.HTML
    planned: gr.State

    def outputs(self) -> list[Block]:
        """What the handlers change."""
        return [self.question, self.cost, self.note, self.planned]

    def put(self, given: Given, token: str | None) -> Updates:
        """Say what would be made and what it costs.

        Raises:
            AppError: As plan() does, and every fault of the form.
        """
        planned = plan(self._options(given), _needed(token))
        told = f'<p class="warn">{escape(planned.words)}</p>'
        return {self.note: "", self.question: gr.update(visible=True), self.cost: told, self.planned: planned}

    def make(self, given: Given, planned: Plan | None, token: str | None) -> Updates:
        """Make what was planned; where the form has changed since, say what it costs now.

        Raises:
            AppError: As plan() and deploy() do.
        """
        if planned is None or planned.options != self._options(given):
            return self.put(given, token)
        place = link(deploy(planned, _needed(token)).location)
        told = (
            f'<section class="panel published"><p>{place} takes a few minutes to build before it answers.</p></section>'
        )
        return {self.note: told, **self.hidden()}

    def _options(self, given: Given) -> DeployOptions:
        values = self.form.values(given)
        if "repo_id" not in values:
            raise SpecError("Name the Space first: your user name, a slash, and its name.")
        return parse(DeployOptions, values)

    def hidden(self) -> Updates:
        """Take the question back, and with it what was planned."""
        return {self.question: gr.update(visible=False), self.planned: None}


def build_deploy(studio: Studio) -> DeployForm:
    """Build it, folded, inside the open Blocks, and connect it."""
    with gr.Accordion("Run this app as a Space", open=False, elem_id="deploy", elem_classes=["more"]):
        gr.HTML('<p class="quiet">Runs this app on a machine of the Hub, in your account. You see the cost first.</p>')
        with gr.Column(elem_classes=["fields"]):
            form = _build_form()
            token = token_box("deploy", alone(studio.settings), "If empty, the token of `hf auth login` is used.")
            token.render()  # type: ignore[no-untyped-call]
        ask = gr.Button("What would it cost?", scale=0, elem_id="deploy-ask")
        with gr.Column(visible=False, elem_id="deploy-question", elem_classes=["question"]) as question:
            cost = gr.HTML("", elem_id="deploy-cost")
            with gr.Row(elem_classes=["actions"]):
                agree = gr.Button("Create the Space", variant="primary", size="sm", elem_id="deploy-agree")
                refuse = gr.Button("Not now", size="sm", elem_id="deploy-refuse")
        note = gr.HTML("", elem_id="deploy-note")
    built = DeployForm(studio, form, token, ask, question, cost, agree, refuse, note, gr.State(None))
    _wire(built)
    return built


def _needed(token: str | None) -> str:
    if not token:
        raise LoginError(TOKEN_NEEDED)
    return token


def _build_form() -> OptionForm:
    repo = gr.Textbox(
        label="Space", info=DeployOptions.model_fields["repo_id"].description, placeholder="your-name/studio",
        value="", max_lines=1, elem_id="deploy-repo_id",
    )  # fmt: skip
    hardware = option_field(
        DeployOptions, "hardware", "deploy", gr.Dropdown, choices=_HARDWARE, allow_custom_value=True
    )
    own = {"repo_id": repo, "hardware": hardware}
    return OptionForm(DeployOptions, own | option_form(DeployOptions, "deploy", (*own, _SECRETS)).fields)


def _wire(built: DeployForm) -> None:
    settings = built.studio.settings

    @handler(settings, built.note, built.question)
    def ask(given: Given, who: Visitor) -> Updates:
        who.known()
        return built.put(given, who.token(given[built.token]))

    @handler(settings, built.note, built.question)
    def agree(given: Given, who: Visitor) -> Updates:
        who.known()
        return built.make(given, given[built.planned], who.token(given[built.token]))

    busy = {**BUSY, "show_progress_on": built.note}
    form: set[Block] = {*built.form.components, built.token}
    built.ask.click(ask, form, built.outputs(), api_name="deploy_ask", **busy)
    built.agree.click(agree, {*form, built.planned}, built.outputs(), api_name="deploy_agree", **busy)
    built.refuse.click(built.hidden, None, [built.question, built.planned], api_name="deploy_refuse", **QUIET)
