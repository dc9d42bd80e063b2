"""Method: what a way of quantizing is, whichever it is; what is known of one stands in its module."""

from collections.abc import Callable
from typing import Literal, NamedTuple

from backend.models.rewriting import PlannedOptions


class MethodOptions(PlannedOptions):
    """The options of a method; each adds its own, and says what becomes of the tensors and of config.json."""

    makes = "quantized"
    stage: Literal["quantize"] = "quantize"
    method: str = ""  # each has its own


class Method(NamedTuple):
    """A row of METHODS.

    Attributes:
        Options: What it can be told. They say themselves whether it sees each tensor alone (`streams`), and are
            CalibratedOptions where it reads text meanwhile.
        title: Its name and the bits a weight, with a dot between them.
        summary: What it gives and costs, in a line, where a method is chosen.
        quantize: Writes a model: takes weights, output, options, of a calibrated method the windows, and report. Such
            a method returns what training its scales has gained, in words; None: nothing, or it was not done.
    """

    Options: type[MethodOptions]
    title: str
    summary: str
    quantize: Callable[..., str | None]
