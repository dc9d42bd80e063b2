"""What happens in the Chat tab: loading, unloading, asking; the conversation is what the browser has kept of it."""

from collections.abc import Iterator

import gradio as gr
from gradio.blocks import Block
from gradio.events import Dependency

from backend.errors import AppError, SpecError
from backend.options import parse
from backend.serve.chat import Answer, ChatOptions, paced, stream
from backend.serve.engines import EngineName, installable
from ui.changes import hear
from ui.chat.compare import wire_compare
from ui.chat.tab import ChatTab
from ui.chat.talk import NOT_KEPT, Asked, Messages, plain, text_of, told, typed, up_to
from ui.kit.errors import Handler
from ui.kit.events import QUIET
from ui.kit.forms import Given, Updates, label
from ui.visitor import Visitor, handler, require_alone

_SAVE = """(talk, system) => {
  const text = (content) => typeof content === 'string' ? content : content.map((part) => part.text ?? '').join('');
  const answers = talk.filter((turn) => !turn.metadata?.title);
  const isShown = ({ content }) => typeof content !== 'string' && content.some((part) => part.file) && !text(content);
  const said = answers.filter((turn) => !isShown(turn)).map((turn) => {
    const before = answers[answers.indexOf(turn) - 1];
    return { role: turn.role, content: (before && isShown(before) ? 'NOT_KEPT\\n\\n' : '') + text(turn.content) };
  });
  const messages = system?.trim() ? [{ role: 'system', content: system.trim() }, ...said] : said;
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([JSON.stringify({ messages }) + '\\n'], { type: 'application/jsonl' }));
  link.download = 'conversation.jsonl';
  link.click();
}""".replace("NOT_KEPT", NOT_KEPT)
"""Writes the conversation as a row that a training reads; nothing leaves the browser for it."""


def wire_chat(tab: ChatTab, door: gr.Tab) -> None:
    """Connect the tab, and opening it."""
    look = _wire_servers(tab)
    _wire_opening(tab, door)
    _wire_conversation(tab, look)
    wire_compare(tab.compare, tab.options, tab.system)


def _wire_opening(tab: ChatTab, door: gr.Tab) -> None:
    @handler(tab.studio.settings, tab.status)
    def enter(key: str | None, who: Visitor) -> Updates:
        return tab.enter(who.owner, key)

    def restore(chat: Messages, kept: Messages | None) -> Messages | Updates:
        return gr.skip() if chat else kept or []

    entered = door.select(enter, tab.artifact, tab.outputs(), api_name="chat_enter", **QUIET)
    # Only now: what a part of the page is given before it is seen is lost.
    entered.then(restore, [tab.chat, tab.kept], tab.chat, api_name="chat_restore", **QUIET)


def _wire_servers(tab: ChatTab) -> Handler:
    """Connect what loads and unloads a model, and return what shows how its server stands."""
    studio = tab.studio

    @handler(studio.settings, tab.status)
    def look(key: str | None, who: Visitor) -> Updates:
        return tab.show_server(studio.model(key, who.known()))

    @handler(studio.settings, tab.status)
    def load(key: str | None, engine: EngineName, who: Visitor) -> Updates:
        owner = who.member()
        model = studio.model(key, owner)
        studio.load(model, owner, engine)
        return tab.show_server(model)

    @handler(studio.settings, tab.status)
    def install(key: str | None, who: Visitor) -> Updates:
        owner = who.member()
        require_alone(studio.settings)
        model = studio.model(key, owner)
        if engine := installable(model.folder):
            studio.installations[engine.name].begin()
        return tab.show_server(model)

    @handler(studio.settings, tab.status)
    def unload(key: str | None, who: Visitor) -> Updates:
        owner = who.known()
        model = studio.model(key, owner)
        studio.unload(model, owner)
        return tab.show_server(model)

    chosen = tab.artifact
    outputs = tab.server_outputs()
    picked = chosen.input(look, chosen, outputs, api_name="chat_pick", **QUIET)
    picked.then(_cleared, None, [tab.chat, tab.speed], api_name="chat_pick_cleared", **QUIET)
    hear("server", look, [chosen], outputs)
    tab.load.click(load, [chosen, tab.engine], outputs, api_name="chat_load", **QUIET)
    tab.install.click(install, chosen, outputs, api_name="chat_install", **QUIET)
    tab.unload.click(unload, chosen, outputs, api_name="chat_unload", **QUIET)
    return look


