"""What a recipe will need, before anything runs: bytes from the headers, memory and time from what was measured."""

import os
import sys
import time
from pathlib import Path
from typing import NamedTuple

from pydantic import Field

from backend.artifacts.artifact import MANIFEST
from backend.artifacts.sealing import is_sealed, manifest_size
from backend.errors import HardwareError
from backend.evaluate import ROWS, EvaluateOptions
from backend.finetune.costs import Machine, TrainingCost, adapter_parameters, sizes_of, training_cost, way_out
from backend.finetune.options import FinetuneOptions
from backend.finetune.rendered import Survey
from backend.hub.ids import DEMO, is_local
from backend.hub.transfer import check_disk, size_words
from backend.jobs.job import can_stream
from backend.jobs.job import steps as recipe_steps
from backend.machine.hardware import gpu_bytes, memory_bytes
from backend.machine.speeds import Speeds, read_speeds
from backend.models.config import longest_window
from backend.models.demo import facts_of
from backend.models.facts import ModelFacts
from backend.models.fetch import model_folder
from backend.models.rewriting import PlannedOptions, config_json
from backend.options import Frozen
from backend.processes.child import Child, environment
from backend.processes.ranks import processes
from backend.quantize.calibrated.costs import calibrated_cost
from backend.quantize.calibrated.options import CalibratedOptions
from backend.recipes import Recipe
from backend.serve.engines import expected
from backend.settings import load_settings
from backend.stages.companions import base_of
from backend.stages.stream.handover import ON_DISK
from backend.weights.plan import Plan

# Measured with the demo model on 2 cores of an AVX-512 server, torch 2.13 and transformers 5.23.
END_SECONDS = 0.2  # of a step: until it is noticed, and nothing of it is left
TENSOR_SECONDS = 3.5e-5  # of Python's own for each tensor that is read, and each that is written
DEMO_BYTES, DEMO_SECONDS = 1_000_000_000, 18.0  # making its folder, with transformers
CONVERT_BYTES, CONVERT_SECONDS = 250_000_000, 3.0  # Python with torch
EVALUATE_BYTES = 540_000_000  # Python with torch, transformers and bitsandbytes
ROWS_BYTES = 24  # for each of the compared rows and token of the vocabulary: six copies in float32
COPIES_BYTES = 160  # for each token of a window and number that it is in a layer
EVALUATE_SECONDS = 8.0  # the imports
EVALUATE_SECONDS_A_TOKEN_AND_PARAMETER = 2.4e-11  # both models, forward
ANSWER_SECONDS_A_PARAMETER = 3.7e-8  # the answers of both models


class Estimate(Frozen):
    """What a recipe needs; sizes in bytes, time in seconds."""

    output_bytes: int = Field(description="Of the results, every file.")
    peak_memory_bytes: int = Field(description="Of the step that needs most.")
    disk_bytes: int = Field(description="What is written: the download, if it is not here already, and the results.")
    seconds: float = Field(description="All steps, without the download.")
    files: dict[str, int] = Field(description="Bytes of every file; with the result's folder where there are several.")
    warnings: tuple[str, ...] = Field((), exclude=True, description="What of a result stays as large as it is.")
    memory: dict[str, int] = Field(exclude=True, description="Of each kind of step.")
    training: TrainingCost | None = Field(None, exclude=True, description="Of the training, by part.")
    remedy: str = Field("", exclude=True, description="Settings with which a training fits that does not.")

    @property
    def training_memory(self) -> dict[str, dict[str, int]]:
        """Bytes of the training by part, under whose memory they are; empty where nothing is trained."""
        places = {"memory": self.training.host, "GPU memory": self.training.gpu} if self.training else {}
        return {place: parts for place, parts in places.items() if parts}


class Step(NamedTuple):
    """What one step of a recipe needs."""

    name: str
    memory: int  # bytes
    seconds: float


