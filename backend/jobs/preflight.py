"""What is checked before a job starts: the model, its options, the disk, the destination. It saves paid minutes."""

from pathlib import Path
from typing import Any

from backend.errors import SpecError
from backend.hub.download import check_disk, model_folder
from backend.hub.names import DEMO
from backend.jobs.relay import ON_DISK
from backend.jobs.specs import Streaming, can_stream
from backend.merge.hub import inspect_adapters
from backend.models.artifacts import is_sealed
from backend.models.estimates import estimate
from backend.models.facts import ModelFacts
from backend.models.inspection import inspect
from backend.publish.destination import check_destination
from backend.recipes import Recipe, Stage


def prepare(recipe: Recipe, data: Path, token: str | None, keep: bool = False) -> Recipe | Streaming:
    """Check a recipe against the Hub and this machine, pin its revision to a commit, and say how it is run.

    Args:
        recipe: As the user gave it.
        data: The data folder; its disk must hold what lies here at a time.
        token: The user's, or None.
        keep: Whether the result is wanted on this machine, also where it could go from repo to repo.

    Returns:
        The recipe with the commits of base model and adapters; as a Streaming if the model need not lie here whole.

    Raises:
        SpecError, HubError, HardwareError: Why it cannot run.
    """
    facts = inspect(recipe.base_model, recipe.revision, token)
    recipe = recipe.model_copy(update={"stages": tuple(_merging(stage, facts, token) for stage in recipe.stages)})
    quantizations = [stage for stage in recipe.stages if stage.stage == "quantize"]
    if quantizations and facts.quant_method:
        raise SpecError(
            f"'{recipe.base_model}' is quantized already ({facts.quant_method}): choose the model that it was made"
            " from."
        )
    for stage in quantizations:
        stage.check(facts)
    recipe = recipe.model_copy(update={"revision": facts.commit})
    streams = not keep and can_stream(recipe) and not _lies_here(facts, data)
    needed = _streaming_bytes(facts, recipe.stages[-1]) if streams else _whole_bytes(facts, recipe, data)
    check_disk(existing(data), needed, f"run this recipe on '{facts.model}'")
    if recipe.publish:
        check_destination(recipe.publish, token)
    return Streaming(recipe=recipe) if streams else recipe


def _lies_here(facts: ModelFacts, data: Path) -> bool:
    return facts.commit is not None and is_sealed(model_folder(data.resolve() / "models", facts.model, facts.commit))


def _whole_bytes(facts: ModelFacts, recipe: Recipe, data: Path) -> int:
    made = facts.size if facts.model == DEMO and not is_sealed(data.resolve() / "models" / DEMO) else 0
    return estimate(facts, *recipe.stages).disk_bytes + made


def _streaming_bytes(facts: ModelFacts, options: Any) -> int:
    """Give what lies here at a time: shards that came, shards to go, and all other files twice."""
    made: list[int] = sorted(options.plan(facts.tensors, facts.config).files.values())
    incoming = min(facts.size, ON_DISK * facts.largest_file)
    return incoming + sum(made[-ON_DISK:]) + 2 * (facts.download - facts.size)


def _merging(stage: Stage, facts: ModelFacts, token: str | None) -> Stage:
    """Check a merge against the headers of base and adapters, and pin the adapters to their commits."""
    if stage.stage != "merge":
        return stage
    stage.check(facts)
    return inspect_adapters(stage, facts, token)


def existing(folder: Path) -> Path:
    """Give the folder, or the nearest above it that exists, whose disk it will lie on."""
    return next(place for place in (folder.resolve(), *folder.resolve().parents) if place.exists())
