"""The Jobs tab: one's own jobs, how far they are, and what came out."""

from dataclasses import dataclass

import gradio as gr
from gradio.blocks import Block

from backend.jobs.store import UNFINISHED, UNREADABLE, Job, JobState
from ui.jobs.job import adapter_alone, row, sizes, view
from ui.jobs.question import Question, build_question
from ui.jobs.report import report
from ui.jobs.rows import rows
from ui.jobs.training import answers, training
from ui.jobs.variants import variants
from ui.kit.errors import warning
from ui.kit.format import lead
from ui.kit.forms import Updates
from ui.publish.fields import published
from ui.studio import Studio

_CAN_RETRY = (JobState.ERROR, JobState.CANCELED, JobState.INTERRUPTED, JobState.WAITING_FOR_LOGIN)
_EMPTY = (
    '<section class="panel empty"><h2>No jobs yet</h2><p>Press <b>Start</b> beside your recipe. The job keeps running'
    " if you close the page; you find it here when you come back.</p></section>"
)


@dataclass(frozen=True)
class JobsTab:
    """Its components; `job` holds the id of the job that is looked at."""

    studio: Studio
    job: gr.State
    jobs: gr.Radio
    view: gr.HTML
    training: gr.HTML
    answers: gr.HTML
    keep: gr.Button
    cancel: gr.Button
    delete: gr.Button
    retry: gr.Button
    chat: gr.Button
    merge: gr.Button
    publish: gr.Button
    question: Question
    result: gr.HTML
    folded: gr.Accordion
    log: gr.Textbox

    @property
    def buttons(self) -> tuple[gr.Button, ...]:
        """What one can do with a job."""
        return (self.chat, self.merge, self.publish, self.retry, self.keep, self.cancel, self.delete)

    def outputs(self) -> list[Block]:
        """What show() changes."""
        told = [self.view, self.training, self.answers, self.result, self.folded, self.log]
        return [self.job, self.jobs, *told, *self.buttons, *self.question.outputs()]

    def show(self, owner: str | None, job_id: str | None) -> Updates:
        """Show an owner's jobs and one of them: the one asked for, or the newest."""
        jobs = self.studio.supervisor.list(owner) if owner else []
        job = next((j for j in jobs if j.id == job_id), jobs[0] if jobs else None)
        if owner is None or job is None:
            hidden = (
                self.jobs,
                *self.buttons,
                self.training,
                self.answers,
                self.result,
                self.folded,
                self.question.room,
            )
            return {self.job: None, self.view: _EMPTY} | {part: gr.update(visible=False) for part in hidden}
        choices = [(row(j), j.id) for j in jobs]
        lost = self.studio.supervisor.lost(job.id, owner)
        again = f"Damaged on this disk: {', '.join(lost)}. Try again recreates it." if lost else ""
        return {
            self.job: job.id,
            self.jobs: gr.update(choices=choices, value=job.id, visible=True),
            self.view: view(job) + (warning(again) if lost else ""),
            self.folded: gr.update(visible=True),
            self.log: self.studio.supervisor.log(job.id, owner),
            self.cancel: gr.update(visible=job.state in UNFINISHED),
            self.delete: gr.update(visible=job.state not in UNFINISHED),
            self.retry: gr.update(visible=(job.state in _CAN_RETRY and job.kind != UNREADABLE) or bool(lost)),
            **self.course(job, owner),
            **self._outcome(job, owner),
        }

    def training_outputs(self) -> list[Block]:
        """What course() changes."""
        return [self.training, self.answers, self.keep]

    def course(self, job: Job, owner: str) -> Updates:
        """Show how a job's training goes."""
        supervisor = self.studio.supervisor
        course = supervisor.course(job.id, owner)
        stopping = supervisor.stopping(job.id, owner)
        made = self.studio.trained(job, owner) if course and not job.trains else None
        told = training(job, course, stopping, made) if course else ""
        asked = answers(course) if course else ""
        return {
            self.training: gr.update(value=told, visible=bool(told)),
            self.answers: gr.update(value=asked, visible=bool(asked)),
            self.keep: gr.update(visible=job.trains, interactive=not stopping),
        }

    def _outcome(self, job: Job, owner: str) -> Updates:
        """Show what a job has made so far; each stage's result can be used before the whole job is done."""
        results = self.studio.results_of(job, owner) if job.state not in UNFINISHED else []
        alone = bool(results) and all(result.artifact.kind == "adapter" for result in results)
        text = rows(results, self.studio.worst_rows(results)) + variants(results)
        text += "".join(report(r, r.artifact.metrics) for r in results if r.artifact.metrics)
        text += sizes(results, self.studio.original_bytes(job)) if results else ""
        places = self.studio.supervisor.published(job.id, owner) if job.state == JobState.COMPLETED else []
        text += published(places) if places else ""
        text += adapter_alone(self.studio.shared) if alone else ""
        return {
            self.result: gr.update(value=text, visible=bool(text)),
            self.chat: gr.update(visible=any(result.answers for result in results)),
            self.merge: gr.update(visible=alone and not self.studio.shared),
            self.publish: gr.update(visible=bool(results)),
        }


def build_jobs_tab(studio: Studio) -> JobsTab:
    """Build it inside the open Blocks."""
    gr.HTML(lead("Jobs", "Jobs keep running even if you close this page."))
    with gr.Row(elem_classes=["split"]):
        with gr.Column(scale=2, min_width=240):
            jobs = gr.Radio(
                [], label="Your jobs", show_label=False, visible=False, elem_id="job-list", elem_classes=["rows"]
            )
        with gr.Column(scale=5, min_width=320):
            view_ = gr.HTML(_EMPTY, elem_id="job-view")
            with gr.Row(elem_classes=["actions"]):
                chat = gr.Button("Chat with it", variant="primary", visible=False, scale=0, elem_id="job-chat")
                merge = gr.Button("Merge it", visible=False, scale=0, elem_id="job-merge")
                publish = gr.Button("Publish it", visible=False, scale=0, elem_id="job-publish")
                retry = gr.Button("Try again", visible=False, scale=0, elem_id="job-retry")
                keep = gr.Button("Stop and keep", visible=False, scale=0, elem_id="job-keep")
                cancel = gr.Button("Cancel", visible=False, scale=0, elem_id="job-cancel")
                delete = gr.Button("Delete", visible=False, scale=0, elem_id="job-delete")
            question = build_question(studio, "job")
            result = gr.HTML("", visible=False, elem_id="job-report")
            training_ = gr.HTML("", visible=False, elem_id="job-training")
            answers_ = gr.HTML("", visible=False, elem_id="job-answers")
            with gr.Accordion("Log", open=False, visible=False, elem_classes=["more"]) as folded:
                log = gr.Textbox(
                    lines=10, max_lines=20, label="Log", show_label=False, interactive=False, elem_id="job-log",
                    elem_classes=["mono"],
                )  # fmt: skip
    return JobsTab(
        studio, gr.State(None), jobs, view_, training_, answers_, keep, cancel, delete, retry, chat, merge, publish,
        question, result, folded, log,
    )  # fmt: skip