def streams(recipe: Recipe, facts: ModelFacts, data: Path, keep: bool) -> bool:
    """Whether a recipe is done from repo to repo, so that its model need not lie here whole; see estimate()."""
    return not (keep or facts.pickled) and can_stream(recipe) and _fetched(facts, data.resolve() / "models") > 0


def converts(facts: ModelFacts, data: Path) -> bool:
    """Return whether a model's weights are pickled, and were not converted here before."""
    return facts.pickled > 0 and _fetched(facts, data.resolve() / "models") > 0


def estimate(
    recipe: Recipe, facts: ModelFacts, data: Path, keep: bool = False, survey: Survey | None = None
) -> Estimate:
    """Say what a recipe needs; of a merge, as if its adapters brought neither tokens nor a tokenizer.

    Args:
        recipe: What is done.
        facts: Of its base model, with its tensors.
        data: The data folder: what lies there already need not be fetched, and its disk is the one that was measured.
        keep: Whether the result is wanted on this machine, also where it could go from repo to repo.
        survey: Of the rows to train on, where they were looked at.
    """
    if facts.model == DEMO and is_sealed(data.resolve() / "models" / DEMO):
        facts = facts_of(data.resolve() / "models" / DEMO)
    fetched = _fetched(facts, data.resolve() / "models")
    speed = read_speeds(data) or Speeds()
    recipe = recipe.model_copy(update={"converts": converts(facts, data) or None})
    results, steps, doubts = _stages(recipe, facts, fetched > 0, speed)
    if recipe.converts:
        steps.append(_conversion(facts, speed))
    if "check" in recipe_steps(recipe) and not streams(recipe, facts, data, keep):
        steps.append(_checking(facts, [*results.values()]))
    training, remedy = _training(recipe.tuning, facts, survey) if recipe.tuning else (None, "")
    if training:
        steps.append(Step("finetune", training.memory, speed.start_seconds + END_SECONDS + training.seconds))
    files = {
        f"{folder}/{name}" if len(results) > 1 else name: count
        for folder, found in results.items()
        for name, count in found.items()
    }
    output = sum(files.values())
    written = fetched + output * (2 if recipe.publish and recipe.publish.to_folder else 1)
    if streams(recipe, facts, data, keep):
        written = _passing(facts, files)
    return Estimate(
        output_bytes=output,
        peak_memory_bytes=max(step.memory for step in steps),
        disk_bytes=written,
        seconds=round(sum(step.seconds for step in steps), 1),
        files=files,
        warnings=doubts,
        training=training,
        remedy=remedy,
        memory={step.name: step.memory for step in sorted(steps, key=lambda step: step.memory)},
    )


def check_room(needed: Estimate, facts: ModelFacts, data: Path) -> None:
    """Refuse a recipe that does not fit this machine.

    Args:
        needed: By the recipe.
        facts: Of its base model.
        data: The data folder; it need not exist yet.

    Raises:
        HardwareError: Disk or memory; what is needed, what is there, and what to do.
    """
    to_do, have = f"run this recipe on '{facts.base_model or Path(facts.model).name}'", memory_bytes()
    place = "this machine has"
    check_disk(data, needed.disk_bytes, to_do)
    step, need = max(needed.memory.items(), key=lambda item: item[1])
    if needed.training and needed.training.gpu_memory > gpu_bytes():
        step, need, have, place = "finetune", needed.training.gpu_memory, gpu_bytes(), "its GPU has"
    if need > have:
        remedy = "choose a smaller model, or a machine with more memory"
        if step == "check":
            remedy = "leave the check out, or choose a machine with more memory"
        if step == "evaluate":
            remedy = "leave evaluate out, give it a smaller max_seq_length, or choose a machine with more memory"
        if step == "finetune":
            remedy = needed.remedy or remedy
        raise HardwareError(
            f"Could not {to_do}. Its step '{step}' needs {size_words(need)} of memory and {place}"
            f" {size_words(have)}, {size_words(need - have)} too little: {remedy}."
        )


