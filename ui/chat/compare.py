"""Compare: the same question for two or three models, side by side, and a blind vote."""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import gradio as gr
from gradio.blocks import Block

from backend.errors import AppError, SpecError
from backend.machine.hardware import gpus
from backend.models.tokens import THINKS, THOUGHT
from backend.options import parse
from backend.serve.chat import ChatOptions, paced
from backend.serve.compare import MOST, PROMPT, Reply, as_csv, batch, compare, differences, read_prompts
from ui.kit.errors import fault, shown
from ui.kit.events import QUIET
from ui.kit.format import escape, part, size
from ui.kit.forms import Given, OptionForm, Updates
from ui.studio import Model, Studio
from ui.visitor import Visitor, handler

_LETTERS = "ABC"
_TIE = "tie"

_SAVE = """(table) => {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob(['\\ufeff' + table], { type: 'text/csv' }));
  link.download = 'answers.csv';
  link.click();
}"""
"""Writes the table where the browser keeps downloads; the mark at its begin tells spreadsheets that it is UTF-8."""


@dataclass(frozen=True)
class Compare:
    """Its components; `order` holds the models of the answers that are shown, `tally` the votes by model."""

    studio: Studio
    models: gr.Dropdown
    blind: gr.Checkbox
    prompt: gr.Textbox
    ask: gr.Button
    stop: gr.Button
    file: gr.File
    board: gr.HTML
    vote: gr.Radio
    note: gr.HTML
    save: gr.Button
    table: gr.State
    order: gr.State
    tally: gr.BrowserState

    def outputs(self) -> list[Block]:
        """What offer() changes."""
        return [self.models]

    def offer(self, models: list[Model], chosen: list[str] | None) -> Updates:
        """Offer models, and keep those that are chosen and still there."""
        choices = [(model.label, model.key) for model in models]
        kept = [key for key in chosen or [] if key in {model.key for model in models}]
        return {self.models: gr.update(choices=choices, value=kept or [key for _, key in choices[:2]])}


def build_compare(studio: Studio) -> Compare:
    """Build it inside the open Blocks."""
    text = "The same question, without pictures, and the same seed for two or three models, with the options above."
    gr.HTML(part("Compare", f"{text} Differences are marked."))
    models = gr.Dropdown([], multiselect=True, max_choices=MOST, label="Models", elem_id="compare-models")
    with gr.Row(elem_classes=["ask"]):
        prompt = gr.Textbox(
            label="Question", show_label=False, lines=1, max_lines=6, elem_id="compare-prompt",
            placeholder="Explain in one sentence why the sky is blue.",
        )  # fmt: skip
        ask = gr.Button("Ask all", variant="primary", scale=0, min_width=104, elem_id="compare-ask")
        stop = gr.Button("Stop", visible=False, scale=0, min_width=88, elem_id="compare-stop")
    blind = gr.Checkbox(
        label="Hide which is which until I have voted", elem_id="compare-blind",
        info="The order is shuffled for every question.",
    )  # fmt: skip
    note = gr.HTML("", elem_id="compare-note")
    board = gr.HTML("", elem_id="compare-board")
    vote = gr.Radio([], label="Which answer is best?", visible=False, elem_id="compare-vote")
    with gr.Accordion("Many questions at once", open=False, elem_classes=["more"]):
        file = gr.File(
            label="A text file with one question per line", file_count="single", type="filepath", height=96,
            elem_id="compare-file",
        )  # fmt: skip
        save = gr.Button("Download the table", size="sm", visible=False, elem_id="compare-save")
    tally = gr.BrowserState({}, storage_key="weightsmith-votes", secret="weightsmith")
    return Compare(
        studio, models, blind, prompt, ask, stop, file, board, vote, note, save, gr.State(""), gr.State(()), tally
    )


def wire_compare(tab: Compare, options: OptionForm, system: gr.Textbox) -> None:
    """Connect it; the sampling options are those of the chat."""
    settings = tab.studio.settings

    @handler(settings, tab.note)
    def ask(given: Given, who: Visitor) -> Iterator[Updates]:
        owner = who.member()
        models = _chosen(tab, given, owner)
        yield from _ask(tab, given, models, parse(ChatOptions, options.values(given)), (given[system] or "").strip())

    @shown(tab.note)
    def vote(best: str, order: tuple[tuple[str, Reply], ...], tally: dict[str, list[int]] | None) -> Updates:
        counted = {name: list(votes) for name, votes in (tally or {}).items()}
        for name, _ in order:
            votes = counted.setdefault(name, [0, 0])
            counted[name] = [votes[0] + (name == best), votes[1] + 1]
        seen: Updates = {tab.board: board(dict(order), hidden=False), tab.vote: gr.update(visible=False)}
        return {**seen, tab.tally: counted, tab.note: standings(counted)}

    @handler(settings, tab.note)
    def many(given: Given, who: Visitor) -> Iterator[Updates]:
        owner = who.member()
        models = _chosen(tab, given, owner)
        yield from _ask_many(tab, Path(given[tab.file]), models, parse(ChatOptions, options.values(given)))

    inputs: set[Block] = {tab.models, tab.blind, tab.prompt, tab.file, system, *options.components}
    outputs = [tab.note, tab.board, tab.vote, tab.order, tab.save, tab.table, tab.ask, tab.stop]
    sent = [tab.ask.click, tab.prompt.submit]
    asked = gr.on(sent, ask, inputs, outputs, api_name="compare_ask", **QUIET)
    batched = tab.file.upload(many, inputs, outputs, api_name="compare_many", **QUIET)
    ended = {"cancels": [asked, batched], "api_name": "compare_stop", **QUIET}
    tab.stop.click(lambda: _busy(tab, False), None, [tab.ask, tab.stop], **ended)
    voted = [tab.vote, tab.order, tab.tally]
    told = [tab.board, tab.vote, tab.tally, tab.note]
    tab.vote.input(vote, voted, told, api_name="compare_vote", **QUIET)
    tab.save.click(None, tab.table, None, js=_SAVE, api_name="compare_save", **QUIET)


