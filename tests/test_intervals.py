"""Intervals of the bootstrap, compared with what is known of means."""

import numpy as np
import pytest

from backend.intervals import FEWEST, between, intervals

STUDENT = {5: 2.7764, 8: 2.3646, 40: 2.0227}
"""The 97.5th percentile of Student's t for so many values, as tables have it."""


def mean(sums):
    return sums[:, :1] / sums[:, 1:]


@pytest.mark.parametrize("count", STUDENT)
def test_the_interval_of_a_mean_is_students(count):
    values = np.random.default_rng(count).normal(3, 1, count)
    low, high = intervals(np.stack([values, np.ones(count)], 1), mean)[0]
    half = STUDENT[count] * values.std(ddof=1) / np.sqrt(count)
    assert low == pytest.approx(values.mean() - half, abs=0.2 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.2 * half)


def test_a_long_window_weighs_as_many_tokens_as_it_has():
    sums = np.array([[9.0, 9.0]] + [[0.0, 1.0]] * 9)
    low, high = intervals(sums, mean)[0]
    assert low == 0
    assert high > 0.5 > sums[:, 0].sum() / len(sums) / 2


def test_from_few_windows_nothing_is_concluded():
    assert intervals(np.ones((FEWEST - 1, 2)), mean) is None
    assert intervals(np.ones((FEWEST, 2)), mean) == [(1.0, 1.0)]


def test_an_interval_is_written_behind_its_figure():
    assert f"0.056{between((0.0512, 0.0619), '.3f')}" == "0.056 [0.051, 0.062]"
    assert between(None, ".3f") == ""
