"""What a recipe will need, before anything runs: bytes from the headers, memory and time from what was measured."""

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field

from backend.artifacts.sealing import is_sealed, manifest_size
from backend.check import CheckOptions
from backend.errors import HardwareError
from backend.executors.contract import Machine
from backend.executors.local import this_machine
from backend.finetune.costs import TrainingCost
from backend.finetune.rendered import Survey
from backend.hub.ids import DEMO, is_local
from backend.hub.transfer import check_free, size_words
from backend.machine.speeds import Speeds, read_speeds
from backend.models.demo import facts_of
from backend.models.facts import ModelFacts
from backend.models.fetch import model_folder
from backend.options import Frozen
from backend.processes.child import Child, environment
from backend.recipes import Recipe
from backend.settings import load_settings
from backend.stages import STEPS
from backend.stages.companions import base_of
from backend.stages.step import Need, Planned
from backend.stages.stream.handover import ON_DISK


class Estimate(Frozen):
    """What a recipe needs; sizes in bytes, time in seconds."""

    output_bytes: int = Field(description="Of the results, every file.")
    peak_memory_bytes: int = Field(description="Of the step that needs most.")
    disk_bytes: int = Field(description="What is written: the download, if it is not here already, and the results.")
    seconds: float = Field(description="All steps, without the download.")
    files: dict[str, int] = Field(description="Bytes of every file; with the result's folder where there are several.")
    warnings: tuple[str, ...] = Field((), exclude=True, description="What stays as it is, or is done otherwise.")
    notes: tuple[str, ...] = Field((), exclude=True, description="What is done where nothing else is asked for.")
    memory: dict[str, int] = Field(exclude=True, description="Of each kind of step.")
    training: TrainingCost | None = Field(None, exclude=True, description="Of the training, by part.")
    gpu_memory: dict[str, int] = Field(exclude=True, description="On the GPU, of each kind of step that trains.")
    remedies: dict[str, str] = Field(exclude=True, description="What to do where the memory of a step is not there.")

    @property
    def training_memory(self) -> dict[str, dict[str, int]]:
        """Bytes of the training by part, under whose memory they are; empty where nothing is trained."""
        places = {"memory": self.training.host, "GPU memory": self.training.gpu} if self.training else {}
        return {place: parts for place, parts in places.items() if parts}


def streams(recipe: Recipe, facts: ModelFacts, data: Path, keep: bool) -> bool:
    """Return whether a recipe is done from repo to repo, so that its model need not lie here whole; see estimate()."""
    return not (keep or facts.pickled) and recipe.can_stream and _fetched(facts, data.resolve() / "models") > 0


def converts(facts: ModelFacts, data: Path) -> bool:
    """Return whether a model's weights are pickled, and were not converted here before."""
    return facts.pickled > 0 and _fetched(facts, data.resolve() / "models") > 0


def estimate(
    recipe: Recipe,
    facts: ModelFacts,
    data: Path,
    keep: bool = False,
    survey: Survey | None = None,
    machine: Machine | None = None,
) -> Estimate:
    """Say what a recipe needs; of a merge, as if its adapters brought neither tokens nor a tokenizer.

    Args:
        recipe: What is done.
        facts: Of its base model, with its tensors.
        data: The data folder: what lies there already need not be fetched.
        keep: Whether the result is wanted on this machine, also where it could go from repo to repo.
        survey: Of the rows to train on, where they were looked at.
        machine: What it is to run on, as an executor says; by default this one.
    """
    machine = machine or this_machine(data, load_settings())
    if facts.model == DEMO and is_sealed(data.resolve() / "models" / DEMO):
        facts = facts_of(data.resolve() / "models" / DEMO)
    fetched = _fetched(facts, data.resolve() / "models")
    recipe = recipe.model_copy(update={"converts": converts(facts, data) or None})
    streamed = streams(recipe, facts, data, keep)
    needs, results = _needs(recipe, Planned(recipe, facts, machine, fetched > 0, survey, {}), streamed)
    largest_last = sorted(needs, key=lambda item: item[1].memory)
    files = {
        f"{folder}/{name}" if len(results) > 1 else name: count
        for folder, found in results.items()
        for name, count in found.items()
    }
    output = sum(files.values())
    copied = output if recipe.publish and recipe.publish.to_folder else 0
    written = _passing(facts, files) if streamed else fetched + output + copied
    return Estimate(
        output_bytes=output,
        peak_memory_bytes=largest_last[-1][1].memory,
        disk_bytes=written,
        seconds=round(sum(need.seconds for _, need in needs), 1),
        files=files,
        warnings=tuple(dict.fromkeys(doubt for _, need in needs for doubt in need.doubts)),
        notes=tuple(dict.fromkeys(note for _, need in needs for note in need.notes)),
        training=next((need.training for _, need in needs if need.training), None),
        gpu_memory={name: need.training.gpu_memory for name, need in needs if need.training},
        memory={name: need.memory for name, need in largest_last},
        remedies={name: need.remedy for name, need in largest_last},
    )


