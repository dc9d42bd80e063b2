"""The adopt step: a folder that was made elsewhere becomes an artifact, which the steps after it check and publish."""

import shutil

from backend.artifacts.artifact import Artifact, now
from backend.progress import Report
from backend.publish.adopt import adopt
from backend.stages.step import Step
from backend.stages.work import Work


def run(work: Work, token: str | None, report: Report) -> None:
    """Make an artifact of the folder that was named; the step's own folder says that this is done."""
    given = work.given
    assert given
    assert given.original
    shutil.rmtree(given.folder, ignore_errors=True)  # of a run that was killed between the two
    adopt(given.original, given.folder, given.base_model, report, token)
    work.seal(Artifact(kind="adopted", stage="adopt", created=now()))


STEP = Step(run, online=True)
