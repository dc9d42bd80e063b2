"""Recipe: a base model, an ordered list of stages, and where the result goes; which steps that takes."""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import Field, ValidationInfo, field_validator, model_validator

from backend.artifacts.artifact import MODELS
from backend.artifacts.sealing import is_sealed
from backend.check import CheckOptions
from backend.credentials import holds_token
from backend.errors import SpecError, shortened
from backend.evaluate import EvaluateOptions
from backend.finetune.options import FinetuneOptions
from backend.hub.ids import DEMO, is_local, model_field
from backend.merge.options import UNDONE, MergeOptions
from backend.options import Frozen, parse
from backend.publish.options import PublishOptions
from backend.quantize import QuantizeOptions
from backend.quantize.calibrated.options import CalibratedOptions
from backend.quantize.calibrated.several_layouts import as_given, spread
from backend.spec import CONVERT, Asked, Spec, Wanted
from backend.stage import Stage as StageOptions
from backend.strict_yaml import KeyTwice, load_options

Stage = Annotated[
    FinetuneOptions | MergeOptions | QuantizeOptions | EvaluateOptions | CheckOptions, Field(discriminator="stage")
]


def _models(union: Any) -> Iterator[type[StageOptions]]:
    """Walk a union of option models, in which a union may be a member."""
    if isinstance(union, type):
        yield union
    else:
        for member in get_args(union):
            yield from _models(member)


STAGES: dict[str, tuple[type[StageOptions], ...]] = {
    name: tuple(models) for name, models in groupby(_models(Stage), lambda model: model.model_fields["stage"].default)
}
"""The option models of every stage, by its name: one, or where there are several methods one each."""

MAX_LENGTH = 1_000_000  # characters

ANCHORS = "x-"
"""What the keys of a recipe begin with that are there for YAML's anchors alone."""


