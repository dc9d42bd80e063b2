"""What is checked before a job starts: the model, its options, disk, memory, the destination. It saves paid minutes."""

from collections.abc import Callable
from pathlib import Path

from backend.artifacts.sealing import is_sealed, open_artifact
from backend.errors import SpecError
from backend.executors.local import this_machine
from backend.finetune.options import FinetuneOptions
from backend.hub.ids import is_local
from backend.merge.options import UNDONE, MergeOptions
from backend.models.facts import ModelFacts
from backend.models.inspection import inspect
from backend.recipes import Recipe, Streaming
from backend.settings import load_settings
from backend.stages import STEPS
from backend.stages.estimate import check_room, converts, estimate, streams
from backend.weights.codes import CODES


def prepare(
    recipe: Recipe,
    data: Path,
    token: str | None,
    keep: bool = False,
    tell: Callable[[str], None] = lambda text: None,
) -> Recipe | Streaming:
    """Check a recipe against the Hub and this machine, pin its revision to a commit, and say how it is run.

    Args:
        recipe: As the user gave it.
        data: The data folder; its disk must hold what lies here at a time.
        token: The user's, or None.
        keep: Whether the result is wanted on this machine, also where it could go from repo to repo.
        tell: Receives what may stop it later and is no reason to refuse it now.

    Returns:
        The recipe with the commits of base model and adapters; as a Streaming if the model need not lie here whole.

    Raises:
        SpecError, HubError, HardwareError: Why it cannot run.
    """
    facts = inspect(recipe.base_model, recipe.revision, token)
    recipe = _merged_for(recipe)
    _check_merged(facts, [stage.method for stage in recipe.quantizing])
    pinned = tuple(STEPS[stage.stage].pin(stage, facts, token) for stage in recipe.stages)
    recipe = recipe.model_copy(update={"stages": pinned})
    if recipe.tuning and recipe.merging:
        recipe.merging.after(recipe.tuning.quantization).check(facts)
    if recipe.tuning and facts.quant_method:
        _check_tunable(recipe.base_model, facts.quant_method, recipe.tuning)
    if recipe.quantizing and facts.quant_method:
        raise SpecError(
            f"'{recipe.base_model}' is quantized already ({facts.quant_method}): choose the model that it was made"
            " from."
        )
    for stage in recipe.quantizing:
        stage.check(facts)
    recipe = recipe.model_copy(update={"revision": facts.commit, "converts": converts(facts, data) or None})
    machine = this_machine(data, load_settings())
    needed = estimate(recipe, facts, data, keep, machine=machine)
    check_room(needed, facts, machine)
    _check_publishing(recipe, facts, token, needed.output_bytes, tell)
    return Streaming(recipe=recipe) if streams(recipe, facts, data, keep) else recipe


def _check_publishing(
    recipe: Recipe, facts: ModelFacts, token: str | None, output_bytes: int, tell: Callable[[str], None]
) -> None:
    """Check where the result goes, and that what goes with it holds no token."""
    if recipe.publish is None:
        return
    from backend.publish.card.licenses import check_name
    from backend.publish.destination import check_destination
    from backend.publish.files import check_words

    if recipe.publish.repo_id:
        check_name(recipe.publish.repo_id, [name for name in (facts.license, facts.license_name) if name])
    check_destination(recipe.publish, token, output_bytes, tell)
    check_words("recipe.yaml", recipe.public(facts.base_model or Path(facts.model).name).to_yaml(), token)
    check_words("README.md", recipe.publish.card or "", token)


def _check_tunable(model: str, quant_method: str, options: FinetuneOptions) -> None:
    """Refuse a quantized base; one in GPTQ is tuned by PEFT where GPTQModel computes its layers."""
    from backend.serve.engines.transformers import missing_packages

    if quant_method == "gptq" and not missing_packages({"quantization_config": {"quant_method": "gptq"}}):
        if options.quantization == "none":
            return
        text = f"'{model}' is held in its own 4 bits (gptq): set it to none (got '{options.quantization}')"
        raise SpecError(f"quantization: {text}", {"quantization": text})
    also = ", or install GPTQModel (`pip install gptqmodel optimum`)" if quant_method == "gptq" else ""
    raise SpecError(
        f"'{model}' is quantized already ({quant_method}): tune the model that it was made from, then quantize the"
        f" result the same way{also}."
    )


def _merged_for(recipe: Recipe) -> Recipe:
    """Merge into the original weights where 4 bits of the same kind come next; see UNDONE."""
    methods = {stage.method for stage in recipe.quantizing}
    if methods.isdisjoint(CODES):
        return recipe
    stages = (
        stage.model_copy(update={"merge_into": "original"})
        if isinstance(stage, MergeOptions) and stage.merge_into == "auto"
        else stage
        for stage in recipe.stages
    )
    return recipe.model_copy(update={"stages": tuple(stages)})


def _check_merged(facts: ModelFacts, methods: list[str]) -> None:
    """Refuse to undo a training that a folder of this machine holds."""
    if is_local(facts.model) and is_sealed(Path(facts.model)):
        merged = open_artifact(Path(facts.model)).merged
        if merged and merged.into in methods:
            raise SpecError(
                f"'{Path(facts.model).name}' was merged into dequantized {merged.into.upper()} weights: {UNDONE} Merge"
                " with merge_into original, or quantize in another way."
            )
