"""Inspection: a look at rows by a preview job for what the form says now, shown while it runs."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.blocks import Block
from gradio.components import Component

from backend.data.fetch import pin
from backend.errors import AppError, JobError, SpecError
from backend.evaluate import EvaluateOptions
from backend.finetune.options import FinetuneOptions
from backend.jobs.store import UNFINISHED
from backend.models.facts import ModelFacts
from backend.options import parse
from backend.spec import Cut, Preview
from ui.data.findings import nothing, panel, sight
from ui.data.rows_form import USUAL, RowsForm
from ui.data.tab import DataTab
from ui.kit.errors import fault
from ui.kit.forms import Given, Updates, both
from ui.recipe.tab import RecipeTab
from ui.studio import Studio
from ui.visitor import alone

Ask = Callable[[Given, ModelFacts, str, str | None], Preview]
"""Returns what to inspect, from the values of the page, the model, the owner and the owner's token."""


Stood = tuple[str, str, int]
"""A preview's id, state and step."""


@dataclass(frozen=True)
class Inspection:
    """A look at rows, for training or for calibration.

    Attributes:
        studio: The backend.
        rows: The form that names them.
        others: Components of other forms that change what there is to see.
        ask: Reads the forms.
        job: The visitor's preview.
        stood: How far it was when it was shown last.
        survey: What it saw, for what a training will cost.
    """

    studio: Studio
    rows: RowsForm
    others: tuple[Component, ...]
    ask: Ask
    job: gr.State
    stood: gr.State
    survey: gr.State

    def inputs(self) -> set[Block]:
        """What look() reads."""
        return {self.job, *self.rows.components, *self.others}

    def outputs(self) -> list[Block]:
        """What look() and show() change."""
        rows = self.rows
        shown = [rows.panel, rows.sight, *rows.questions.values(), *rows.form.components]
        return [self.job, self.stood, self.survey, *shown]

    def look(self, given: Given, facts: ModelFacts | None, owner: str, token: str | None) -> Updates:
        """Begin to inspect the rows that the form names, unless they are being inspected already."""
        if facts is None or self.rows.missing(given):
            return self._clear()
        try:
            spec = self.ask(given, facts, owner, token)
            job_id = given[self.job]
            if job_id is None or not self._is(job_id, spec, owner):
                job_id = self.studio.supervisor.preview(spec, owner, token)
        except AppError as e:
            return self._refuse(e)
        return both(self.rows.mark({}), self.show(job_id, owner, None)) | {self.job: job_id}

    def tick(self, job_id: str | None, owner: str | None, stood: Stood | None) -> Updates:
        """Show how far a preview is; one that has ended stays as it is, whatever another window inspects."""
        if job_id is None or (stood and stood[1] not in UNFINISHED):
            return {self.stood: gr.skip()}
        try:
            return self.show(job_id, owner, stood) if owner else self._clear()
        except JobError:
            words = "You opened other data in another window: press the button to inspect these rows again."
            return self._clear() | {self.rows.panel: fault(words)}

    def show(self, job_id: str, owner: str, stood: Stood | None) -> Updates:
        """Show how far a preview is, if it is further than it was.

        Raises:
            JobError: There is no such preview any more.
        """
        job = self.studio.supervisor.get(job_id, owner)
        stands = (job.id, job.state.value, job.step)
        if stands == stood:
            return {self.stood: stands}
        seen = self.studio.supervisor.seen(job_id, owner)
        rows = self.rows
        updates: Updates = {rows.panel: panel(job, seen, rows.questions), self.stood: stands, **rows.ask(seen)}
        updates[self.survey] = seen.whole
        if seen.examination or seen.splits or job.state not in UNFINISHED:
            updates |= rows.offer(seen)
        if seen.survey or job.state not in UNFINISHED:
            updates[rows.sight] = sight(seen)
        return updates

    def _refuse(self, error: AppError) -> Updates:
        """Show why there is nothing to look at, beside its field where it has one."""
        faults = error.faults if isinstance(error, SpecError) else {}
        known = {name: text for name, text in faults.items() if name in self.rows.form.fields}
        return self._clear() | self.rows.mark(known) | {self.rows.panel: fault(error)}

    def _clear(self) -> Updates:
        """Show that nothing is looked at."""
        rows = self.rows
        empty: Updates = dict.fromkeys((rows.sight, *rows.questions.values()), "")
        return {self.job: None, self.survey: None, rows.panel: nothing(rows.purpose.nothing), **empty}

    def _is(self, job_id: str, spec: Preview, owner: str) -> bool:
        """Return whether a job looks at these rows, or has."""
        try:
            job = self.studio.supervisor.get(job_id, owner)
        except AppError:  # replaced from another window
            return False
        return job.error is None and job.read_spec() == spec


def build_inspection(studio: Studio, rows: RowsForm, others: Iterable[Component], ask: Ask) -> Inspection:
    """Build what is not seen, inside the open Blocks."""
    states = gr.State(None), gr.State(None), gr.State(None)
    return Inspection(studio, rows, tuple(others), ask, *states)


def learning(studio: Studio, rows: RowsForm, rendering: dict[str, Component]) -> Ask:
    """Return what inspects rows as a training would use them.

    Args:
        studio: The backend.
        rows: The form that names them.
        rendering: Components of specs.RENDERING that another form has, by option.
    """

    def ask(given: Given, facts: ModelFacts, owner: str, token: str | None) -> Preview:
        said = {name: given[component] for name, component in rendering.items()}
        options = pin(_options(studio, rows, given, said, owner), token)
        options.check(facts)
        return Preview(base_model=facts.model, revision=facts.commit, options=options)

    return ask


def calibrating(studio: Studio, data: DataTab, recipe: RecipeTab) -> Ask:
    """Return what inspects rows as a calibrated quantization would read them, or what it reads by default.

    Args:
        studio: The backend.
        data: Says which rows, and what quality is measured on.
        recipe: Says how much is read, and whether something is fine-tuned before.
    """

    def ask(given: Given, facts: ModelFacts, owner: str, token: str | None) -> Preview:
        rows = data.calibration
        finetuned = bool(given[recipe.finetuning.wanted])
        asked = recipe.calibrated(given)
        usual = given[rows.source] == USUAL
        kept = {} if usual and finetuned else {"on_fault": "drop", "drop_duplicates": True, "allow_identical": True}
        options = pin(_options(studio, data.rows if usual and finetuned else rows, given, kept, owner), token)
        paths = {"paths": alone(studio.settings)}
        measured = parse(EvaluateOptions, data.values(given), context=paths) if given[recipe.evaluate] else None
        if measured and (text := data.text(given)):
            measured = measured.model_copy(update={"text": str(studio.supervisor.uploads.keep(Path(text), owner))})
        cut = Cut(
            embedded=usual and not finetuned,
            mixed=usual and finetuned,
            num_calibration_samples=asked.num_calibration_samples,
            max_seq_length=asked.max_seq_length,
            measured_on=measured,
        )
        return Preview(base_model=facts.model, revision=facts.commit, options=options, cut=cut)

    return ask


def _options(studio: Studio, rows: RowsForm, given: Given, said: dict[str, Any], owner: str) -> FinetuneOptions:
    """Read which rows are meant, and keep an upload where the job finds it."""
    options = parse(FinetuneOptions, said | rows.values(given), context={"paths": alone(studio.settings)})
    if upload := rows.upload(given):
        options = options.model_copy(update={"dataset": str(studio.supervisor.uploads.keep(Path(upload), owner))})
    return options