def _chosen(tab: Compare, given: Given, owner: str) -> dict[str, Path]:
    """Return the folders of the chosen models by name, and note that their servers are used."""
    keys = given[tab.models] or []
    if len(keys) < 2:
        raise SpecError("Choose two or three models to compare.")
    models = [tab.studio.model(key, owner) for key in keys]
    titles = [model.title for model in models]
    for model in models:
        tab.studio.join(model.folder, owner)
    return {_named(model, titles): model.folder for model in models}


def _ask(tab: Compare, given: Given, models: dict[str, Path], sampling: ChatOptions, system: str) -> Iterator[Updates]:
    """Ask each model the question, and show the answers as they grow."""
    question = (given[tab.prompt] or "").strip()
    hidden = bool(given[tab.blind])
    if not question:
        raise SpecError("Write a question for all of them.")
    if hidden:
        models = dict(random.sample(list(models.items()), len(models)))
    yield {tab.note: "", tab.vote: gr.update(visible=False, value=None), tab.order: (), **_busy(tab, True)}
    servers, seconds = tab.studio.servers, tab.studio.settings.server_start_seconds
    replies = dict[str, Reply]()
    try:
        for replies in paced(compare(servers, models, question, system, sampling, seconds)):
            yield {tab.board: board(replies, hidden)}
    finally:
        ended = _busy(tab, False)
    answered = [name for name, reply in replies.items() if reply.answer and not reply.error]
    if hidden and len(answered) == len(replies):
        letters = [(_LETTERS[i], name) for i, name in enumerate(replies)]
        ended |= {tab.vote: gr.update(choices=[*letters, ("Tie", _TIE)], value=None, visible=True)}
    yield {**ended, tab.order: tuple(replies.items())}


def _ask_many(tab: Compare, file: Path, models: dict[str, Path], sampling: ChatOptions) -> Iterator[Updates]:
    """Ask each model every question of a file, and offer the answers as a table."""
    rows = [{PROMPT: prompt} for prompt in read_prompts(file)]
    yield {tab.save: gr.update(visible=False), **_busy(tab, True)}
    ended = _busy(tab, False)
    try:
        for done in batch(tab.studio.servers, models, rows, sampling, tab.studio.settings.server_start_seconds):
            yield {tab.note: f'<p class="quiet">{done} of {len(rows) * len(models)} answers.</p>'}
    except AppError as e:
        ended |= {tab.note: fault(e)}
    yield {**ended, tab.table: as_csv(rows), tab.save: gr.update(visible=len(rows[0]) > 1)}


def board(replies: Mapping[str, Reply], hidden: bool) -> str:
    """Write what each model has said, side by side.

    Args:
        replies: By the names of the models.
        hidden: Whether letters stand for the names.
    """
    first = next((reply.answer.text for reply in replies.values() if reply.answer), "")
    cells = "".join(
        f"<article><header><h3>{_LETTERS[i] if hidden else escape(name)}</h3>{_cost(reply, hidden)}</header>"
        f"{_said(reply, first if i else None)}</article>"
        for i, (name, reply) in enumerate(replies.items())
    )
    return f'<section class="panel board">{cells}</section>'


def standings(tally: Mapping[str, list[int]]) -> str:
    """Write how often each model was the best, of how many votes."""
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{best}</td><td>{votes}</td></tr>'
        for name, (best, votes) in sorted(tally.items(), key=lambda entry: -entry[1][0])
    )
    head = '<tr><th></th><th scope="col">Best</th><th scope="col">Votes</th></tr>'
    return f'<section class="panel"><table><thead>{head}</thead><tbody>{rows}</tbody></table></section>'


def _said(reply: Reply, first: str | None) -> str:
    if reply.error:
        return f'<p class="fault" role="alert">{escape(reply.error)}</p>'
    if reply.answer is None:
        return '<p class="quiet">Waiting for its turn.</p>'
    text = reply.answer.text.replace(THINKS, "").replace(THOUGHT, "\n")
    if first is None or reply.growing:
        return f"<p>{escape(text)}</p>"
    return _marked(first, text)


@lru_cache(maxsize=8)  # it stays so while the next model writes, piece by piece
def _marked(first: str, text: str) -> str:
    pieces = differences(first, text)
    return f"<p>{''.join(f'<mark>{escape(p)}</mark>' if differs else escape(p) for p, differs in pieces)}</p>"


def _cost(reply: Reply, hidden: bool) -> str:
    """Write speed and memory, which would tell the models apart while their names are hidden."""
    answer = reply.answer
    if answer is None or hidden:
        return ""
    parts = [f"{answer.tokens_per_second:.1f} tokens/s"] if answer.tokens_per_second else []
    parts += [f"first after {answer.seconds_to_first_token:.1f} s"] if answer.seconds_to_first_token else []
    place = "GPU memory" if gpus() else "memory"
    parts += [f"{size(reply.memory_bytes)} of {place}"] if reply.memory_bytes else []
    parts += [reply.engine] if reply.engine else []
    return f"<small>{escape(' · '.join(parts))}</small>"


def _named(model: Model, titles: list[str]) -> str:
    """Name a model by its title, and by age and size, too, where another has the same title."""
    return model.title if titles.count(model.title) == 1 else model.label


def _busy(tab: Compare, busy: bool) -> Updates:
    return {tab.ask: gr.update(visible=not busy), tab.stop: gr.update(visible=busy)}
