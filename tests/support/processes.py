"""Waiting for what processes do."""

import sys
import time

import pytest

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are found through /proc")


def until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    pytest.fail("it did not happen in time")
