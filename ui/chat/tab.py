"""The Chat tab: a conversation with a result, streaming, with what it costs in time."""

from dataclasses import dataclass

import gradio as gr
from gradio.blocks import Block

from backend.models.tokens import THINKS, THOUGHT
from backend.serve.chat import MAX_CHARACTERS, ChatOptions, usage
from backend.serve.engines import AUTO, ENGINES, installable
from backend.serve.server import ServerStatus
from ui.chat.compare import Compare, build_compare
from ui.kit.format import escape, escape_code, lead
from ui.kit.forms import OptionForm, Updates, option_form
from ui.studio import Model, Studio
from ui.visitor import alone

_EMPTY = (
    '<section class="panel empty"><h2>Nothing to chat with yet</h2><p>Press <b>Start</b> beside your recipe. When the'
    " job is done, you can chat with its result here.</p></section>"
)
_TYPE_HERE = "Ask it something, such as: What is the capital of Japan?"
_ASK, _LOAD_FIRST = "Ask it something.", "Load the model, then ask it something."

_UNSERVED = (
    '<p class="quiet">Other programs on this machine can use a loaded model through an OpenAI-compatible API.'
    " The code for it appears here once the model is loaded.</p>"
)

_PICTURES = [".png", ".jpg", ".jpeg", ".webp"]


@dataclass(frozen=True)
class ChatTab:
    """Its components."""

    studio: Studio
    empty: gr.HTML
    room: gr.Column
    artifact: gr.Dropdown
    load: gr.Button
    install: gr.Button
    unload: gr.Button
    status: gr.HTML
    chat: gr.Chatbot
    speed: gr.HTML
    text: gr.MultimodalTextbox
    send: gr.Button
    stop: gr.Button
    clear: gr.Button
    save: gr.Button
    system: gr.Textbox
    engine: gr.Radio
    options: OptionForm
    kept: gr.BrowserState
    compare: Compare
    usage: gr.HTML

    def outputs(self) -> list[Block]:
        """What enter() changes."""
        return [self.empty, self.room, self.artifact, *self.server_outputs(), *self.compare.outputs()]

    def server_outputs(self) -> list[Block]:
        """What show_server() changes."""
        return [
            self.status,
            self.load,
            self.install,
            self.unload,
            self.chat,
            self.text,
            self.send,
            self.usage,
        ]

    def enter(self, owner: str | None, chosen: str | None) -> Updates:
        """Offer what an owner's jobs made, and from what; keep the chosen one where it still exists."""
        models = self.studio.models(owner) if owner else []
        model = next((m for m in models if m.key == chosen), models[0] if models else None)
        return {
            self.empty: gr.update(visible=not models),
            self.room: gr.update(visible=bool(models)),
            self.artifact: gr.update(choices=[(m.label, m.key) for m in models], value=model and model.key),
            **self.show_server(model),
            **self.compare.offer(models, None),
        }

    def show_server(self, model: Model | None) -> Updates:
        """Show whether the server runs the chosen model."""
        status = self.studio.servers.status(model.folder) if model else ServerStatus()
        state = status.state
        words = status.text
        ready = state == "ready"
        missing = installable(model.folder) if model and alone(self.studio.settings) else None
        installation = self.studio.installations[missing.name] if missing else None
        if installation and not status.live:
            state, words = ("starting" if installation.installs else "stopped"), installation.text
        idle = state in ("stopped", "failed")
        return {
            self.status: f'<p class="server {state}"><i></i>{escape(words)}</p>',
            self.load: gr.update(visible=idle and missing is None),
            self.install: gr.update(
                visible=installation is not None and not installation.installs,
                value=f"Install {missing.title}" if missing else None,
            ),
            self.unload: gr.update(visible=state in ("starting", "ready")),
            self.chat: gr.update(placeholder=_ASK if ready else _LOAD_FIRST),
            self.text: gr.update(
                interactive=ready,
                placeholder=_TYPE_HERE if ready else "Load the model first",
                sources=["upload"] if ready and model and self.studio.servers.current(model.folder).sees else [],
            ),
            self.send: gr.update(interactive=ready),
            self.usage: self._usage(model) if ready and model else _UNSERVED,
        }

    def _usage(self, model: Model) -> str:
        """Write how other programs ask the server; those of other people cannot reach it."""
        if not alone(self.studio.settings):
            return _UNSERVED
        return f'<pre class="code">{escape_code(usage(self.studio.servers.current(model.folder)))}</pre>'


def build_chat_tab(studio: Studio) -> ChatTab:
    """Build it inside the open Blocks."""
    gr.HTML(lead("Chat", "Metrics tell you how much quality was lost. Chatting shows you what that means."))
    empty = gr.HTML(_EMPTY, elem_id="chat-empty")
    with gr.Column(visible=False, elem_id="chat-room") as room:
        with gr.Row(elem_classes=["ask"]):
            artifact = gr.Dropdown([], label="Model", show_label=False, elem_id="chat-artifact")
            load = gr.Button("Load the model", variant="primary", scale=0, min_width=150, elem_id="chat-start")
            install = gr.Button("Install", visible=False, scale=0, min_width=130, elem_id="chat-install")
            unload = gr.Button("Unload", visible=False, scale=0, min_width=104, elem_id="chat-unload")
        status = gr.HTML("", elem_id="chat-status")
        chat = gr.Chatbot(
            label="Chat", show_label=False, height=420, layout="bubble", buttons=["copy"], allow_tags=False,
            placeholder=_LOAD_FIRST, editable="user", reasoning_tags=[(THINKS, THOUGHT)], elem_id="chat-box",
        )  # fmt: skip
        speed = gr.HTML("", elem_id="chat-speed")
        with gr.Row(elem_classes=["ask"]):
            text = gr.MultimodalTextbox(
                label="Message", show_label=False, lines=1, max_lines=6, interactive=False, elem_id="chat-input",
                placeholder="Load the model first", submit_btn=False, sources=[], file_types=_PICTURES,
                file_count="multiple", max_plain_text_length=MAX_CHARACTERS,
            )  # fmt: skip
            send = gr.Button("Send", variant="primary", scale=0, min_width=88, interactive=False, elem_id="chat-send")
            stop = gr.Button("Stop", visible=False, scale=0, min_width=88, elem_id="chat-stop")
            save = gr.Button("Download", scale=0, min_width=104, elem_id="chat-save")
            clear = gr.Button("Clear", scale=0, min_width=88, elem_id="chat-clear")
        with gr.Accordion("More options", open=False, elem_id="sampling", elem_classes=["more"]):
            system = gr.Textbox(
                label="System prompt", info="Sent at the start of every conversation.", lines=2, elem_id="chat-system"
            )
            engine = gr.Radio(
                [AUTO, *((each.title, name) for name, each in ENGINES.items())], value=AUTO, label="Engine",
                info="What serves the model, once it is loaded. auto: the fastest that can.", elem_id="chat-engine",
            )  # fmt: skip
            options = option_form(ChatOptions, "sampling")
        with gr.Accordion("From other programs", open=False, elem_classes=["more"]):
            asked = gr.HTML(_UNSERVED, elem_id="chat-usage")
        compare = build_compare(studio)
    kept = gr.BrowserState([], storage_key="weightsmith-talk", secret="weightsmith")
    return ChatTab(
        studio, empty, room, artifact, load, install, unload, status, chat, speed, text,
        send, stop, clear, save, system, engine, options, kept, compare, asked,
    )  # fmt: skip
