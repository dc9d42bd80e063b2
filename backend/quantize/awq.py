"""AWQ: input channels scaled by how strongly they are used (arXiv 2306.00978), in the layout of AutoAWQ."""

from typing import Any, Literal

from pydantic import Field, model_validator

from backend.quantize.calibrated.engine import quantize_blocks
from backend.quantize.calibrated.options import LayoutName, RefinedOptions
from backend.quantize.method import Method

_NAMES = {"w_bit": "bits", "q_group_size": "group_size"}
_FIXED = {"zero_point": (True, "the layout has zero points"), "version": ("gemm", "gemm is the layout that is written")}


class Options(RefinedOptions):
    """Defaults are AutoAWQ's; its own names w_bit, q_group_size, zero_point and version are understood too."""

    method: Literal["awq"] = "awq"
    layout: LayoutName = Field("awq", description=RefinedOptions.model_fields["layout"].description)
    bits: Literal[4] = Field(4, description="Bits a weight: the layout holds 4.")

    @model_validator(mode="before")
    @classmethod
    def _understand_autoawq(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        for name, (value, why) in _FIXED.items():
            given = data.get(name, value)
            if (given.lower() if isinstance(given, str) else given) != value:
                raise ValueError(f"{name}: must be {value}: {why}; choose method gptq for others")
        for name, ours in _NAMES.items():
            if name in data and ours in data:
                raise ValueError(f"{name}: is another name of {ours}: give one of them")
        found = {_NAMES.get(name, name): value for name, value in data.items() if name not in _FIXED}
        if str(found.get("bits", 4)) != "4":
            raise ValueError(f"bits: AWQ's layout holds 4, not {found['bits']}: choose method gptq for other widths")
        return found


METHOD = Method(
    Options,
    "AWQ · 4 bit",
    "As GPTQ, with zero points, in the layout that most servers read. Takes minutes.",
    quantize_blocks,
)
