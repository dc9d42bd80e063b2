"""A look at rows, as a job does it."""

from pathlib import Path
from typing import Any

from backend.finetune.options import FinetuneOptions
from backend.jobs.job import write_spec
from backend.jobs.previews import Seen, pinned, read_seen
from backend.jobs.worker import do
from backend.options import parse
from backend.progress import silent
from backend.spec import Preview


def spec(model: Path | str, revision: str | None = None, **given: Any) -> Preview:
    return pinned(str(model), revision, parse(FinetuneOptions, given, context={"paths": True}), None)


def looked(job: Path, wanted: Preview, count: int = 3) -> Seen:
    """Do the steps of a preview in this process."""
    write_spec(job, wanted)
    for index in range(count):
        do(job, index, index == 0, None, silent())
    return read_seen(job, wanted)
