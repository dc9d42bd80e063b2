"""The data folder of an earlier version, as it wrote it on 2026-11-30: a table whose rows held the jobs' specs."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

KEPT = Path(__file__).parent / "earlier_jobs"
"""A table with a job of each kind, and the folder of the first, without its weights."""

DONE, WAITING = "0" * 32, "0" * 31 + "1"


def earlier(home: Path) -> Path:
    """Lay the data folder out in `home`."""
    (home / "jobs").mkdir(parents=True)
    shutil.copytree(KEPT / DONE, home / "jobs" / DONE)
    with closing(sqlite3.connect(home / "jobs.sqlite")) as db:
        db.executescript((KEPT / "jobs.sql").read_text(encoding="utf-8"))
    return home
