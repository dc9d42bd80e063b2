"""What is checked before a job starts: the model, its options, the disk, the destination. It saves paid minutes."""

import shutil
from pathlib import Path

from backend.errors import HardwareError, SpecError
from backend.models.estimates import Estimate, estimate
from backend.models.facts import ModelFacts
from backend.models.inspection import inspect
from backend.publish.push import check_destination
from backend.recipes import Recipe

RESERVE = 1.1  # of the disk that a job needs


def prepare(recipe: Recipe, data: Path, token: str | None) -> Recipe:
    """Check a recipe against the Hub and this machine, and pin its revision to a commit.

    Args:
        recipe: As the user gave it.
        data: The data folder; its disk must hold download and results.
        token: The user's, or None.

    Returns:
        The recipe with the base model's commit as its revision.

    Raises:
        SpecError, HubError, HardwareError: Why it cannot run.
    """
    facts = inspect(recipe.base_model, recipe.revision, token)
    quantizations = [stage for stage in recipe.stages if stage.stage == "quantize"]
    if quantizations and facts.quant_method:
        raise SpecError(
            f"'{recipe.base_model}' is quantized already ({facts.quant_method}): choose the model that it was made from."
        )
    for stage in quantizations:
        stage.check(facts)
    check_disk(facts, estimate(facts, *recipe.stages), data)
    if recipe.publish:
        check_destination(recipe.publish, token)
    return recipe.model_copy(update={"revision": facts.commit})


def check_disk(facts: ModelFacts, needed: Estimate, data: Path) -> None:
    """Refuse what the disk cannot hold.

    Raises:
        HardwareError: Need, have, and what to do.
    """
    existing = next(folder for folder in (data.resolve(), *data.resolve().parents) if folder.exists())
    have, need = shutil.disk_usage(existing).free, int(needed.disk_bytes * RESERVE)
    if have < need:
        raise HardwareError(
            f"'{facts.model}' needs {need / 1e9:.1f} GB on the disk of '{data.name}', {have / 1e9:.1f} GB are free: free"
            f" {(need - have) / 1e9:.1f} GB, or set WEIGHTSMITH_DATA to a larger disk."
        )
