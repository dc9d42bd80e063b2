"""How a training looks while it runs and afterwards: figures, plots over the steps, and the model's answers."""

from collections.abc import Callable
from itertools import groupby
from operator import itemgetter
from typing import Any, TypeVar

from backend.artifacts.artifact import Training
from backend.artifacts.training_log import Course
from backend.jobs.store import Job
from backend.machine.hardware import gpus
from ui.kit.format import count, duration, escape, size
from ui.kit.plot import SMALL, Line, number, plot

Figure = TypeVar("Figure")

SHOWN = 5
"""Answers to one question that are shown: the first, the last, and some between."""


def training(job: Job, course: Course, stopping: bool, made: Training | None) -> str:
    """Write the panel of a training: figures, then plots.

    Args:
        job: With its progress, while it runs.
        course: What was measured so far.
        stopping: Whether it was asked to end.
        made: What is recorded of it, once it is done.
    """
    last = _last_step(job, course)
    loss = course.series("loss")
    learned = course.series("eval_loss")
    mark = course.resumed
    losses = [Line("training data", "one", loss), Line("validation data", "two", learned)]
    plots = plot("Loss, nats per token", losses, last, mark)
    small = plot("Learning rate", [Line("learning rate", "one", course.series("learning_rate"))], last, mark, SMALL)
    small += plot("Gradient norm", [Line("gradient norm", "one", course.series("grad_norm"))], last, mark, SMALL)
    facts = "".join(f"<div><dt>{k}</dt><dd>{escape(v)}</dd></div>" for k, v in _figures(job, course, last).items())
    return (
        f'<section class="panel training"><header><h2>Training</h2>{_told(job, course, stopping, made)}</header>'
        f'<dl class="facts">{facts}</dl>{plots}<div class="plots">{small}</div></section>'
    )


def answers(course: Course) -> str:
    """Write the model's answers to the same questions over time; empty where it was asked nothing."""
    by_prompt = sorted(course.answers, key=itemgetter("prompt"))
    parts = "".join(_answers(str(prompt), list(lines)) for prompt, lines in groupby(by_prompt, itemgetter("prompt")))
    if not parts:
        return ""
    head = "<header><h2>Answers</h2><p>To questions from the validation data, asked at each validation.</p></header>"
    return f'<section class="panel replies">{head}{parts}</section>'


def _told(job: Job, course: Course, stopping: bool, made: Training | None) -> str:
    """Say what is not in the figures."""
    if made and made.stopped:
        text = f"{made.stopped} It ended after step {made.steps:,} of {made.planned_steps:,}."
    elif stopping:
        text = "Stopping after this step: what was learned is kept, and the later steps follow."
    elif course.resumed is not None:
        verb = "Resuming" if job.trains else "It resumed"
        text = f"{verb} after step {course.resumed:,}, from its last complete checkpoint."
    elif job.trains:
        text = (
            "Stop and keep ends it early with what was learned, and the later steps follow. Cancel ends the job"
            " without a result; Try again then resumes from the last checkpoint."
        )
    else:
        return ""
    return f"<p>{escape(text)}</p>"


def _last_step(job: Job, course: Course) -> int:
    """Return the step at which the training is to end, or where it ended."""
    done = max((line["step"] for line in course.figures), default=0)
    return max(done, int(_steps(job).get("total", 0)))


def _steps(job: Job) -> dict[str, Any]:
    """Return a running training's progress, once it is at its steps."""
    found = (job.progress or {}) if job.trains else {}
    return found if found.get("unit") == "steps" else {}


def _figures(job: Job, course: Course, last: int) -> dict[str, str]:
    """Return the newest figures, in words."""
    step = max((line["step"] for line in course.figures), default=0)
    progress = _steps(job)
    step = int(progress.get("done", step))
    learned = course.series("eval_loss")
    found = {
        "Step": f"{step:,} of {last:,}" if job.trains and last else f"{step:,}",
        "Epoch": _written(course.last("epoch"), lambda epoch: f"{epoch:.2f}"),
        "Loss": _written(course.last("loss"), number),
        "Validation loss": _from_to(learned),
        "Speed": _written(course.last("tokens_per_second") or None, lambda speed: f"{count(speed)} tokens/s"),
        "GPU memory" if gpus() else "Memory": _written(course.last("memory_bytes"), size),
        "Time left": _written(progress.get("seconds_left"), lambda left: f"about {duration(left)}"),
    }
    return {name: value for name, value in found.items() if value}


def _written(value: Figure | None, words: Callable[[Figure], str]) -> str:
    return "" if value is None else words(value)


def _from_to(points: list[tuple[int, float]]) -> str:
    if not points:
        return ""
    first = number(points[0][1])
    last = number(points[-1][1])
    return last if len(points) == 1 else f"{first} → {last}"


def _answers(prompt: str, lines: list[dict[str, Any]]) -> str:
    """Write the answers to one question: the first, the last, and some between; where it stays the same, once."""
    told = [next(same) for _, same in groupby(lines, itemgetter("answer"))]
    places = sorted({round(i * (len(told) - 1) / (SHOWN - 1)) for i in range(SHOWN)})
    rows = "".join(
        f"<tr><th scope='row'>{_when(line['step'])}</th><td>{escape(line['answer']) or '<i>nothing</i>'}</td></tr>"
        for line in (told[place] for place in places)
    )
    return f'<h3>{escape(prompt.strip())}</h3><div class="wide"><table><tbody>{rows}</tbody></table></div>'


def _when(step: int) -> str:
    return f"step {step:,}" if step else "before"