def _stages(
    recipe: Recipe, facts: ModelFacts, fetching: bool, speed: Speeds
) -> tuple[dict[str, dict[str, int]], list[Step], tuple[str, ...]]:
    """Give the bytes of the files of each result, by its folder, what each step needs, and what is doubtful."""
    around = speed.start_seconds + END_SECONDS
    steps = [Step("fetch", speed.worker_bytes, around)]
    if facts.model == DEMO and fetching:
        steps = [Step("fetch", DEMO_BYTES, around + DEMO_SECONDS)]
    results: dict[str, dict[str, int]] = {}
    doubts: tuple[str, ...] = ()
    for index, stage in enumerate(recipe.stages, recipe.first):
        if stage.stage == "merge" and not stage.keep:
            steps.append(Step("merge", speed.worker_bytes, around))
        elif stage.stage == "evaluate":
            unpacked = any(isinstance(other, CalibratedOptions) for other in recipe.stages)
            steps.append(_evaluation(stage, facts, [*results.values()], unpacked))
        elif stage.stage == "check":
            continue
        elif stage.stage == "finetune":
            results[f"{index}-{stage.stage}"] = _adapter_files(recipe, stage, facts)
        else:
            plan = stage.plan(facts.tensors, facts.config)
            doubts = tuple(dict.fromkeys((*doubts, *plan.doubts)))
            results[f"{index}-{stage.stage}"] = _files(recipe, stage, plan, facts)
            if isinstance(stage, CalibratedOptions):
                needed = calibrated_cost(facts, stage)
                steps.append(Step(stage.stage, needed.memory, around + needed.seconds))
            else:
                steps.append(_streaming(stage, plan, speed))
    return results, steps, doubts


def _training(options: FinetuneOptions, facts: ModelFacts, survey: Survey | None) -> tuple[TrainingCost, str]:
    """Reckon a training, and find what makes it fit where it does not."""
    machine, sizes = Machine(memory_bytes(), gpu_bytes(), processes(load_settings())), sizes_of(options, survey)
    cost = training_cost(facts, options, sizes, machine)
    if cost.needed <= machine.room:
        return cost, ""
    return cost, way_out(facts, options, sizes, machine, machine.room)


def _fetched(facts: ModelFacts, models: Path) -> int:
    """Give the bytes that fetching the base model writes."""
    if is_local(facts.model) and not facts.pickled:
        return 0
    place = models / DEMO if facts.model == DEMO else model_folder(models, facts.model, facts.commit or "")
    if not is_local(facts.model) and is_sealed(place):
        return 0
    lies_here = sum(facts.files.values()) + manifest_size(base_of(facts).origin, facts.files)
    return lies_here + facts.download if facts.pickled else lies_here


def _passing(facts: ModelFacts, files: dict[str, int]) -> int:
    """Give what lies here at a time of a model that streams: shards that came, shards to go, other files twice."""
    return (
        min(facts.size, ON_DISK * facts.largest_file)
        + sum(sorted(files.values())[-ON_DISK:])
        + 2 * (facts.download - facts.size)
    )


def _files(recipe: Recipe, stage: PlannedOptions, plan: Plan, facts: ModelFacts) -> dict[str, int]:
    """Give the bytes of every file of a result."""
    base = base_of(facts)
    pinned = recipe.model_copy(update={"revision": facts.commit})
    files = {**plan.files, "config.json": len(config_json(facts.config, facts.tensors, stage.config()))}
    files |= {name: source.files[name] for name, source in base.copied().items()}
    files |= {name: len(content) for name, content in base.texts(pinned).items()}
    return files | {MANIFEST: manifest_size(base.record(pinned, stage), files)}