def _wire_conversation(tab: ChatTab, look: Handler) -> None:
    asked = _wire_asking(tab)
    for name, event in asked.items():
        event.then(look, tab.artifact, tab.server_outputs(), api_name=f"{name}_look", **QUIET)
        event.then(plain, tab.chat, tab.kept, api_name=f"{name}_kept", **QUIET)

    def stop() -> Updates:
        return _speaking(tab, False)

    spoken = {"outputs": [tab.send, tab.stop], "cancels": [*asked.values()], **QUIET}
    tab.stop.click(stop, None, api_name="chat_stop", **spoken)
    cleared = tab.clear.click(stop, None, api_name="chat_clear", **spoken)
    emptied = cleared.then(_cleared, None, [tab.chat, tab.speed], api_name="chat_cleared", **QUIET)
    emptied.then(list, None, tab.kept, api_name="chat_forget", **QUIET)
    tab.save.click(None, [tab.chat, tab.system], None, js=_SAVE, api_name="chat_save", **QUIET)


def _wire_asking(tab: ChatTab) -> dict[str, Dependency]:
    """Connect what asks the model, and return these events by name."""
    settings = tab.studio.settings

    @handler(settings, tab.speed)
    def ask(given: Given, who: Visitor) -> Iterator[Updates]:
        owner = who.member()
        if asked := typed(given[tab.text]):
            yield from _answer(tab, given, given[tab.chat] or [], asked, owner, is_typed=True)

    @handler(settings, tab.speed)
    def retry(given: Given, data: gr.RetryData, who: Visitor) -> Iterator[Updates]:
        owner = who.member()
        yield from _answer(tab, given, *up_to(given[tab.chat], data.index), owner)

    @handler(settings, tab.speed)
    def edit(given: Given, data: gr.EditData, who: Visitor) -> Iterator[Updates]:
        owner = who.member()
        before, asked = up_to(given[tab.chat], data.index)
        yield from _answer(tab, given, before, asked._replace(text=text_of(data.value).strip()), owner)

    inputs: set[Block] = {tab.artifact, tab.chat, tab.text, tab.system, *tab.options.components}
    outputs = [tab.chat, tab.text, tab.speed, tab.send, tab.stop, *tab.options.components]
    sent = [tab.send.click, tab.text.submit]
    return {
        "chat_send": gr.on(sent, ask, inputs, outputs, api_name="chat_send", **QUIET),
        "chat_retry": tab.chat.retry(retry, inputs, outputs, api_name="chat_retry", **QUIET),
        "chat_edit": tab.chat.edit(edit, inputs, outputs, api_name="chat_edit", **QUIET),
    }


def _answer(
    tab: ChatTab, given: Given, before: Messages, asked: Asked, owner: str, *, is_typed: bool = False
) -> Iterator[Updates]:
    """Ask what comes after a conversation, and show the answer as it grows.

    A typed question leaves its field, and stands there again where it gets no answer; beside any other question the
    field holds the next one, which stays.
    """
    servers = tab.studio.servers
    model = tab.studio.model(given[tab.artifact], owner)
    try:
        options = parse(ChatOptions, tab.options.values(given))
    except SpecError as e:
        yield tab.options.mark(e.faults)
        raise SpecError(f"Could not ask. Under More options: {_lines(e)}") from e
    shown = [*before, *asked.turns]
    system = (given[tab.system] or "").strip()
    first = [{"role": "system", "content": system}] if system else []
    answered: Messages = []
    emptied: Updates = {tab.text: ""} if is_typed else {}
    refilled: Updates = {tab.text: {"text": asked.text, "files": list(asked.pictures)}} if is_typed else {}
    try:
        answers = stream(servers.current(model.folder), [*first, *told(shown)], options)
        yield {tab.chat: shown, tab.speed: "", **emptied, **tab.options.mark({}), **_speaking(tab, True)}
        with servers.in_use(model.folder):
            for answer in paced(answers):
                answered = [{"role": "assistant", "content": answer.text}]
                yield {tab.chat: [*shown, *answered], tab.speed: speed(answer)}
    except AppError:
        # without an answer the conversation is what it was, and the question stands where it can be sent again
        left = [*shown, *answered] if answered else given[tab.chat]
        yield {tab.chat: left, **refilled, **_speaking(tab, False)}
        raise
    yield _speaking(tab, False)


def _lines(error: SpecError) -> str:
    return "; ".join(f"{label(name)}: {text}" for name, text in error.faults.items()) + "."


def _cleared() -> tuple[Messages, str]:
    return [], ""


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


def _speaking(tab: ChatTab, busy: bool) -> Updates:
    return {tab.send: gr.update(visible=not busy), tab.stop: gr.update(visible=busy)}
