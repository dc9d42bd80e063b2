"""The merge step: adapters and their base model become one model, or are found to fit where that is not kept."""

from pathlib import Path
from typing import Any

from backend.artifacts.artifact import Artifact, now
from backend.artifacts.sealing import partial
from backend.disk import read_whole, write_whole
from backend.merge.merging import merge
from backend.merge.options import MergeOptions
from backend.models.facts import ModelFacts
from backend.progress import Report
from backend.settings import load_settings
from backend.stages.making import Opened, make, open_weights, piece_by_piece
from backend.stages.step import Need, Planned, Step
from backend.stages.work import MODEL, Fetched, Work


def run(work: Work, token: str | None, report: Report) -> None:
    """Merge."""
    options = work.options
    if not options.keep:
        with open_weights(work, report) as weights:  # the adapters fit, which was all that could go wrong
            options.plan(weights.tensors, weights.config)
        work.seal(Artifact(kind="checked", stage="merge", created=now()), partial(work.target, keep=True))
        return

    def write(model: Opened) -> None:
        merge(model.weights, model.output, options, report)

    make(work, "merged", write, report)


def pin(stage: MergeOptions, facts: ModelFacts, token: str | None) -> Any:
    """Check it, and pin its adapters to their commits."""
    from backend.merge.on_hub import inspect_adapters

    stage.check(facts)
    return inspect_adapters(stage, facts, token) if stage.adapters else stage


def fetch(stage: MergeOptions, work: Work, folder: Path, token: str | None, report: Report) -> None:
    """Bring the adapters."""
    from backend.merge.on_hub import fetch_adapters

    adapters = tuple(fetch_adapters(stage, load_settings().models, token, report))
    places = read_whole(folder / MODEL, Fetched)
    assert places
    write_whole(folder / MODEL, places.model_copy(update={"adapters": adapters}).model_dump_json())


def need(stage: MergeOptions, planned: Planned) -> Need:
    """Estimate it, as if its adapters brought neither tokens nor a tokenizer."""
    if not stage.keep:
        return Need(planned.speed.worker_bytes, planned.around)
    return piece_by_piece(stage, planned)


def words(stage: MergeOptions) -> tuple[str, str]:
    """Say how many adapters, and which."""
    title = "Merge an adapter" if len(stage.adapters) < 2 else f"Merge {len(stage.adapters)} adapters"
    names = ", ".join(name.rstrip("/").rpartition("/")[2] for name in stage.adapters) or "the fine-tuned one"
    return title, names if stage.keep else f"{names}, merged on the fly, not saved"


STEP = Step(run, pin=pin, fetch=fetch, need=need, words=words, alone=True)
