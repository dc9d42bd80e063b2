"""The count step: how many tensors each model has that the steps before it made."""

from backend.count import CountOptions

from backend.artifacts.artifact import Artifact, now
from backend.errors import JobError
from backend.progress import Report
from backend.stages.step import Need, Planned, Step
from backend.stages.work import Work, models
from backend.weights.checkpoint import Checkpoint


def run(work: Work, token: str | None, report: Report) -> None:
    """Count them, and refuse a model with too few."""
    options: CountOptions = work.options
    for folder in models(work.job):
        with Checkpoint.of(folder) as weights:
            found = len(weights.tensors)
        report.log(f"{folder.name}: {found} tensors.")
        if found < options.at_least:
            raise JobError(f"'{folder.name}' has {found} tensors, fewer than {options.at_least}.")
    work.seal(Artifact(kind="counted", stage="count", created=now()))


def need(stage: CountOptions, planned: Planned) -> Need:
    """Estimate it: headers are read, and nothing else."""
    return Need(planned.speed.worker_bytes, planned.around + 1000 * len(planned.results))


def words(stage: CountOptions) -> tuple[str, str]:
    """Say how many are wanted."""
    return "Count the tensors", f"at least {stage.at_least}"


STEP = Step(run, need=need, words=words, summary="A result with fewer tensors than you expect is refused.")
