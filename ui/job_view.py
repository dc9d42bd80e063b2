"""How a job looks: its name, its steps, its bar, its sizes."""

from collections.abc import Sequence

from backend.artifacts.artifact import Check
from backend.jobs.store import UNREADABLE, Job, JobState
from backend.recipes import Recipe
from ui.downloads import address
from ui.format import ago, duration, escape, percent, size
from ui.progress import bar, share
from ui.studio import Result, model_name, stage_title, way
from ui.variants import variant_name

_STATES = {
    JobState.QUEUED: "Waiting for its turn",
    JobState.RUNNING: "Running",
    JobState.COMPLETED: "Done",
    JobState.ERROR: "Failed",
    JobState.CANCELED: "Canceled",
    JobState.WAITING_FOR_LOGIN: "Waiting for you to sign in",
    JobState.INTERRUPTED: "Interrupted",
}
_MARKS = {"done": "✓", "now": "●", "failed": "✕", "next": "○"}


def title(job: Job) -> tuple[str, str]:
    """Name a job by what it does and what it does it to."""
    if job.kind == UNREADABLE:
        return "Unreadable job", job.id[:8]
    spec = job.read_spec()
    recipe = spec.carried_out
    if not isinstance(recipe, Recipe):
        return spec.title
    what = stage_title(recipe.making[0]) if len(recipe.making) == 1 else way(recipe.making)
    return what[:1].upper() + what[1:], model_name(recipe.base_model)


def row(job: Job) -> str:
    """Write a job as a choice of the list: what, of what, then state and age."""
    done = share(job.progress) if job.state == JobState.RUNNING else None
    state = _STATES[job.state] + (f" · {done:.0f}%" if done is not None else "")
    return "\n".join([*title(job), f"{state} · {ago(job.finished or job.started or job.created)}"])


def view(job: Job) -> str:
    """Write a job: title, state, steps, and the bar while it runs or the error where it failed."""
    steps = "".join(_step(job, i, name) for i, name in enumerate(_steps(job)))
    what, whereof = title(job)
    return (
        f'<section class="panel job" data-state="{job.state}"><header><h2>{escape(what)} · {escape(whereof)}</h2>'
        f'<p id="job-state" data-standing="{job.id}">{escape(standing(job))}</p></header>'
        f'<ol class="marks">{steps}</ol><div data-going="{job.id}">{going(job)}</div>{_error(job)}</section>'
    )


def standing(job: Job) -> str:
    """Say how a job stands, and since when."""
    return _STATES[job.state] + _timing(job)


def sizes(results: Sequence[Result], before: int | None) -> str:
    """Write what was made, and how large it is beside the original.

    Args:
        results: The job's artifacts.
        before: Bytes of the original's weight files, if known.
    """
    rows = f"<tr><th scope='row'>Original</th><td>{size(before)}</td><td></td></tr>" if before else ""
    for result in results:
        made = result.artifact.size
        part = f"{percent(made / before)} of it" if before else ""
        rows += f"<tr><th scope='row'>{escape(result.title)}</th><td>{size(made)}</td><td>{part}</td></tr>"
    warnings = "".join(f'<p class="warn">{escape(text)}</p>' for r in results for text in r.artifact.warnings)
    warnings += "".join(_check(r, r.artifact.check) for r in results if r.artifact.check)
    return (
        '<section class="panel"><header><h2>Size</h2></header><div class="wide"><table><tbody>'
        f"{rows}</tbody></table></div>{warnings}{''.join(map(_files, results))}</section>"
    )


def _files(result: Result) -> str:
    """Write the files of a result as downloads, the largest first, folded."""
    found = sorted(result.artifact.files.items(), key=lambda item: -item[1].size)
    rows = "".join(
        f'<tr><th scope="row"><a href="{escape(address(result, name))}" download>{escape(name)}</a></th>'
        f"<td>{size(file.size)}</td></tr>"
        for name, file in found
    )
    return (
        f'<details><summary>Download {escape(result.title)}</summary><div class="wide"><table><tbody>{rows}</tbody>'
        "</table></div></details>"
    )


def _check(result: Result, check: Check) -> str:
    """Say what came of trying a result in its engine."""
    text = f"{result.title}: {check.words}"
    return f'<p class="{"quiet" if check.passed else "warn"}">{escape(text)}</p>'


def adapter_alone(shared: bool) -> str:
    """Say how to go on from an adapter alone; `shared`: on a page where no recipe can name its folder."""
    way = "Publish it, then look for it under Model: its base model and the merge are offered there." if shared else (
        "The button above fills your recipe with that.")  # fmt: skip
    return (
        '<section class="panel"><header><h2>The adapter</h2></header><p class="quiet">It works beside its base model,'
        f" here and with PEFT. To quantize what was tuned, it is merged into the model first. {way}</p></section>"
    )


def _steps(job: Job) -> list[str]:
    """Name a job's steps; variants by what they are."""
    plan = job.read_spec().plan if job.kind != UNREADABLE else ()
    made = [getattr(asked.options, "makes", None) for asked in plan]
    if made.count("quantized") < 2:
        return list(job.steps)
    return [
        variant_name(asked.options.model_dump()) if what == "quantized" else asked.step
        for asked, what in zip(plan, made, strict=True)
    ]


def _step(job: Job, index: int, name: str) -> str:
    if job.state == JobState.COMPLETED or index < job.step:
        mark = "done"
    elif index > job.step or job.state == JobState.QUEUED:
        mark = "next"
    else:
        mark = "failed" if job.state in (JobState.ERROR, JobState.CANCELED) else "now"
    return f'<li class="{mark}"><span aria-hidden="true">{_MARKS[mark]}</span>{escape(name)}</li>'


def going(job: Job) -> str:
    """Write how far a job is, while it runs; the page puts it in the place of what it wrote before."""
    return bar(job.progress, _phase(job), "job-bar") if job.state == JobState.RUNNING else ""


def _phase(job: Job) -> str:
    step = job.steps[job.step] if job.step < len(job.steps) else ""
    return str((job.progress or {}).get("phase") or step or "starting")


def _timing(job: Job) -> str:
    if job.started and job.finished:
        return f" after {duration(job.finished - job.started)}, {ago(job.finished)}"
    return f", started {ago(job.started)}" if job.started and job.state == JobState.RUNNING else ""


def _error(job: Job) -> str:
    return f'<p class="fault" role="alert">{escape(job.error)}</p>' if job.error else ""
