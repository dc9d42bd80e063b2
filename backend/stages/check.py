"""The check step: what was made, or the folder that was named, is tried in the engine that serves it."""

from pathlib import Path

from backend.artifacts.artifact import MANIFEST, Artifact, now
from backend.artifacts.sealing import record, verify
from backend.check import CheckOptions, Tried, check
from backend.evaluate import PROMPTS
from backend.model_folder import is_adapter
from backend.progress import Report
from backend.serve.engines import expected
from backend.settings import load_settings
from backend.stages.step import Need, Planned, Step
from backend.stages.work import Work, artifacts, models, trained_on

IMPORT_SECONDS = 8.0
ANSWER_SECONDS_A_PARAMETER = 3.7e-8  # the answers of both models
LONGER = 2  # times as many tokens has an answer that goes on to its end


def run(work: Work, token: str | None, report: Report) -> None:
    """Try each; see backend.check."""
    found, given = None, work.given
    for folder in _tried(work):
        known = verify(folder) if (folder / MANIFEST).is_file() else None
        base = None
        if is_adapter(folder):
            base = (given.base if given else None) or trained_on(folder)
        tried = Tried(folder, base, base or _original(work, folder))
        found = check(tried, work.options, load_settings(), report)
        if known:
            record(folder, check=found)
        report.log(f"{folder.name}: {found.words}")
    work.seal(Artifact(kind="checked", stage="check", check=found, created=now()))


def _original(work: Work, folder: Path) -> Path | None:
    """Return the folder of the model that a result was made from, if it is still here."""
    if work.given:
        return work.given.reference or trained_on(folder)
    return work.fetched.folder


def _tried(work: Work) -> list[Path]:
    """Return the models that were made; where there are none, the adapter."""
    if work.given:
        return [work.given.folder]
    return models(work.job) or artifacts(work.job)


def need(stage: CheckOptions, planned: Planned) -> Need:
    """Estimate trying each result in its engine: a server of it, then its weights in transformers."""
    facts = planned.facts
    engine = expected(stage.engine)
    memory = engine.overhead + facts.loaded
    once = engine.start_seconds + facts.parameters * ANSWER_SECONDS_A_PARAMETER * LONGER
    remedy = "leave the check out, or choose a machine with more memory"
    return Need(memory, IMPORT_SECONDS + len(planned.results) * once, remedy=remedy)


def words(stage: CheckOptions) -> tuple[str, str]:
    """Say how it is tried."""
    return "Test it in the engine that will serve it", f"{len(PROMPTS)} prompts"


SUMMARY = (
    "It answers a few prompts there, which are compared with what its weights say. Answers that never end, repeat"
    " themselves, are empty, only think or call no tool fail it, where the original's do not. What is published is"
    " tested first in any case."
)

STEP = Step(run, need=need, words=words, summary=SUMMARY, alone=True)
