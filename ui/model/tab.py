"""The Model tab: choosing a base model, what it is, and what quantizing will give."""

from dataclasses import dataclass
from pathlib import Path

import gradio as gr

from backend.errors import AdapterError, SpecError
from backend.hub.ids import DEMO, parse_model
from backend.hub.search import Hit, search
from backend.models.config import reads_pictures
from backend.models.demo import first_model
from backend.models.facts import ModelFacts
from backend.models.inspection import inspect
from backend.quantize import METHODS
from backend.recipes import Recipe
from backend.stages.estimate import estimate
from backend.weights.anatomy import is_expert
from ui.kit.errors import fault
from ui.kit.format import count, duration, escape, lead, size, times
from ui.kit.forms import Updates
from ui.studio import Studio

_HITS = 12


@dataclass(frozen=True)
class ModelTab:
    """Its components; `facts` holds the ModelFacts of the chosen model.

    `adapter` holds the adapter that was named as a model, with its base model, while `offer` offers to merge the two.
    """

    studio: Studio
    facts: gr.State
    query: gr.Textbox
    find: gr.Button
    demo: gr.Button
    hits: gr.Radio
    revision: gr.Textbox
    note: gr.HTML
    offer: gr.Button
    adapter: gr.State
    card: gr.HTML
    gains: gr.HTML

    def outputs(self) -> list[gr.components.Component]:
        """What looking for a model changes."""
        offered = [self.note, self.offer, self.adapter]
        return [self.facts, self.hits, self.demo, self.revision, *offered, self.card, self.gains]

    def look(self, query: str, token: str | None) -> Updates:
        """Choose the model that was named, or list what the Hub has for the words."""
        query = query.strip()
        if not query:
            raise SpecError("Type a model's name, or paste its id.")
        if query == DEMO or "/" in query or "\\" in query:
            return self.no_hits() | self.pick(query, token)
        found = search(query, limit=_HITS, token=token)
        if not found:
            raise SpecError(f"The Hub has no text model for '{query}'. Check the spelling, or paste the whole id.")
        choices = [(_hit_words(hit), hit.id) for hit in found]
        hits = gr.update(visible=True, choices=choices, value=None)
        return {self.hits: hits, self.note: "", self.offer: gr.update(visible=False)}

    def pick(self, model: str, token: str | None) -> Updates:
        """Choose a model; of an adapter, offer to choose its base model and to merge it."""
        try:
            return self.choose(model, "", token)
        except AdapterError as e:
            if not e.base_model:
                raise
            words = f"Choose {e.base_model} and merge this adapter into it"
            offer = gr.update(visible=True, value=words)
            return {self.note: fault(e), self.offer: offer, self.adapter: (model, e.base_model)}

    def choose(self, model: str, revision: str, token: str | None) -> Updates:
        """Look at a model and show what it is.

        Raises:
            SpecError: The name is not a valid one.
            HubError: The Hub does not have it, or refuses.
        """
        try:
            name = parse_model(model)
        except ValueError as e:
            raise SpecError(f"Not a valid model: {e}.") from e
        facts = inspect(name, revision=revision.strip() or None if name != DEMO else None, token=token)
        picked = ["pick", "picked"] if name == first_model() else ["pick"]
        return {
            self.facts: facts,
            self.demo: gr.update(elem_classes=picked),
            self.revision: gr.update(value=revision, visible=name != DEMO),
            self.note: "",
            self.offer: gr.update(visible=False),
            self.card: card(facts),
            self.gains: gains(facts, self.studio.settings.data),
        }

    def choose_demo(self) -> Updates:
        """Choose the bundled model."""
        return self.choose(first_model(), "", None) | self.no_hits()

    def no_hits(self) -> Updates:
        """Take away what a search has found."""
        return {self.hits: gr.update(visible=False, choices=[], value=None)}


def build_model_tab(studio: Studio) -> ModelTab:
    """Build it inside the open Blocks."""
    gr.HTML(
        lead(
            "Choose a model",
            "Any language model, of text alone or of pictures too. The bundled one needs no network and no account.",
        )
    )
    with gr.Row(elem_classes=["ask"]):
        query = gr.Textbox(
            placeholder="Search the Hub, or paste a model's id or address",
            show_label=False,
            label="Model",
            max_lines=1,
            elem_id="model-query",
        )
        find = gr.Button("Search", scale=0, min_width=104, elem_id="model-find")
    note = gr.HTML("", elem_id="model-note")
    offer = gr.Button("", visible=False, elem_id="model-merge")
    demo = gr.Button("Demo model · SmolLM2 135M Instruct", size="sm", elem_id="model-demo", elem_classes=["pick"])
    hits = gr.Radio(label="On the Hub", choices=[], visible=False, elem_id="model-hits", elem_classes=["rows"])
    card_ = gr.HTML(_waiting(), elem_id="model-facts")
    gains_ = gr.HTML("", elem_id="model-gains")
    with gr.Accordion("More options", open=False, elem_classes=["more"]):
        revision = gr.Textbox(
            label="Revision",
            info="Branch, tag or commit of the Hub model. If empty, the current main. A recipe records the commit.",
            max_lines=1,
            elem_id="model-revision",
        )
    adapter = gr.State(None)
    return ModelTab(studio, gr.State(None), query, find, demo, hits, revision, note, offer, adapter, card_, gains_)


