"""The publish step: the folder that the job is about, or the last that it has made, goes to the Hub or to a folder."""

import json

from backend.artifacts.artifact import Artifact, now
from backend.artifacts.sealing import partial
from backend.progress import Report
from backend.stages.step import Step
from backend.stages.work import PUBLISHED, Work, artifacts


def run(work: Work, token: str | None, report: Report) -> None:
    """Publish it, and note where it can be seen."""
    from backend.publish.push import publish

    folders = [work.given.folder] if work.given else artifacts(work.job)[-1:]
    published = [publish(folder, work.options, token, report).model_dump(mode="json") for folder in folders]
    folder = partial(work.target)
    (folder / PUBLISHED).write_text(json.dumps(published), encoding="utf-8")
    work.seal(Artifact(kind="published", stage="publish", created=now()), folder)


STEP = Step(run, online=True)
