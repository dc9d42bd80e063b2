"""What merge and quantize share: a model goes through once, and its result is sealed with what belongs beside it."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from backend.artifacts.artifact import MANIFEST
from backend.artifacts.sealing import manifest_size, partial, seal
from backend.machine.speeds import Speeds
from backend.merge.merging import merged
from backend.models.config import embedded
from backend.models.rewriting import PlannedOptions, config_json
from backend.progress import Report
from backend.recipes import Recipe
from backend.stages.companions import Base, base_in, base_of, complete
from backend.stages.step import Need, Planned
from backend.stages.work import Work
from backend.weights.checkpoint import Checkpoint, Weights
from backend.weights.decoded import decoded, encoded_as
from backend.weights.output import Output, Resumable
from backend.weights.plan import Plan

TENSOR_SECONDS = 3.5e-5  # of Python's own for each tensor that is read, and each that is written
DECODED_SECONDS = 1e-9  # for each number of a model that ships in 8 or 4 bits: 2 cores with AVX-512


class Opened(NamedTuple):
    """What a stage works on, and where its result goes."""

    weights: Weights
    output: Output
    base: Base  # what they are of, with the adapters that are merged in


@contextmanager
def open_weights(work: Work, report: Report) -> Iterator[Weights]:
    """Open what a stage works on: the base model, or the merged one, from its folder if that is kept."""
    recipe = work.recipe
    merging = recipe.merging
    at = recipe.stages.index(merging) + recipe.first if merging else 0
    kept = merging is not None and merging.keep and work.number > at
    with Checkpoint.of(work.output(at) if kept else work.fetched.folder) as stored:
        weights = dense_weights(stored, report)
        if merging is None or kept:
            yield weights
        else:
            with merged(weights, work.adapters, merging, report) as result:
                yield result


def dense_weights(stored: Weights, report: Report) -> Weights:
    """Return weights that are dense, and say so where they are decoded for that."""
    weights = decoded(stored)
    if how := encoded_as(stored.config):
        report.log(f"The weights of '{stored.name}' are {how}: they are decoded to {weights.config['dtype']}.")
    return weights


def make(work: Work, name: str, write: Callable[[Opened], str | None], report: Report) -> None:
    """Make a result and seal it.

    Args:
        work: The step.
        name: What the log calls the result.
        write: Writes weights and config; returns what was calibrated on, in words.
        report: Receives progress; its warnings stay with the artifact.
    """
    recipe = work.recipe
    options = work.options
    base = work.fetched.folder
    folder = partial(work.target, keep=True)
    known = base_in(base)._replace(adapters=tuple(base_in(adapter) for adapter in work.adapters))
    started = time.monotonic()
    output = Resumable(folder)
    with open_weights(work, report) as weights:
        known = known._replace(rows=embedded(weights.config))
        plan = options.plan(weights.tensors, weights.config)
        calibration = write(Opened(weights, output, known))
    seconds = time.monotonic() - started
    artifact = complete(recipe, options, known, plan, folder, report)
    report.progress("sealing", 0, 1, "files")
    found = {"seconds": round(seconds, 1), "calibration": calibration}
    sealed = seal(folder, work.target, artifact.model_copy(update=found), output.hashes)
    report.log(f"{name}: {sealed.size / 1e6:.0f} MB in {seconds:.0f} s.")


def piece_by_piece(options: PlannedOptions, planned: Planned) -> Need:
    """Estimate writing a model piece by piece; what is written is hashed while it is forced to the disk."""
    facts, speed = planned.facts, planned.speed
    plan = options.plan(facts.tensors, facts.config)
    seconds = _seconds(getattr(options, "method", options.stage), plan, speed) + DECODED_SECONDS * facts.decoded
    memory = speed.worker_bytes + plan.memory + facts.decoding_memory
    return result(options, plan, planned, Need(memory, planned.around + seconds))


def result(options: PlannedOptions, plan: Plan, planned: Planned, need: Need) -> Need:
    """Add to what a stage needs the files of its result, and what of it is doubtful."""
    return need._replace(files=_files(planned.recipe, options, plan, planned), doubts=tuple(plan.doubts))


def _seconds(method: str, plan: Plan, speed: Speeds) -> float:
    changed = sum(view.tensor.bytes for part in plan.parts for view, form in part.work if form is not plan.plain)
    plain = sum(view.tensor.bytes for part in plan.parts for view, form in part.work if form is plan.plain)
    written = sum(plan.files.values())
    seconds = changed / speed.rate(method) + plain / speed.rate("cast") + written / min(speed.hash, speed.write)
    return seconds + TENSOR_SECONDS * (plan.tensors + plan.slots)


def _files(recipe: Recipe, options: PlannedOptions, plan: Plan, planned: Planned) -> dict[str, int]:
    """Return the bytes of every file of a result."""
    facts, base = planned.facts, base_of(planned.facts)
    pinned = recipe.model_copy(update={"revision": facts.commit})
    changes = options.config(facts.tensors, facts.config)
    files = {**plan.files, "config.json": len(config_json(facts.config, facts.tensors, changes))}
    files |= {name: source.files[name] for name, source in base.copied().items()}
    files |= {name: len(content) for name, content in base.texts(pinned).items()}
    return files | {MANIFEST: manifest_size(base.record(pinned, options), files)}
