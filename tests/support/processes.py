"""Waiting for processes."""

import sys
import time

import pytest

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are found through /proc")


def wait_until(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()