def standing(note: str, facts: ModelFacts | None) -> str:
    """Add to a refusal that the earlier model stays in the recipe."""
    name = (facts.base_model or facts.model) if facts else ""
    return note.replace("</p>", f" Your recipe still uses {escape(name)}.</p>") if note and name else note


def card(facts: ModelFacts) -> str:
    """Write what a model is."""
    name = facts.base_model or facts.model
    owner, _, short = name.rpartition("/")
    where = "bundled with Weightsmith" if facts.model == DEMO else f"commit {(facts.commit or 'unknown')[:8]}"
    rows = "".join(f"<div><dt>{k}</dt><dd>{escape(v)}</dd></div>" for k, v in _facts(facts).items())
    warnings = "".join(f'<p class="warn">{escape(text)}</p>' for text in _warnings(facts))
    return (
        f'<section class="panel"><header><h2>{escape(short)}</h2><p>{escape(owner)} · {escape(where)}</p></header>'
        f'<dl class="facts">{rows}</dl>{warnings}</section>'
    )


def gains(facts: ModelFacts, data: Path) -> str:
    """Write what each method would give, with its defaults; `data` is the data folder."""
    heads = ("On disk", "Smaller", "Memory", "Time")
    rows = ""
    for name, method in METHODS.items():
        cost = estimate(Recipe(base_model=facts.model, stages=(method.Options(),)), facts, data)
        smaller = times(facts.size / cost.output_bytes) if cost.output_bytes else ""
        cells = (size(cost.output_bytes), smaller, size(cost.peak_memory_bytes), f"about {duration(cost.seconds)}")
        rows += f'<tr data-method="{name}"><th scope="row">{escape(method.title)}</th>'
        labelled = zip(heads, cells, strict=True)
        rows += "".join(f'<td data-label="{head}">{escape(cell)}</td>' for head, cell in labelled) + "</tr>"
    head = "".join(f'<th scope="col">{text}</th>' for text in ("Method", *heads))
    return (
        '<section class="panel"><header><h2>What quantization saves</h2><p>Estimated for this machine; the time is'
        ' without the download. The method is chosen under Recipe.</p></header><div class="wide stacked"><table><thead>'
        f"<tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></section>"
    )


def _facts(facts: ModelFacts) -> dict[str, str]:
    access = "open"
    if facts.private:
        access = "private"
    elif facts.gated:
        access = "gated: its authors must grant access"
    return {
        "Architecture": facts.architecture,
        "Parameters": count(facts.parameters),
        "Size": f"{size(facts.size)} in {facts.encoding or facts.dtype}",
        "Reads": "text and pictures" if reads_pictures(facts.config) else "text",
        "Context": f"{facts.context_length:,} tokens" if facts.context_length else "not stated",
        "License": facts.license_name or facts.license or "not stated",
        "Access": access,
        "Chat template": "yes" if facts.chat_template else "no",
        "Weights": "pickled, converted to safetensors first" if facts.pickled else "safetensors",
        "Quantized": _quantized(facts),
    }


def _quantized(facts: ModelFacts) -> str:
    if facts.encoding:
        return f"by its authors, and decoded to {facts.dtype} where it is read"
    return f"already, with {facts.quant_method}" if facts.quant_method else "not yet"


def _warnings(facts: ModelFacts) -> list[str]:
    found = []
    if facts.quant_method:
        found.append(f"It is already quantized ({facts.quant_method}). Start from the 16-bit original instead.")
    if not facts.chat_template:
        found.append("It has no chat template: it continues text, but does not answer questions.")
    if not (facts.license or facts.license_name):
        found.append("Its authors state no license. Ask them before you publish anything made from it.")
    if any(is_expert(tensor) for tensor in facts.tensors):
        found.append(
            "It is a mixture of experts. NF4, FP4 and INT8 leave them in 16 bit and so save little; all other methods"
            " quantize them."
        )
    return found


def _hit_words(hit: Hit) -> str:
    owner, _, short = hit.id.rpartition("/")
    parts = [owner, f"{count(hit.downloads)} downloads", f"{count(hit.likes)} likes", "gated" if hit.gated else ""]
    return f"{short}\n{' · '.join(part for part in parts if part)}"


def _waiting() -> str:
    return '<section class="panel empty"><p>Reading the model …</p></section>'
