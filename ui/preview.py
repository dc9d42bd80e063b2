"""The look at rows in the page: a preview job for what the form says now, shown as far as it is."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from backend.errors import AppError, JobError, SpecError
from backend.finetune.fetch import pin
from backend.finetune.options import FinetuneOptions
from backend.jobs.specs import Preview
from backend.jobs.store import UNFINISHED
from backend.models.facts import ModelFacts
from backend.options import parse
from ui.data_tab import keep
from ui.errors import fault
from ui.examination import NOTHING, panel, sight
from ui.forms import Updates, both
from ui.rows import RowsForm
from ui.studio import Studio
from ui.users import alone


@dataclass(frozen=True)
class Looking:
    """What looks at rows.

    Attributes:
        studio: The backend.
        rows: The form that names them.
        rendering: Components of specs.RENDERING that another form has, by option.
        job: The visitor's preview.
        stood: How far it was when it was shown last.
        survey: What it saw, for what a training will cost.
        timer: Runs while it does.
    """

    studio: Studio
    rows: RowsForm
    rendering: dict[str, Component]
    job: gr.State
    stood: gr.State
    survey: gr.State
    timer: gr.Timer

    def inputs(self) -> set[Any]:
        """What look() reads."""
        return {self.job, *self.rows.components, *self.rendering.values()}

    def outputs(self) -> list[Any]:
        """What look() and show() change."""
        rows = self.rows
        shown = [rows.panel, rows.sight, *rows.questions.values(), *rows.form.components]
        return [self.job, self.stood, self.survey, self.timer, *shown]

    def look(self, given: dict[Any, Any], facts: ModelFacts | None, owner: str, token: str | None) -> Updates:
        """Begin to look at the rows that the form names, if they are not what is looked at already."""
        if facts is None or self.rows.missing(given):
            return self._clear()
        try:
            options = pin(self._options(given), token)
            options.check(facts)
            spec = Preview(base_model=facts.model, revision=facts.commit, options=options)
            job_id = given[self.job]
            if job_id is None or not self._is(job_id, spec, owner):
                job_id = self.studio.supervisor.preview(spec, owner, token)
        except AppError as e:
            return self._refuse(e)
        return both(self.rows.mark({}), self.show(job_id, owner, None)) | {self.job: job_id}

    def _options(self, given: dict[Any, Any]) -> FinetuneOptions:
        """Read which rows are meant, and keep an upload where the job finds it."""
        rendering = {name: given[component] for name, component in self.rendering.items()}
        context = {"paths": alone(self.studio.settings)}
        options = parse(FinetuneOptions, rendering | self.rows.values(given), context=context)
        if upload := self.rows.upload(given):
            options = options.model_copy(update={"dataset": str(keep(Path(upload), self.studio.settings))})
        return options

    def tick(self, job_id: str | None, owner: str | None, stood: Any) -> Updates:
        """Show how far a preview is by now."""
        try:
            return self.show(job_id, owner, stood) if job_id and owner else self._clear()
        except JobError:
            words = "Other rows are looked at in another window of yours: press the button to look at these again."
            return self._clear() | {self.rows.panel: fault(words)}

    def show(self, job_id: str, owner: str, stood: Any) -> Updates:
        """Show how far a preview is, if it is further than it was.

        Raises:
            JobError: There is no such preview any more.
        """
        job = self.studio.supervisor.get(job_id, owner)
        stands = (job.id, job.state.value, job.step)
        if stands == stood:
            return {self.timer: gr.Timer(active=job.state in UNFINISHED)}
        seen = self.studio.supervisor.seen(job_id, owner)
        rows = self.rows
        updates: Updates = {rows.panel: panel(job, seen, rows.questions), self.stood: stands, **rows.ask(seen)}
        updates[self.survey] = seen.whole
        if seen.examination or seen.splits or job.state not in UNFINISHED:
            updates |= rows.offer(seen)
        if seen.survey or job.state not in UNFINISHED:
            updates[rows.sight] = sight(seen)
        return {**updates, self.timer: gr.Timer(active=job.state in UNFINISHED)}

    def _refuse(self, error: AppError) -> Updates:
        """Show why there is nothing to look at, beside its field where it has one."""
        faults = error.faults if isinstance(error, SpecError) else {}
        known = {name: text for name, text in faults.items() if name in self.rows.form.fields}
        return self._clear() | self.rows.mark(known) | {self.rows.panel: fault(error)}

    def _clear(self) -> Updates:
        """Show that nothing is looked at."""
        empty = dict.fromkeys((self.rows.sight, *self.rows.questions.values()), "")
        return {
            self.job: None,
            self.survey: None,
            self.timer: gr.Timer(active=False),
            self.rows.panel: NOTHING,
            **empty,
        }

    def _is(self, job_id: str, spec: Preview, owner: str) -> bool:
        """Whether a job looks at these rows, or has."""
        try:
            job = self.studio.supervisor.get(job_id, owner)
        except AppError:  # replaced from another window
            return False
        return job.error is None and job.read_spec() == spec


def build_looking(studio: Studio, rows: RowsForm, rendering: dict[str, Component]) -> Looking:
    """Build what is not seen, inside the open Blocks."""
    return Looking(studio, rows, rendering, gr.State(None), gr.State(None), gr.State(None), gr.Timer(0.5, active=False))