def _adapter_files(recipe: Recipe, stage: FinetuneOptions, facts: ModelFacts) -> dict[str, int]:
    """Give the bytes of an adapter's files, but for some small ones that PEFT and transformers write in their way."""
    base = base_of(facts)
    files = {"adapter_model.safetensors": 4 * adapter_parameters(facts, stage)}
    files |= {name: source.files[name] for name, source in base.copied().items()}
    return files | {name: len(content) for name, content in base.texts(recipe).items()}


def _streaming(stage: PlannedOptions, plan: Plan, speed: Speeds) -> Step:
    """Reckon what writing a model piece by piece needs; what is written is hashed while it is forced to the disk."""
    method = getattr(stage, "method", stage.stage)
    changed = sum(view.tensor.bytes for part in plan.parts for view, form in part.work if form is not plan.plain)
    plain = sum(view.tensor.bytes for part in plan.parts for view, form in part.work if form is plan.plain)
    written = sum(plan.files.values())
    seconds = changed / speed.rate(method) + plain / speed.rate("cast") + written / min(speed.hash, speed.write)
    seconds += TENSOR_SECONDS * (plan.tensors + plan.slots)
    return Step(stage.stage, speed.worker_bytes + plan.memory, speed.start_seconds + END_SECONDS + seconds)


def _conversion(facts: ModelFacts, speed: Speeds) -> Step:
    """Reckon what pickled weights need to become safetensors: they are read, written, hashed and forced to the disk."""
    seconds = CONVERT_SECONDS + facts.size * (1 / speed.rate("cast") + 1 / speed.hash + 1 / speed.write)
    return Step("convert", CONVERT_BYTES + facts.pickled_memory, speed.start_seconds + END_SECONDS + seconds)


def _checking(facts: ModelFacts, results: list[dict[str, int]]) -> Step:
    """Reckon what trying each result in its engine needs: a server of it, then its weights in transformers."""
    engine = expected()
    memory = engine.overhead + facts.size
    answers = len(results) * (engine.start_seconds + facts.parameters * ANSWER_SECONDS_A_PARAMETER)
    return Step("check", memory, EVALUATE_SECONDS + answers)


def _evaluation(options: EvaluateOptions, facts: ModelFacts, results: list[dict[str, int]], unpacked: bool) -> Step:
    """Reckon what measuring needs: both models, the logits of a window from each, and a few copies of some rows.

    bitsandbytes' arithmetic makes copies of what a layer has in hand: a result that is only cast needs less.
    """
    length = longest_window(facts.config, options.max_seq_length)
    tokens = length * options.num_samples
    once = tokens * EVALUATE_SECONDS_A_TOKEN_AND_PARAMETER + options.answers * ANSWER_SECONDS_A_PARAMETER
    forward = len(results) * facts.parameters * once
    largest = max(sum(count for name, count in files.items() if name.endswith(".safetensors")) for files in results)
    if unpacked:
        largest = max(largest, facts.size)
    rows = min(ROWS, length)
    width = 4 if facts.dtype == "float32" else 2
    logits = (2 * width * length + ROWS_BYTES * rows) * facts.vocab_size
    copies = COPIES_BYTES * length * facts.hidden_size
    memory = EVALUATE_BYTES + facts.size + largest + logits + copies
    return Step("evaluate", memory, EVALUATE_SECONDS + forward)


LONGEST = 60.0  # seconds that measuring may take: the loops may have to be compiled first


def measured_speeds(data: Path) -> Speeds:
    """Give what was measured on this machine, in a process of its own if it was not yet; else the defaults.

    Args:
        data: The data folder, which exists: its disk is what is measured.
    """
    if found := read_speeds(data):
        return found
    home = data.resolve()
    command = [sys.executable, "-m", "backend.stages.measure_speeds", str(home), str(time.monotonic())]
    child = Child(command, environment(home, online=False), home, Path(os.devnull))
    try:
        child.wait(LONGEST)
    finally:
        child.stop(0)
    return read_speeds(data) or Speeds()
