"""The panel of a training: figures and plots that say what the files say, and nothing of a row that acts as HTML."""

import re

import pytest

from backend.artifacts.artifact import Training
from backend.artifacts.training_log import Course
from backend.jobs.store import Job, JobState
from ui.plot import POINTS, SMALL, Frame, Line, plot, thinned
from ui.training_view import answers, training

FIGURES = [
    {"step": 0, "epoch": 0, "eval_loss": 4.575, "tokens_per_second": 0.0, "memory_bytes": 10**9},
    {"step": 10, "epoch": 0.5, "loss": 3.0, "learning_rate": 2e-4, "grad_norm": 1.5, "tokens_per_second": 812.0,
     "memory_bytes": 2 * 10**9},
    {"step": 10, "epoch": 0.5, "eval_loss": 2.61, "tokens_per_second": 790.0, "memory_bytes": 2 * 10**9},
]  # fmt: skip
PROGRESS = {"phase": "training", "done": 12, "total": 40, "unit": "steps", "seconds_left": 200.0}


def job(state=JobState.RUNNING, **progress):
    return Job(
        id="j", owner="me", kind="recipe", spec={"base_model": "demo"}, state=state, created=0, step=1,
        steps=("fetch", "finetune", "merge"), progress={**PROGRESS, **progress},
    )  # fmt: skip


def test_the_figures_of_a_running_training_are_the_newest():
    told = training(job(), Course(FIGURES, []), False, None)
    found = dict(re.findall(r"<dt>(.+?)</dt><dd>(.+?)</dd>", told))
    assert found["Step"] == "12 of 40"
    assert found["Epoch"] == "0.50"
    assert found["Validation loss"] == "4.58 → 2.61"
    assert found["Speed"] == "790 tokens/s"
    assert found["Memory"] == "2.00 GB"
    assert found["Time left"] == "about 3 min"
    assert "Stop and keep" in told


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"stopping": True}, "Stopping after this step"),
        ({"lines": [*FIGURES, {"step": 10, "resumed": True}]}, "Going on after step 10"),
        ({"stopped": "Stopped by its user."}, "Stopped by its user. It ended after step 12 of 40."),
    ],
)
def test_what_happens_to_a_training_is_said(given, words):
    recorded = {"dataset": "demo", "rows": 1, "validation_rows": 0, "tokens": 1, "learned_tokens": 1, "steps": 12}
    recorded |= {"planned_steps": 40, "train_loss": 1.0, "stopped": given.get("stopped")}
    made = Training(**recorded) if "stopped" in given else None
    course = Course(given.get("lines", FIGURES), [])
    assert words in training(job(), course, given.get("stopping", False), made)


def test_a_plot_goes_from_the_first_step_to_the_planned_end_and_down_as_the_loss_does():
    told = plot("Loss", [Line("rows", "one", [(0, 4.0), (20, 3.0), (40, 2.0)])], 40, None)
    places = [tuple(map(float, place.split(","))) for place in re.search(r'points="(.+?)"', told)[1].split()]
    frame = Frame(480, 190, 40, 2.0, 4.0)
    assert [x for x, _ in places] == [frame.x(0), frame.x(20), frame.x(40)]
    heights = [y for _, y in places]
    assert heights == sorted(heights)  # SVG counts from above
    assert "rows 2 at step 40" in told
    assert "step 40: 2" in told


def test_one_value_and_equal_values_are_drawn_too_and_none_is_not():
    assert "circle" in plot("Rate", [Line("rate", "one", [(1, 0.0)])], 1, None, SMALL)
    assert "circle" in plot("Rate", [Line("rate", "one", [(1, 2e-4), (2, 2e-4)])], 2, None, SMALL)
    assert plot("Rate", [Line("rate", "one", [])], 5, None) == ""


def test_a_long_training_is_drawn_with_few_points_that_are_means():
    points = [(step, float(step % 2)) for step in range(10_000)]
    drawn = thinned(points)
    assert len(drawn) <= POINTS
    assert drawn[-1][0] == 9_999
    assert all(value == pytest.approx(0.5, abs=0.02) for _, value in drawn)


def test_answers_are_shown_over_time_and_literally():
    lines = [{"step": step, "prompt": "<b>Why?</b>", "answer": "<script>" if step < 30 else "Because."}
             for step in range(0, 60, 10)]  # fmt: skip
    told = answers(Course([], lines))
    assert "<b>" not in told
    assert "<script" not in told
    assert "&lt;script&gt;" in told
    assert re.findall(r"<th scope='row'>(.+?)</th>", told) == ["before", "step 30"]  # the same answer stands there once
    assert answers(Course([], [])) == ""
