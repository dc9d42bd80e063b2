"""What all calibrated methods can be told, and what they refuse before anything is downloaded."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from backend.data.options import DatasetOptions, RowsOptions
from backend.errors import SpecError
from backend.models.facts import ModelFacts
from backend.options import ADVANCED
from backend.quantize.calibrated import kv_cache
from backend.quantize.calibrated.numbers import Numbers
from backend.quantize.calibrated.packing import Packing
from backend.quantize.compressed_tensors import QUANT_METHOD
from backend.quantize.groups import GroupedOptions
from backend.quantize.layouts import LAYOUTS
from backend.quantize.layouts.layout import Layout, Scheme
from backend.weights.anatomy import block_of
from backend.weights.plan import Plan
from backend.weights.tensor import Tensor

_FLAT = "calibration_"

_GROUPS = "g_idx"
"""The tensor of a layout that says which group each input is in."""

if TYPE_CHECKING:
    LayoutName = str
else:
    LayoutName = Literal[*LAYOUTS]


class CalibratedOptions(GroupedOptions):
    """What both methods can be told; a method adds its name, its layout and what only it has."""

    NAMES = ("calibration",)
    gpu = True

    layout: LayoutName = Field(
        "gptq",
        description="How the integers lie in the files, which decides who reads them. compressed-tensors: vLLM, SGLang,"
        " transformers and llama.cpp, in any bits; gptq and awq: what has always read those.",
    )

    bits: Literal[2, 3, 4, 5, 6, 7, 8] = Field(
        4, description="Bits a weight. 4 is the usual choice; fewer lose much more."
    )
    scale_search: bool = Field(
        True, description="Scale input channels by how strongly they are used before rounding (AWQ)."
    )
    error_feedback: bool = Field(
        True, description="Let the weights that come after make up for what rounding the ones before has lost (GPTQ)."
    )
    clip_search: bool = Field(
        True, description="Cut off a group's largest weights where the others gain more from a finer grid."
    )
    kv_cache_dtype: Literal["auto", "fp8"] = Field(
        "auto",
        description="fp8: keep scales for the keys and values of a conversation too, which vLLM then holds in 8 bits:"
        " half the memory. For the layout compressed-tensors.",
        json_schema_extra=ADVANCED,
    )
    damp_percent: float = Field(
        0.01,
        gt=0,
        le=1,
        description="Share of the mean diagonal that is added to the Gram matrix. More: less fitted to the calibration"
        " text.",
        json_schema_extra=ADVANCED,
    )
    calibration: RowsOptions | None = Field(
        None,
        description="What the model reads meanwhile: a text file, a file of rows, or a Hub data set. Empty: the rows"
        " that it was tuned on in this recipe, beside embedded prose and conversations that suit its chat template.",
        json_schema_extra={"file": True},
    )
    num_calibration_samples: int = Field(
        128, ge=1, le=100_000, description="Windows of calibration text at most. More: better, and as much slower."
    )
    max_seq_length: int = Field(512, ge=16, le=131_072, description="Tokens in a window of calibration text.")

    @model_validator(mode="before")
    @classmethod
    def _nested(cls, data: Any) -> Any:
        """Take a text for the rows that it names, and what recipes said flat before 2027: calibration_split."""
        if not isinstance(data, dict):
            return data
        named = data.get("calibration")
        if not isinstance(named, str | None):
            return data
        flat = {name: data[_FLAT + name] for name in RowsOptions.model_fields if _FLAT + name in data}
        rest = {name: value for name, value in data.items() if name not in {_FLAT + field for field in flat}}
        if named is None:  # such recipes hold the defaults of rows that they do not name
            for name, value in flat.items():
                if value != RowsOptions.model_fields[name].default:
                    raise ValueError(f"{_FLAT}{name}: no rows are named that it could be said of: give calibration")
            return rest
        return rest | {"calibration": {"dataset": named, **flat}}

    @model_validator(mode="after")
    def _held_by_its_layout(self) -> Self:
        if self.bits not in self.written.BITS:
            raise ValueError(
                f"bits: the layout {self.layout} holds {' or '.join(map(str, self.written.BITS))}, not {self.bits}:"
                " choose layout compressed-tensors for other widths"
            )
        if self.cached and self.layout != QUANT_METHOD:
            raise ValueError(f"kv_cache_dtype: the layout {self.layout} has none: choose layout {QUANT_METHOD}")
        if self.reordered and _GROUPS not in self.written.TENSORS:
            raise ValueError(f"desc_act: the layout {self.layout} has groups of neighbors alone: choose layout gptq")
        return self

    def rows(self) -> DatasetOptions:
        """Return the rows that calibration reads as a training would; faulty and repeated ones are left out."""
        assert self.calibration
        return DatasetOptions.all_of(self.calibration)

    def check(self, facts: ModelFacts) -> None:
        """Refuse what does not fit the model, before anything is downloaded.

        Raises:
            SpecError: A layout that is not read for such a model; what GroupedOptions refuses.
        """
        packing = self.form(facts.tensors, facts.config)
        if packing.matrices.transposed and not self.written.TURNED:
            text = f"its readers find no linear layers in the type '{facts.model_type}': choose layout gptq"
            raise SpecError(f"layout: {text}.", {"layout": text})
        if self.cached and not any(map(kv_cache.beside, packing.shapes)):
            text = f"the keys and values of '{facts.model}' are not found: choose auto"
            raise SpecError(f"kv_cache_dtype: {text}.", {"kv_cache_dtype": text})
        super().check(facts)

    def shares(self, earlier: Any) -> bool:
        """Return whether the grids that an earlier stage finds are this one's too, packed in another way.

        That holds if nothing else differs than the layout and the size of the files, and if the layout's readers take
        every zero that the earlier one's do. Grids without symmetry then begin where the earlier layout wants it: awq
        after gptq has no zeros of 0, which it would have alone.

        Args:
            earlier: The options of a stage before.
        """
        if not isinstance(earlier, CalibratedOptions):
            return False
        packed = earlier.model_copy(update={"layout": self.layout, "max_shard_size": self.max_shard_size})
        return packed == self and (self.symmetric or earlier.written.LOWEST >= self.written.LOWEST)

    @property
    def written(self) -> Layout:
        """The layout."""
        return LAYOUTS[self.layout]

    @property
    def symmetric(self) -> bool:
        """Whether all zeros lie in the middle of the grid."""
        return False

    @property
    def reordered(self) -> bool:
        """Whether groups are made of inputs in the order of how strongly they are used."""
        return False

    @property
    def refines(self) -> bool:
        """Whether scales are trained when all blocks are written."""
        return False

    @property
    def cached(self) -> bool:
        """Whether scales of the cache of keys and values are written."""
        return self.kv_cache_dtype != "auto"

    @property
    def scheme(self) -> Scheme:
        """What all its grids have in common."""
        return Scheme(self.bits, self.group_size, self.symmetric, self.reordered, self.damp_percent)

    @property
    def numbers(self) -> Numbers:
        """Which integers and scales its grids may hold."""
        return Numbers(int(2**self.bits) - 1, self.written.LOWEST)

    @property
    def rounds_inputs(self) -> Callable[[Any], Any] | None:
        """What rounds the inputs of a layer while it is computed, [tokens, in_features]; None: nothing does."""
        return None

    @property
    def top(self) -> int:
        """The largest integer."""
        return self.numbers.top

    def group(self, inputs: int) -> int:
        """Return the inputs that share a scale in a layer of so many."""
        return inputs if self.group_size < 0 else self.group_size

    def form(self, tensors: Sequence[Tensor], config: Mapping[str, Any]) -> Packing:
        """Return what becomes of each tensor."""
        return Packing(self, tensors, config)

    def config(self, tensors: Sequence[Tensor], config: Mapping[str, Any]) -> dict[str, Any]:
        """Return what changes in config.json.

        Args:
            tensors: Of the model.
            config: What its config.json says.
        """
        packing = self.form(tensors, config)
        found = packing.layout.config(packing.scheme, packing.stays, packing.listed)
        return {"quantization_config": found | {"kv_cache_scheme": kv_cache.SCHEME} if self.cached else found}

    def plan(self, tensors: Sequence[Tensor], config: Mapping[str, Any]) -> Plan:
        """Say which file will hold which bytes: blocks in the order in which they are computed, after all else.

        Args:
            tensors: Of the model.
            config: What its config.json says.
        """
        packing = self.form(tensors, config)
        ordered = sorted(tensors, key=lambda tensor: block_of(tensor.name))
        return self.planned(ordered, config, packing)._replace(odd=packing.odd)


class RoundedInputsOptions(CalibratedOptions):
    """What methods share whose inputs are rounded too: compressed-tensors alone has such, with zeros in the middle."""

    layout: Literal["compressed-tensors"] = Field(
        "compressed-tensors", description=CalibratedOptions.model_fields["layout"].description
    )

    @property
    def symmetric(self) -> bool:
        """Whether all zeros lie in the middle of the grid."""
        return True


class RefinedOptions(CalibratedOptions):
    """What methods can be told whose layers get their inputs as they are: what rounding those loses has no gradient."""

    refine: bool = Field(
        False,
        description="Train the scales afterwards, so that the whole model says what it said in 16 bit: a little closer"
        " in 4 bits, more in fewer. Takes up to as long as the calibration, and the memory of the whole model.",
    )

    @property
    def refines(self) -> bool:
        """Whether scales are trained when all blocks are written."""
        return self.refine
