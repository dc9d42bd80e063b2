"""The quantize step: the model, or what was merged into it, in fewer bits, or cast to another type."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from backend.artifacts.sealing import open_artifact
from backend.data.options import RowsOptions, is_file
from backend.models.facts import ModelFacts
from backend.options import faults_of
from backend.progress import Report, silent
from backend.quantize import METHODS
from backend.quantize.calibrated.options import CalibratedOptions
from backend.quantize.calibrated.repacking import repack
from backend.serve.engines import ENGINES
from backend.stages.evaluate import first_text
from backend.stages.making import Opened, make, piece_by_piece, result
from backend.stages.step import Need, Planned, Step
from backend.stages.work import Work


def run(work: Work, token: str | None, report: Report) -> None:
    """Quantize."""
    options = work.options
    quantize = METHODS[options.method].quantize

    def write(model: Opened) -> str | None:
        if not isinstance(options, CalibratedOptions):
            quantize(model.weights, model.output, options, report)
            return None
        for doubt in _unserved(options, model.weights.config):
            report.warn(doubt)
        finds = work.recipe.calibration_of(work.number - work.recipe.first)
        if finds != work.number - work.recipe.first:
            return _repacked(work, finds, model, report)
        from backend.stages.calibration_data import windows

        read = windows(work.recipe, options, model.base, work.fetch_folder, first_text(work), report)
        gained = quantize(model.weights, model.output, options, read, report)
        return f"{read.words}; scales refined: {gained}" if gained else read.words

    make(work, options.method, write, report)


def _repacked(work: Work, finds: int, model: Opened, report: Report) -> str | None:
    """Pack the grids that another stage has found, and repeat what it said of its calibration.

    Args:
        work: The step.
        finds: The place of that stage in the recipe.
        model: What both work on.
        report: Receives the blocks.
    """
    folder, before = work.output(work.recipe.first + finds), work.recipe.stages[finds]
    assert isinstance(before, CalibratedOptions)
    known = open_artifact(folder)
    report.log(f"The grids are those of '{folder.name}': nothing is calibrated again.")
    repack(model.weights, model.output, work.options, (folder, before), report)
    of_its_own = _unserved(before, model.weights.config)
    for warning in known.warnings:
        if warning not in (*of_its_own, *report.warnings):
            report.warn(warning)
    return known.calibration


def pin(stage: Any, facts: ModelFacts, token: str | None) -> Any:
    """Read the rows of this machine that a calibrated method reads, or pin its data set to a commit."""
    if not isinstance(stage, CalibratedOptions):
        return stage
    return stage.model_copy(update={"calibration": _pinned(stage, token)})


def _pinned(stage: CalibratedOptions, token: str | None) -> RowsOptions | None:
    if not stage.calibration:
        return None
    from backend.data.examine import load
    from backend.data.fetch import fetch_dataset, pin

    rows = stage.rows()
    if is_file(rows.dataset):
        with TemporaryDirectory() as folder, faults_of("calibration"):
            load(fetch_dataset(rows, Path(folder), token, silent()).train, rows)
    return stage.calibration.model_copy(update={"revision": pin(rows, token).revision})


def fetch(stage: Any, work: Work, folder: Path, token: str | None, report: Report) -> None:
    """Bring the rows that a calibrated method reads."""
    at = work.number - work.recipe.first
    if isinstance(stage, CalibratedOptions) and stage.calibration and work.recipe.calibration_of(at) == at:
        from backend.stages.calibration_data import fetch_calibration

        fetch_calibration(stage, at + 1, folder, token, report)


def need(stage: Any, planned: Planned) -> Need:
    """Estimate it: a calibrated method needs what its layers do, any other goes through piece by piece."""
    if not isinstance(stage, CalibratedOptions):
        return piece_by_piece(stage, planned)
    from backend.quantize.calibrated.costs import calibrated_cost, refinement_cost, refinement_obstacle, repacking_cost

    facts, doubts = planned.facts, _unserved(stage, planned.facts.config)
    at = planned.recipe.stages.index(stage)
    calibrates = planned.recipe.calibration_of(at) == at
    cost = (calibrated_cost if calibrates else repacking_cost)(facts, stage)
    memory, seconds = cost
    if calibrates and stage.refines:
        obstacle = refinement_obstacle(facts, stage, planned.machine.room)
        more = refinement_cost(facts, stage)
        if obstacle:
            doubts.append(obstacle)
        else:
            memory, seconds = max(memory, 0 if planned.machine.gpu else more.memory), seconds + more.seconds
    plan = stage.plan(facts.tensors, facts.config)
    found = result(stage, plan, planned, Need(memory + facts.decoding_memory, planned.around + seconds))
    return found._replace(doubts=(*found.doubts, *doubts))


def _unserved(stage: CalibratedOptions, config: Mapping[str, Any]) -> list[str]:
    """Say which engine will not serve the result, although it serves others in the layout."""
    made = {**config, **stage.config((), config)}
    refusals = (engine.unserved(made, "the result") for engine in ENGINES.values())
    return [refusal.words for refusal in refusals if refusal]


def grid(options: Mapping[str, Any]) -> str:
    """Say the bits and the group size that a method has been given: 4 bit · 64; nothing where it has no choice."""
    bits, group = options.get("bits"), options.get("group_size")
    return (f"{bits} bit" if bits else "") + (f" · {group}" if group and group != -1 else "")


def method_name(options: Mapping[str, Any]) -> str:
    """Name a method, with the layout where that has another name: NF4, GPTQ in compressed-tensors."""
    method = str(options.get("method", "unknown"))
    layout = options.get("layout") or method
    return method.upper() + (f" in {layout}" if layout != method else "")


def words(stage: Any) -> tuple[str, str]:
    """Say the method and its grid."""
    if stage.method == "cast":
        return f"Cast to {stage.dtype}", "no quantization"
    options = stage.model_dump()
    detail = grid(options) or METHODS[stage.method].title.partition("·")[2].strip()
    return f"Quantize to {method_name(options)}", detail


STEP = Step(run, pin=pin, fetch=fetch, need=need, words=words, alone=True)