class Recipe(Spec):
    """A base model and what is done to it, in order; a single quantization is a recipe with one stage."""

    base_model: str = Field(description="A Hub id, or `demo`, the bundled model.")
    revision: str | None = Field(None, description="Branch, tag or commit; resolved to a commit before the start.")
    stages: tuple[Stage, ...] = Field(min_length=1, description="What is done, in order.")
    publish: PublishOptions | None = Field(None, description="Where the result goes.")
    converts: Literal[True] | None = Field(
        None,
        description="Whether the base model's weights are pickled and converted first; found out before the start.",
    )

    @field_validator("base_model")
    @classmethod
    def _a_model(cls, value: str, info: ValidationInfo) -> str:
        return model_field(value, info)

    @model_validator(mode="after")
    def _no_paths_of_strangers(self, info: ValidationInfo) -> "Recipe":
        if _paths_allowed(info):
            return self
        for i, stage in enumerate(self.stages):
            if isinstance(stage, EvaluateOptions) and stage.text:  # other fields check what they name themselves
                raise ValueError(f"stages[{i}].text: a path of this machine: upload the file instead")
        if self.publish and self.publish.to_folder:
            raise ValueError("publish.to_folder: a path of this machine: give repo_id instead")
        return self

    @model_validator(mode="after")
    def _no_tokens(self) -> "Recipe":
        parts = {f"stages[{i}]": stage for i, stage in enumerate(self.stages)}
        for where, part in {**parts, "publish": self.publish}.items():
            for name, value in part or ():
                if any(holds_token(text) for text in _texts(value)):
                    raise ValueError(
                        f"{where}.{name}: holds what looks like a token, and goes with what is made: leave it out, and"
                        " revoke it where it was made"
                    )
        return self

    @model_validator(mode="after")
    def _a_look_follows_a_result(self) -> "Recipe":
        first = self.stages[0]
        if first.makes is None:
            raise ValueError(f"stages[0]: {first.stage} looks at the result of a stage before it: put quantize first")
        if self.revision and (self.base_model == DEMO or is_local(self.base_model)):
            raise ValueError("revision: neither the bundled demo model nor a local folder has one: leave it out")
        return self

    @model_validator(mode="after")
    def _tuning_comes_first_and_is_merged(self) -> "Recipe":
        first, *others = self.stages
        for at, stage in enumerate(others, 1):
            if stage.makes == "adapter":
                raise ValueError(f"stages[{at}]: {stage.stage} works on the base model: put it first, once")
        if first.makes == "adapter" and others and others[0].whole:
            between = f"put merge between {first.stage} and it"
            raise ValueError(f"stages[1]: {others[0].stage} wants a whole model: {between}")
        merging = self.merging
        if merging and not merging.adapters and first.makes != "adapter":
            what = "give the adapter's Hub id, or on your own machine its folder"
            raise ValueError(f"stages[{self.stages.index(merging)}].adapters: is empty: {what}")
        return self

    @model_validator(mode="after")
    def _merging_comes_first(self) -> "Recipe":
        methods = [getattr(stage, "method", None) for stage in self.stages]
        for i, stage in enumerate(self.stages):
            if not isinstance(stage, MergeOptions):
                continue
            if i > 1 or (i == 1 and self.tuning is None):
                raise ValueError(f"stages[{i}]: merge works on the base model: put it first, once")
            if stage.merge_into in methods:
                raise ValueError(f"stages[{i}].merge_into: {UNDONE} Choose original, or quantize in another way")
            if not stage.keep:
                if all(other.makes != "quantized" for other in self.stages):
                    raise ValueError(f"stages[{i}].keep: off leaves nothing: add a quantize stage, or turn it on")
                if any(isinstance(other, EvaluateOptions) for other in self.stages):
                    remedy = "turn it on, or leave evaluate out"
                    raise ValueError(f"stages[{i}].keep: evaluate measures against the merged model: {remedy}")
        return self

    @model_validator(mode="after")
    def _one_model_a_destination(self) -> "Recipe":
        made = sum(stage.makes in MODELS and getattr(stage, "keep", True) for stage in self.stages)
        if self.publish and made > 1:
            raise ValueError(f"publish: the recipe makes {made} models and a destination holds one: publish each alone")
        return self

    @property
    def making(self) -> tuple[Stage, ...]:
        """The stages that make something, in order."""
        return tuple(stage for stage in self.stages if stage.makes)

    @property
    def first(self) -> int:
        """The number of the step that does the first stage."""
        return 2 if self.converts else 1

    @property
    def tuning(self) -> FinetuneOptions | None:
        """The training that it begins with, if it does."""
        first = self.stages[0]
        return first if isinstance(first, FinetuneOptions) else None

    @property
    def merging(self) -> MergeOptions | None:
        """The merge that comes before anything is quantized, if one does."""
        return next((stage for stage in self.stages if isinstance(stage, MergeOptions)), None)

    @property
    def quantizing(self) -> tuple[QuantizeOptions, ...]:
        """The quantizations, in order."""
        return tuple(stage for stage in self.stages if stage.stage == "quantize")

    def calibration_of(self, at: int) -> int:
        """Return which stage finds the grids that a stage writes: itself, or one before that differs in layout alone.

        Args:
            at: The stage's place among all.
        """
        stage = self.stages[at]
        if not isinstance(stage, CalibratedOptions):
            return at
        return next((i for i, earlier in enumerate(self.stages[:at]) if stage.shares(earlier)), at)

    def together(self, stage: Stage) -> tuple[str, ...]:
        """Return the layouts that the calibration of a stage is written in, if that are several."""
        finds = self.calibration_of(self.stages.index(stage))
        same = [other for at, other in enumerate(self.stages) if self.calibration_of(at) == finds]
        layouts = tuple(other.layout for other in same if isinstance(other, CalibratedOptions))
        return layouts if len(layouts) > 1 else ()

    @property
    def plan(self) -> tuple[Asked, ...]:
        """The steps that it takes; what is published is checked before, unless somebody insists."""
        asked = [Asked("fetch"), *([Asked(CONVERT)] if self.converts else [])]
        asked += [Asked(stage.stage, stage) for stage in self.stages]
        if self.publish is None:
            return tuple(asked)
        check = CheckOptions()
        if not self.publish.insist and check.stage not in [one.step for one in asked]:
            asked.append(Asked(check.stage, check))
        return *asked, Asked("publish", self.publish)

    @property
    def asked(self) -> str:
        """All of it but for insisting: who insists on what failed its check goes on with what that run has made."""
        return self.model_dump_json(exclude={"publish": {"insist"}})

    @property
    def on_hub(self) -> bool:
        """Whether its model or what a stage names must be fetched from the Hub."""
        return not self._model_here or any(stage.on_hub() for stage in self.stages)

    @property
    def carried_out(self) -> "Recipe":
        """Itself."""
        return self

    @property
    def wanted(self) -> Wanted:
        """Its base model."""
        return Wanted(self.base_model, self.revision, bool(self.converts))

    @property
    def can_stream(self) -> bool:
        """Whether it can go from repo to repo: shard after shard becomes one result, and the Hub is at both ends."""
        *before, last = self.stages
        both_ends = not self._model_here and self.publish is not None and self.publish.repo_id is not None
        in_passing = all(isinstance(stage, MergeOptions) and not stage.keep for stage in before)
        return both_ends and in_passing and last.streams

    @property
    def _model_here(self) -> bool:
        return self.base_model == DEMO or is_local(self.base_model)

    def only_looks(self, models: Path) -> bool:
        """Return whether fetching is a look at a model that lies here whole, and the next step goes through it once.

        Args:
            models: Where downloaded models lie, and the bundled one.
        """
        if self.converts or self.on_hub or not self.stages[0].streams:
            return False
        measured_here = all(stage.dataset is None for stage in self.stages if isinstance(stage, EvaluateOptions))
        return measured_here and (self.base_model != DEMO or is_sealed(models / DEMO))

    def to_yaml(self) -> str:
        """Write the recipe as a file that parse_recipe() reads again; defaults are written out."""
        data = self.model_dump(mode="json", exclude_none=True)
        return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)

    def files(self) -> list[Path]:
        """Return the files and folders of this machine that it reads: its model, and what its stages name."""
        model = [Path(self.base_model)] if is_local(self.base_model) else []
        return model + [path for stage in self.stages for path in stage.files().values()]

    def anchored(self, folder: Path) -> "Recipe":
        """Return the recipe with the files that it names relative to `folder` as absolute paths."""
        stages = tuple(
            stage.with_files({f: folder / path for f, path in stage.files().items()}) for stage in self.stages
        )
        publish = self.publish
        if publish and publish.to_folder:
            publish = publish.model_copy(update={"to_folder": folder / publish.to_folder})
        return self.model_copy(update={"stages": stages, "publish": publish})

    def public(self, base_model: str) -> "Recipe":
        """Return the recipe as strangers may read it: no path of this machine, no destination.

        Args:
            base_model: What stands for the base model: its Hub id, or the bare name of a local folder.
        """
        stages = tuple(stage.with_files({f: path.name for f, path in stage.files().items()}) for stage in self.stages)
        return self.model_copy(update={"base_model": base_model, "stages": stages, "publish": None, "converts": None})


