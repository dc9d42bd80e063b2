"""The course of a training: what its files say, also while they are being written."""

import json
from pathlib import Path

from backend.artifacts.training_log import read_course

FIGURES = [
    {"step": 0, "eval_loss": 4.5, "tokens_per_second": 0.0},
    {"step": 2, "loss": 4.0, "learning_rate": 2e-4},
    {"step": 4, "loss": None},  # was no number
    {"step": 4, "eval_loss": 3.0},
    {"step": 4, "resumed": True},
    {"step": 6, "loss": 2.5},
    {"step": 6, "eval_loss": 2.9},
    {"step": 6, "eval_loss": 2.2},  # the checkpoint that is kept
]


def write(folder: Path, lines: list[dict], end: str = "") -> Path:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + end)
    return folder


def test_a_figure_has_one_value_a_step_and_none_where_it_was_no_number(tmp_path):
    course = read_course(write(tmp_path, FIGURES))
    assert course.series("loss") == [(2, 4.0), (6, 2.5)]
    assert course.series("eval_loss") == [(0, 4.5), (4, 3.0), (6, 2.9)]
    assert course.last("eval_loss") == 2.2
    assert course.last("grad_norm") is None


def test_a_training_that_went_on_says_after_which_step(tmp_path):
    assert read_course(write(tmp_path, FIGURES)).resumed == 4
    assert read_course(write(tmp_path, FIGURES[:4])).resumed is None


def test_a_line_that_is_half_written_or_none_is_left_out(tmp_path):
    course = read_course(write(tmp_path, FIGURES[:2], '[1]\n{"loss": 1}\n{"step": 8, "lo'))
    assert [line["step"] for line in course.figures] == [0, 2]
    assert course.answers == []
