"""What happens in the Jobs tab, and from a finished job to the tabs that use its result."""

import gradio as gr

from ui.changes import hear
from ui.kit.events import QUIET
from ui.kit.forms import Updates
from ui.recipe_state import Workbench
from ui.visitor import Visitor, handler, require_alone

_SURE = "(job) => confirm('Delete this job and everything that it made?') ? job : null"


def wire_jobs(page: gr.Blocks, bench: Workbench) -> None:
    """Connect the tab; after a reload it shows what the database says."""
    _wire_news(page, bench)
    _wire_buttons(bench)
    _wire_again(bench)
    _wire_results(bench)


def _wire_news(page: gr.Blocks, bench: Workbench) -> None:
    studio, tab = bench.studio, bench.jobs

    @handler(studio.settings)
    def look(job_id: str | None, who: Visitor) -> Updates:
        return tab.show(who.owner, job_id)

    @handler(studio.settings)
    def train(job_id: str | None, who: Visitor) -> Updates:
        owner = who.known()
        return tab.course(studio.supervisor.get(job_id, owner), owner) if job_id else {tab.training: gr.skip()}

    @handler(studio.settings)
    def read(job_id: str | None, who: Visitor) -> Updates:
        owner = who.known()
        return {tab.log: studio.supervisor.log(job_id, owner) if job_id else ""}

    hear("jobs", look, [tab.job], tab.outputs())
    hear("training", train, [tab.job], tab.training_outputs())
    hear("log", read, [tab.job], [tab.log])
    page.load(look, tab.job, tab.outputs(), api_name="jobs_load", **QUIET)


def _wire_buttons(bench: Workbench) -> None:
    studio, tab = bench.studio, bench.jobs

    @handler(studio.settings)
    def pick(job_id: str, who: Visitor) -> Updates:
        return tab.show(who.owner, job_id) | tab.question.hidden()

    @handler(studio.settings)
    def keep(job_id: str, who: Visitor) -> Updates:
        owner = who.known()
        studio.supervisor.stop_training(job_id, owner)
        return tab.show(owner, job_id)

    @handler(studio.settings)
    def cancel(job_id: str, who: Visitor) -> Updates:
        owner = who.known()
        studio.supervisor.cancel(job_id, owner)
        return tab.show(owner, job_id)

    @handler(studio.settings)
    def delete(job_id: str | None, who: Visitor) -> Updates:
        owner = who.known()
        if job_id:  # none: the visitor thought better of it
            studio.delete(job_id, owner)
        return tab.show(owner, job_id)

    tab.jobs.input(pick, tab.jobs, tab.outputs(), api_name="jobs_pick", **QUIET)
    tab.keep.click(keep, tab.job, tab.outputs(), api_name="jobs_keep", **QUIET)
    tab.cancel.click(cancel, tab.job, tab.outputs(), api_name="jobs_cancel", **QUIET)
    tab.delete.click(delete, tab.jobs, tab.outputs(), js=_SURE, api_name="jobs_delete", **QUIET)


def _wire_again(bench: Workbench) -> None:
    studio, tab = bench.studio, bench.jobs

    def again(job_id: str, owner: str, token: str | None, agreed: bool) -> Updates:
        if asked := tab.question.put(studio.supervisor.get(job_id, owner).read_spec(), owner, agreed):
            return asked
        studio.supervisor.retry(job_id, owner, token)
        return tab.show(owner, job_id) | tab.question.hidden()

    @handler(studio.settings)
    def retry(job_id: str, typed: str, who: Visitor) -> Updates:
        return again(job_id, who.member(), who.token(typed), agreed=False)

    @handler(studio.settings)
    def unload(job_id: str, typed: str, who: Visitor) -> Updates:
        return again(job_id, who.member(), who.token(typed), agreed=True)

    asked = [tab.job, bench.token]
    tab.retry.click(retry, asked, tab.outputs(), api_name="jobs_retry", **QUIET)
    tab.question.unload.click(unload, asked, tab.outputs(), api_name="jobs_unload_and_retry", **QUIET)


def _wire_results(bench: Workbench) -> None:
    studio = bench.studio
    jobs = bench.jobs
    chat = bench.chat
    publish = bench.publish

    @handler(studio.settings)
    def to_chat(job_id: str, who: Visitor) -> Updates:
        owner = who.member()
        results = studio.results_of(studio.supervisor.get(job_id, owner), owner)
        result = [result for result in results if result.answers][-1]
        studio.load(result, owner)
        return chat.enter(owner, result.key) | {bench.tabs: gr.Tabs(selected="chat")}

    @handler(studio.settings)
    def to_publish(job_id: str, repo: str, who: Visitor) -> Updates:
        owner = who.known()
        result = studio.results_of(studio.supervisor.get(job_id, owner), owner)[-1]
        return publish.enter(owner, result.key, repo) | {bench.tabs: gr.Tabs(selected="publish")}

    @handler(studio.settings)
    def to_merge(job_id: str, method: str, target: str, typed: str, who: Visitor) -> Updates:
        owner = who.known()
        require_alone(studio.settings)
        result = studio.results_of(studio.supervisor.get(job_id, owner), owner)[-1]
        return bench.merge_finetuned(result, method, who.token(typed), target)

    jobs.chat.click(to_chat, jobs.job, [*chat.outputs(), bench.tabs], api_name="jobs_to_chat", **QUIET)
    asked = [jobs.job, bench.recipe.method, bench.recipe.target, bench.token]
    merged = jobs.merge.click(to_merge, asked, [*bench.filled(), bench.tabs], api_name="jobs_to_merge", **QUIET)
    bench.refresh_after(merged, "jobs_to_merge")
    published = [*publish.outputs(), bench.tabs]
    jobs.publish.click(to_publish, [jobs.job, publish.repo], published, api_name="jobs_to_publish", **QUIET)