def _texts(value: Any) -> Iterator[str]:
    """Yield the texts that an option holds, whatever lies within it."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, tuple):
        for part in value:
            yield from _texts(part)
    elif isinstance(value, Frozen):
        for _, part in value:
            yield from _texts(part)


class Streaming(Spec):
    """Do a recipe from repo to repo, shard by shard, so that the model never lies here whole; see can_stream."""

    recipe: Recipe

    @property
    def plan(self) -> tuple[Asked, ...]:
        """One step: shards come, are computed on, and go."""
        return (Asked("stream", self.recipe),)

    @property
    def wanted(self) -> Wanted:
        """The recipe's base model."""
        return self.recipe.wanted

    @property
    def carried_out(self) -> Recipe:
        """The recipe."""
        return self.recipe

    def files(self) -> list[Path]:
        """Return the folders of this machine that it reads."""
        return self.recipe.files()


def _paths_allowed(info: ValidationInfo) -> bool:
    return bool(info.context and info.context.get("paths"))


def parse_recipe(data: Any, where: str = "", paths: bool = False, folder: Path | None = None) -> Recipe:
    """Build a recipe from a form, flags or a file's contents, naming every fault at once.

    Args:
        data: A mapping as Recipe describes it.
        where: Put before each field, such as `recipe.yaml: `.
        paths: Whether it may name files and folders of this machine: on its owner's command line and page only.
        folder: What the names of data files are relative to; by default where the program runs.

    Raises:
        SpecError: One line a fault, each with its field.
    """
    if not isinstance(data, dict):
        raise SpecError(f"{where}A recipe is a mapping with base_model and stages, not a {type(data).__name__}.")
    kept = {key: value for key, value in data.items() if not str(key).startswith(ANCHORS)}
    given = kept.get("stages")
    stages = spread(given, where) if isinstance(given, list) else []
    if stages:
        kept["stages"] = [stage for _, stage in stages]
    try:
        return parse(Recipe, kept, where, {"paths": paths, "folder": folder})
    except SpecError as e:
        raise as_given(e, [at for at, _ in stages]) from e


def parse_yaml(text: str, name: str = "The recipe") -> Any:
    """Read YAML; JSON is YAML too.

    Args:
        text: What was typed or read.
        name: Of the file, for errors.

    Raises:
        SpecError: It is too long, or no YAML; the line.
    """
    if len(text) > MAX_LENGTH:
        raise SpecError(f"{name} has {len(text)} characters: that is no recipe.")
    try:
        return load_options(text)
    except yaml.YAMLError as e:
        at = getattr(e, "problem_mark", None)
        line = f", line {at.line + 1}" if at else ""
        if isinstance(e, KeyTwice):
            raise SpecError(f"{name}{line}: {e.problem}.") from e
        why = str(getattr(e, "problem", None) or getattr(e, "reason", ""))
        raise SpecError(f"{name}{line}: this is not YAML. {shortened(why, 200)}".strip()) from e
    except RecursionError as e:  # brackets without end
        raise SpecError(f"{name} is not YAML that a recipe could be: it is nested too deep.") from e


def read_recipe(path: Path) -> Recipe:
    """Read a recipe file of this machine.

    Raises:
        SpecError: The file cannot be read, is no YAML, or has faults.
    """
    try:
        with path.open(encoding="utf-8") as f:
            text = f.read(MAX_LENGTH + 1)
    except OSError as e:
        raise SpecError(f"Could not read the recipe '{path}'. {e.strerror}: check the path.") from e
    except UnicodeDecodeError as e:
        raise SpecError(f"'{path.name}' is not text: give a recipe in YAML, UTF-8.") from e
    data = parse_yaml(text, f"'{path.name}'")
    place = path.parent.resolve()
    return parse_recipe(data, f"{path.name}: ", paths=True, folder=place).anchored(place)
