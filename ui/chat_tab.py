"""The Chat tab: talking to a result, streaming, with what it costs in time."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from backend.errors import AppError, SpecError
from backend.models.tokens import THINKS, THOUGHT
from backend.options import parse
from backend.serve.chat import Answer, ChatOptions, paced, stream, usage
from backend.serve.engines import AUTO, ENGINES, EngineName, installable
from backend.serve.server import ServerStatus
from ui.changes import hear
from ui.compare import Compare, build_compare, wire_compare
from ui.errors import shown
from ui.events import QUIET
from ui.format import escape, escape_code, lead
from ui.forms import OptionForm, Updates, label, option_form
from ui.studio import Model, Studio
from ui.users import alone, require_alone, require_member, require_owner, visitor

_EMPTY = (
    '<section class="panel empty"><h2>Nothing to chat with yet</h2><p>Press <b>Start</b> beside your recipe. When the'
    " job is done, its result can be tried here.</p></section>"
)
_TYPE_HERE = "Ask it something, such as: What is the capital of Japan?"
_ASK, _LOAD_FIRST = "Ask it something.", "Load the model, then ask it something."

_UNSERVED = (
    '<p class="quiet">Other programs on this machine can ask a model that is loaded, in the way of OpenAI\'s API: the'
    " lines for it stand here then.</p>"
)

Messages = list[dict[str, Any]]


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
    talk: gr.Chatbot
    speed: gr.HTML
    text: gr.Textbox
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

    def outputs(self) -> list[Any]:
        """What enter() changes."""
        return [self.empty, self.room, self.artifact, *self.server_outputs(), *self.compare.outputs()]

    def server_outputs(self) -> list[Any]:
        """What show_server() changes."""
        return [
            self.status,
            self.load,
            self.install,
            self.unload,
            self.talk,
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
        state, words = status.state, status.text
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
            self.talk: gr.update(placeholder=_ASK if ready else _LOAD_FIRST),
            self.text: gr.update(interactive=ready, placeholder=_TYPE_HERE if ready else "Load the model first"),
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
    gr.HTML(lead("Chat", "Numbers say how much was lost; a talk shows what."))
    empty = gr.HTML(_EMPTY, elem_id="chat-empty")
    with gr.Column(visible=False, elem_id="chat-room") as room:
        with gr.Row(elem_classes=["ask"]):
            artifact = gr.Dropdown([], label="Model", show_label=False, elem_id="chat-artifact")
            load = gr.Button("Load the model", variant="primary", scale=0, min_width=150, elem_id="chat-start")
            install = gr.Button("Install", visible=False, scale=0, min_width=130, elem_id="chat-install")
            unload = gr.Button("Unload", visible=False, scale=0, min_width=104, elem_id="chat-unload")
        status = gr.HTML("", elem_id="chat-status")
        talk = gr.Chatbot(
            label="Chat", show_label=False, height=420, layout="bubble", buttons=["copy"], allow_tags=False,
            placeholder=_LOAD_FIRST, editable="user", reasoning_tags=[(THINKS, THOUGHT)], elem_id="chat-box",
        )  # fmt: skip
        speed = gr.HTML("", elem_id="chat-speed")
        with gr.Row(elem_classes=["ask"]):
            text = gr.Textbox(
                label="Message", show_label=False, lines=1, max_lines=6, interactive=False, elem_id="chat-input",
                placeholder="Load the model first",
            )  # fmt: skip
            send = gr.Button("Send", variant="primary", scale=0, min_width=88, interactive=False, elem_id="chat-send")
            stop = gr.Button("Stop", visible=False, scale=0, min_width=88, elem_id="chat-stop")
            save = gr.Button("Download", scale=0, min_width=104, elem_id="chat-save")
            clear = gr.Button("Clear", scale=0, min_width=88, elem_id="chat-clear")
        with gr.Accordion("More options", open=False, elem_id="sampling", elem_classes=["more"]):
            system = gr.Textbox(label="System prompt", info="Said before the talk.", lines=2, elem_id="chat-system")
            engine = gr.Radio(
                [AUTO, *((each.title, name) for name, each in ENGINES.items())], value=AUTO, label="Engine",
                info="What serves the model, when it is loaded. auto: the fastest that can.", elem_id="chat-engine",
            )  # fmt: skip
            options = option_form(ChatOptions, "sampling")
        with gr.Accordion("From other programs", open=False, elem_classes=["more"]):
            asked = gr.HTML(_UNSERVED, elem_id="chat-usage")
        compare = build_compare(studio)
    kept = gr.BrowserState([], storage_key="weightsmith-talk", secret="weightsmith")
    return ChatTab(
        studio, empty, room, artifact, load, install, unload, status, talk, speed, text,
        send, stop, clear, save, system, engine, options, kept, compare, asked,
    )  # fmt: skip


def wire_chat_tab(tab: ChatTab, door: gr.Tab) -> None:
    """Connect what happens inside the tab, and opening it; the talk is what the browser has kept of it."""
    studio = tab.studio

    @shown(tab.status)
    def enter(key: str | None, profile: gr.OAuthProfile | None) -> Updates:
        return tab.enter(visitor(studio.settings, profile), key)

    @shown(tab.status)
    def look(key: str | None, profile: gr.OAuthProfile | None) -> Updates:
        return tab.show_server(studio.model(key, require_owner(studio.settings, profile)))

    @shown(tab.status)
    def load(key: str | None, engine: EngineName, profile: gr.OAuthProfile | None) -> Updates:
        owner = require_member(studio.settings, profile)
        model = studio.model(key, owner)
        studio.load(model, owner, engine)
        return tab.show_server(model)

    @shown(tab.status)
    def install(key: str | None, profile: gr.OAuthProfile | None) -> Updates:
        owner = require_member(studio.settings, profile)
        require_alone(studio.settings)
        model = studio.model(key, owner)
        if engine := installable(model.folder):
            studio.installations[engine.name].begin()
        return tab.show_server(model)

    @shown(tab.status)
    def unload(key: str | None, profile: gr.OAuthProfile | None) -> Updates:
        owner = require_owner(studio.settings, profile)
        model = studio.model(key, owner)
        studio.unload(model, owner)
        return tab.show_server(model)

    entered = door.select(enter, tab.artifact, tab.outputs(), **QUIET)
    # Only now: what a part of the page is given before it is seen is lost.
    entered.then(lambda talk, kept: gr.skip() if talk else kept or [], [tab.talk, tab.kept], tab.talk, **QUIET)
    tab.artifact.input(look, tab.artifact, tab.server_outputs(), **QUIET).then(
        _cleared, None, [tab.talk, tab.speed], **QUIET
    )
    hear("server", look, [tab.artifact], tab.server_outputs())
    tab.load.click(load, [tab.artifact, tab.engine], tab.server_outputs(), **QUIET)
    tab.install.click(install, tab.artifact, tab.server_outputs(), **QUIET)
    tab.unload.click(unload, tab.artifact, tab.server_outputs(), **QUIET)
    _wire_talk(tab, look)
    wire_compare(tab.compare, tab.options, tab.system)


def _wire_talk(tab: ChatTab, look: Callable[..., Updates]) -> None:
    studio = tab.studio

    def say(given: dict[Any, Any], before: Messages, question: str, owner: str) -> Iterator[Updates]:
        """Ask what comes after a talk, and show the answer as it grows."""
        model, system = studio.model(given[tab.artifact], owner), (given[tab.system] or "").strip()
        try:
            options = parse(ChatOptions, tab.options.values(given))
        except SpecError as e:
            yield tab.options.mark(e.faults)
            raise SpecError(f"Could not ask. Under More options: {_lines(e)}") from e
        shown_ = [*before, {"role": "user", "content": question}]
        first = [{"role": "system", "content": system}] if system else []
        yield {tab.talk: shown_, tab.text: "", tab.speed: "", **tab.options.mark({}), **_speaking(tab, True)}
        told: Messages = []
        try:
            with studio.servers.in_use(model.folder):
                for answer in paced(stream(studio.servers.current(model.folder), [*first, *plain(shown_)], options)):
                    told = [{"role": "assistant", "content": answer.text}]
                    yield {tab.talk: [*shown_, *told], tab.speed: speed(answer)}
        except AppError:
            # without an answer the question stands where it can be sent again, and not twice in the talk
            yield {tab.talk: [*shown_, *told] if told else before, tab.text: question, **_speaking(tab, False)}
            raise
        yield _speaking(tab, False)

    @shown(tab.speed)
    def ask(given: dict[Any, Any], profile: gr.OAuthProfile | None) -> Iterator[Updates]:
        owner, question = require_member(studio.settings, profile), (given[tab.text] or "").strip()
        if question:
            yield from say(given, given[tab.talk] or [], question, owner)

    @shown(tab.speed)
    def retry(given: dict[Any, Any], data: gr.RetryData, profile: gr.OAuthProfile | None) -> Iterator[Updates]:
        owner, (before, question) = require_member(studio.settings, profile), up_to(given[tab.talk], data.index)
        yield from say(given, before, question, owner)

    @shown(tab.speed)
    def edit(given: dict[Any, Any], data: gr.EditData, profile: gr.OAuthProfile | None) -> Iterator[Updates]:
        owner, (before, _) = require_member(studio.settings, profile), up_to(given[tab.talk], data.index)
        yield from say(given, before, _text(data.value).strip(), owner)

    spoken = [tab.send, tab.stop]
    inputs = {tab.artifact, tab.talk, tab.text, tab.system, *tab.options.components}
    outputs = [tab.talk, tab.text, tab.speed, *spoken, *tab.options.components]
    asked = [
        gr.on([tab.send.click, tab.text.submit], ask, inputs, outputs, **QUIET),
        tab.talk.retry(retry, inputs, outputs, **QUIET),
        tab.talk.edit(edit, inputs, outputs, **QUIET),
    ]
    for event in asked:
        event.then(look, tab.artifact, tab.server_outputs(), **QUIET)
        event.then(lambda talk: plain(talk), tab.talk, tab.kept, **QUIET)
    tab.stop.click(lambda: _speaking(tab, False), None, spoken, cancels=asked, **QUIET)
    cleared = tab.clear.click(lambda: _speaking(tab, False), None, spoken, cancels=asked, **QUIET)
    cleared.then(_cleared, None, [tab.talk, tab.speed], **QUIET).then(list, None, tab.kept, **QUIET)
    tab.save.click(None, [tab.talk, tab.system], None, js=_SAVE, **QUIET)


_SAVE = """(talk, system) => {
  const text = (content) => typeof content === 'string' ? content : content.map((part) => part.text ?? '').join('');
  const answers = talk.filter((turn) => !turn.metadata?.title);
  const said = answers.map(({ role, content }) => ({ role, content: text(content) }));
  const messages = system?.trim() ? [{ role: 'system', content: system.trim() }, ...said] : said;
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([JSON.stringify({ messages }) + '\\n'], { type: 'application/jsonl' }));
  link.download = 'talk.jsonl';
  link.click();
}"""
"""Writes the talk as a row that a training reads; nothing leaves the browser for it."""


def _lines(error: SpecError) -> str:
    return "; ".join(f"{label(name)}: {text}" for name, text in error.faults.items()) + "."


def _cleared() -> tuple[Messages, str]:
    return [], ""


def plain(messages: Messages) -> Messages:
    """Give a talk as the server wants it: without what the model said to itself.

    Gradio wraps each text of the browser in a list of blocks, and makes a turn of its own of what was thought.
    """
    said = [m for m in messages if not (m.get("metadata") or {}).get("title")]
    return [{"role": m["role"], "content": _text(m["content"])} for m in said]


def up_to(messages: Messages, index: int | tuple[int, int]) -> tuple[Messages, str]:
    """Give what was said before a question, and the question.

    Args:
        messages: The talk.
        index: Of the question, or of something in its answer.
    """
    at = index if isinstance(index, int) else index[0]
    while at > 0 and messages[at]["role"] != "user":
        at -= 1
    return messages[:at], _text(messages[at]["content"])


def speed(answer: Answer) -> str:
    """Write what an answer cost in time."""
    parts = [f"{answer.tokens} tokens"]
    if answer.seconds_to_first_token is not None:
        parts.append(f"first after {answer.seconds_to_first_token:.1f} s")
    if answer.tokens_per_second:
        parts.append(f"{answer.tokens_per_second:.1f} tokens/s")
    if answer.context:
        parts.append(f"{answer.context:,} tokens of context used")
    return f'<p class="quiet">{" · ".join(parts)}</p>'


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(block.get("text", "") for block in content if isinstance(block, dict))


def _speaking(tab: ChatTab, busy: bool) -> Updates:
    return {tab.send: gr.update(visible=not busy), tab.stop: gr.update(visible=busy)}