def check_room(needed: Estimate, facts: ModelFacts, machine: Machine) -> None:
    """Refuse a recipe that does not fit a machine.

    Args:
        needed: By the recipe.
        facts: Of its base model.
        machine: What it is to run on, as an executor says.

    Raises:
        HardwareError: Disk or memory; what is needed, what is there, and what to do.
    """
    to_do, have = f"run this recipe on '{facts.base_model or Path(facts.model).name}'", machine.memory
    place = "this machine has"
    check_free(machine.disk, needed.disk_bytes, to_do)
    step, need = max(needed.memory.items(), key=lambda item: item[1])
    for name, wanted in needed.gpu_memory.items():
        if wanted > machine.gpu:
            step = name
            need = wanted
            have = machine.gpu
            place = "its GPU has"
    if need > have:
        raise HardwareError(
            f"Could not {to_do}. Its step '{step}' needs {size_words(need)} of memory and {place}"
            f" {size_words(have)}, {size_words(need - have)} too little: {needed.remedies[step]}."
        )


def _needs(
    recipe: Recipe, planned: Planned, streamed: bool
) -> tuple[list[tuple[str, Need]], dict[str, Mapping[str, int]]]:
    """Return what each step needs, in order, and the bytes of the files of each result, by its folder.

    Args:
        recipe: What is done.
        planned: Nothing yet.
        streamed: Whether it is done from repo to repo, where nothing is tried before it is published.
    """
    needs: list[tuple[str, Need]] = []
    results: dict[str, Mapping[str, int]] = {}
    for index, asked in enumerate(recipe.plan):
        if streamed and isinstance(asked.options, CheckOptions):
            continue
        need = STEPS[asked.step].need(asked.options, planned._replace(results=results))
        if need is None:
            continue
        needs.append((asked.step, need))
        if need.files:
            results[f"{index}-{asked.step}"] = need.files
    return needs, results


def _fetched(facts: ModelFacts, models: Path) -> int:
    """Return the bytes that fetching the base model writes."""
    if is_local(facts.model) and not facts.pickled:
        return 0
    place = models / DEMO if facts.model == DEMO else model_folder(models, facts.model, facts.commit or "")
    if not is_local(facts.model) and is_sealed(place):
        return 0
    lies_here = sum(facts.files.values()) + manifest_size(base_of(facts).origin, facts.files)
    return lies_here + facts.download if facts.pickled else lies_here


def _passing(facts: ModelFacts, files: dict[str, int]) -> int:
    """Return what lies here at a time of a model that streams: shards that came, shards to go, other files twice."""
    return (
        min(facts.size, ON_DISK * facts.largest_file)
        + sum(sorted(files.values())[-ON_DISK:])
        + 2 * (facts.download - facts.size)
    )


LONGEST = 60.0  # seconds that measuring may take: the loops may have to be compiled first


def measured_speeds(data: Path) -> Speeds:
    """Return what was measured on this machine, in a process of its own if it was not yet; else the defaults.

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
