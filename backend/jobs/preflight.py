"""What is checked before a job starts: the model, its options, the disk, the destination. It saves paid minutes."""

from pathlib import Path

from backend.errors import SpecError
from backend.hub.download import check_disk
from backend.hub.names import DEMO
from backend.merge.hub import inspect_adapters
from backend.models.artifacts import is_sealed
from backend.models.estimates import estimate
from backend.models.facts import ModelFacts
from backend.models.inspection import inspect
from backend.publish.destination import check_destination
from backend.recipes import Recipe, Stage


def prepare(recipe: Recipe, data: Path, token: str | None) -> Recipe:
    """Check a recipe against the Hub and this machine, and pin its revision to a commit.

    Args:
        recipe: As the user gave it.
        data: The data folder; its disk must hold download and results.
        token: The user's, or None.

    Returns:
        The recipe with the base model's commit as its revision, and those of the adapters.

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
    needed = estimate(facts, *recipe.stages)
    made = facts.size if facts.model == DEMO and not is_sealed(data.resolve() / "models" / DEMO) else 0
    check_disk(existing(data), needed.disk_bytes + made, f"run this recipe on '{facts.model}'")
    if recipe.publish:
        check_destination(recipe.publish, token)
    return recipe.model_copy(update={"revision": facts.commit})


def _merging(stage: Stage, facts: ModelFacts, token: str | None) -> Stage:
    """Check a merge against the headers of base and adapters, and pin the adapters to their commits."""
    if stage.stage != "merge":
        return stage
    stage.check(facts)
    return inspect_adapters(stage, facts, token)


def existing(folder: Path) -> Path:
    """Give the folder, or the nearest above it that exists, whose disk it will lie on."""
    return next(place for place in (folder.resolve(), *folder.resolve().parents) if place.exists())
