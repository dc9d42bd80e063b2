"""The sidebar: the recipe as it stands, what it will cost, and the one button that starts it."""

from dataclasses import dataclass
from pathlib import Path

import gradio as gr

from backend.artifacts.artifact import MODELS
from backend.errors import HardwareError, SpecError
from backend.executors.local import this_machine
from backend.finetune.rendered import Survey
from backend.models.facts import ModelFacts
from backend.recipes import Recipe, Stage
from backend.settings import load_settings
from backend.stages import STEPS
from backend.stages.estimate import Estimate, check_room, converts, estimate
from ui.jobs.question import Question, build_question
from ui.kit.errors import fault, warning
from ui.kit.format import duration, escape, size
from ui.kit.forms import label
from ui.studio import Studio, way

CONVERTING = ("Convert the weights", "pickled, to safetensors")


@dataclass(frozen=True)
class Sidebar:
    """Its components."""

    summary: gr.HTML
    note: gr.HTML
    start: gr.Button
    question: Question


def build_sidebar(studio: Studio) -> Sidebar:
    """Build it inside the open Blocks."""
    with gr.Column(elem_id="sidebar", scale=0, min_width=0):
        summary = gr.HTML(empty(), elem_id="recipe-summary")
        start = gr.Button("Start", variant="primary", size="lg", elem_id="start", interactive=False)
        question = build_question(studio, "start")
        note = gr.HTML("", elem_id="start-note")
    return Sidebar(summary, note, start, question)


def empty() -> str:
    """Write the sidebar while no model is chosen."""
    return _card('<p class="quiet">Choose a model to begin.</p>')


def summary(recipe: Recipe, facts: ModelFacts, data: Path, survey: Survey | None) -> str:
    """Write the recipe and its estimate.

    Args:
        recipe: What is done.
        facts: Of its base model.
        data: The data folder.
        survey: Of the rows to learn from, where they were looked at.
    """
    name = facts.base_model or facts.model
    owner, _, short = name.rpartition("/")
    steps = [f'<li class="base"><b>{escape(short)}</b><small>{escape(owner) or "base model"}</small></li>']
    named = [CONVERTING, *_steps(recipe)] if converts(facts, data) else _steps(recipe)
    steps += [f"<li><b>{escape(title)}</b><small>{escape(text)}</small></li>" for title, text in named]
    steps.append(f'<li class="goal"><b>{escape(_goal(recipe))}</b></li>')
    line = f"{short} → {way(recipe.making)}"
    costs = _costs(recipe, facts, data, survey)
    return _card(f'<p class="line">{escape(line)}</p><ol class="steps">{"".join(steps)}</ol>{costs}')


def faulty(error: SpecError) -> str:
    """Write that the recipe cannot start yet, and why."""
    names = {name: name.rpartition(".")[2].partition("[")[0] for name in error.faults}
    lines = [f"{label(names[name])}: {text}" for name, text in error.faults.items()] or [str(error)]
    return _card(f'<p class="line">Not ready yet</p>{fault(chr(10).join(lines))}')


def _card(inside: str) -> str:
    return f'<section aria-label="Your recipe"><h2 class="eyebrow">Your recipe</h2>{inside}</section>'


def _steps(recipe: Recipe) -> list[tuple[str, str]]:
    return [step_words(stage) for stage in recipe.stages]


def step_words(stage: Stage) -> tuple[str, str]:
    """Say what a stage does: a title and a detail."""
    return STEPS[stage.stage].words(stage)


def _goal(recipe: Recipe) -> str:
    if recipe.publish:
        return f"Publish to {recipe.publish.repo_id or recipe.publish.to_folder}"
    return "Ready to chat and publish" if recipe.making[-1].makes in MODELS else "Ready to merge and publish"


def _costs(recipe: Recipe, facts: ModelFacts, data: Path, survey: Survey | None) -> str:
    needed = estimate(recipe, facts, data, survey=survey)
    downloads = facts.download > 0 and needed.disk_bytes > needed.output_bytes
    figures = {
        "Result": size(needed.output_bytes),
        "Disk": size(needed.disk_bytes),
        "Memory": size(needed.peak_memory_bytes),
        "Time": f"about {duration(needed.seconds)}{' + download' if downloads else ''}",
    }
    rows = "".join(f"<div><dt>{k}</dt><dd>{escape(v)}</dd></div>" for k, v in figures.items())
    for place, parts in needed.training_memory.items():
        told = {f"{place[:1].upper()}{place[1:]} to fine-tune": sum(parts.values()), **parts}
        rows += "".join(f'<div class="share"><dt>{escape(k)}</dt><dd>{size(v)}</dd></div>' for k, v in told.items())
    notes = "".join(f'<p class="quiet">{escape(text)}</p>' for text in needed.notes)
    doubts = "".join(f'<p class="warn">{escape(text)}</p>' for text in needed.warnings)
    return f'<dl class="costs">{rows}</dl>{notes}{doubts}{_refusal(needed, facts, data)}'


def _refusal(needed: Estimate, facts: ModelFacts, data: Path) -> str:
    """Write why the recipe would not be started; the button asks again, for the disk may have been freed."""
    try:
        check_room(needed, facts, this_machine(data, load_settings()))
    except HardwareError as e:
        return warning(e)
    return ""
