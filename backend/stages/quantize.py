"""The quantize step: the model, or what was merged into it, in fewer bits, or cast to another type."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backend.artifacts.sealing import open_artifact
from backend.hub.transfer import size_words
from backend.models.facts import ModelFacts
from backend.progress import Report
from backend.quantize import METHODS
from backend.quantize.calibrated.options import CalibratedOptions
from backend.quantize.calibrated.repacking import repack
from backend.quantize.formats import readers
from backend.serve.engines import ENGINES
from backend.stages.evaluate import first_text
from backend.stages.making import Opened, make, piece_by_piece, result
from backend.stages.named_rows import fetch_rows, pin_rows
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
    if not (isinstance(stage, CalibratedOptions) and stage.calibration):
        return stage
    return stage.model_copy(update={"calibration": pin_rows(stage.calibration, "calibration", token)})


def fetch(stage: Any, work: Work, folder: Path, token: str | None, report: Report) -> None:
    """Bring the rows that a calibrated method reads."""
    at = work.number - work.recipe.first
    if isinstance(stage, CalibratedOptions) and stage.calibration and work.recipe.calibration_of(at) == at:
        fetch_rows(stage.calibration, "calibration", folder / f"calibration-{at + 1}", token, report)


def need(stage: Any, planned: Planned) -> Need:
    """Estimate it: a calibrated method needs what its layers do, any other goes through piece by piece."""
    unread = _unread(stage, planned.facts)
    if not isinstance(stage, CalibratedOptions):
        found = piece_by_piece(stage, planned)
        return found._replace(doubts=(*found.doubts, *unread))
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
    notes = _read(stage, planned) if calibrates else ()
    return found._replace(doubts=(*found.doubts, *doubts, *unread), notes=notes)


def _read(stage: CalibratedOptions, planned: Planned) -> tuple[str, ...]:
    """Say what calibration reads where nobody names rows; whether a template has thoughts or tools is seen later.

    Args:
        stage: The quantization.
        planned: Of which recipe, and which model.
    """
    if stage.calibration:
        return ()
    text = "embedded prose alone, for the model has no chat template"
    if planned.facts.chat_template:
        text = "embedded prose and conversations, with thoughts and tool calls if the model's chat template has them"
    rows = "the rows that are trained on, and beside them " if planned.recipe.tuning else ""
    return (f"Calibration reads {rows}{text}.",)


def _unread(stage: Any, facts: ModelFacts) -> list[str]:
    """Say what a chat takes where transformers does not load the result, which its card says."""
    reading = readers({**facts.config, **stage.config((), facts.config)})["transformers"]
    held = f"without vLLM, the chat here unpacks the result to 16 bit: {size_words(facts.loaded)} of memory"
    return [f"{reading.refusal}; {held}."] if reading.refusal else []


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
