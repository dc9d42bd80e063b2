"""A job's folder: how it holds what the job is asked.

It holds the spec as `<kind>.json` and the sealed output of each step, see backend.stages.work.
"""

from pathlib import Path
from typing import Any

from backend.disk import read_whole, write_whole
from backend.errors import JobError, SpecError
from backend.hub.ids import STORED
from backend.options import parse
from backend.spec import Spec
from backend.stages.kinds import KINDS
from backend.stages.work import PUBLISHED, stage_folder

NO_JOB = "This job cannot be read: it is damaged, or of another version of Weightsmith. Delete it."


def kind(spec: Spec) -> str:
    """Return the spec's kind, a key of KINDS."""
    return type(spec).__name__.lower()


def spec_file(job: Path, kind: str) -> Path:
    """Return the file of a job's folder that holds a spec of a kind."""
    return job / f"{kind}.json"


def write_spec(job: Path, spec: Spec) -> None:
    """Put the spec into the job's folder."""
    job.mkdir(parents=True, exist_ok=True)
    write_whole(spec_file(job, kind(spec)), spec.model_dump_json(exclude_none=True, indent=2))


def read_spec(job: Path) -> Spec:
    """Read the spec that the job's folder holds.

    Raises:
        JobError: The folder is no job's, or its spec cannot be read.
    """
    for name in KINDS:
        if spec_file(job, name).is_file():
            return parse_spec(name, read_whole(spec_file(job, name), dict[str, Any]))
    raise JobError(f"'{job.name}' holds no job: start it again.")


def holds_spec(job: Path) -> bool:
    """Return whether a folder is one that a job was begun in."""
    return any(spec_file(job, name).exists() for name in KINDS)


def parse_spec(kind: str, data: Any) -> Spec:
    """Build a spec from what was stored of it.

    Raises:
        JobError: It is none that this version knows.
    """
    try:
        return parse(KINDS[kind], data, context=STORED)
    except (KeyError, SpecError) as e:
        raise JobError(NO_JOB) from e


def published(job: Path, spec: Spec) -> list[dict[str, Any]]:
    """Return where a job's artifacts were published; empty before its last step is sealed."""
    return read_whole(stage_folder(job, spec, len(spec.steps) - 1) / PUBLISHED, list[dict[str, Any]]) or []
