"""Targets: where a result will run, and which methods and layouts are best there."""

from collections.abc import Iterator
from typing import Any, NamedTuple, get_args

from backend.quantize import METHODS
from backend.quantize.calibrated.options import CalibratedOptions
from backend.quantize.formats import readers
from backend.quantize.layouts import LAYOUTS
from backend.quantize.method import MethodOptions
from backend.quantize.readers import READERS, Readers, Reading


class Target(NamedTuple):
    """An answer to "Where will it run?".

    Attributes:
        title: In the words of who asks.
        reader: A key of READERS; empty: that is not known yet.
        capability: The compute capability of the GPUs that are meant.
    """

    title: str
    reader: str = ""
    capability: float = 0

    def reading(self, options: MethodOptions) -> Reading:
        """Return how a result with these options is loaded there."""
        found = readers_of(options)[self.reader]
        return found.on(self.capability) if self.capability else found


UNSURE = "unsure"

TARGETS = {
    UNSURE: Target("Not sure yet"),
    "vllm-blackwell": Target("vLLM: RTX 50, B200", "vllm", 10.0),
    "vllm-hopper": Target("vLLM: RTX 40, L4, H100", "vllm", 8.9),
    "vllm-ampere": Target("vLLM: T4, RTX 30, A100", "vllm", 7.5),
    "vllm-cpu": Target("vLLM without a GPU", "vllm-cpu"),
    "sglang": Target("SGLang", "sglang"),
    "transformers": Target("transformers, more tuning", "transformers"),
    "llama.cpp": Target("llama.cpp, Ollama", "llama.cpp"),
}
"""The GPUs of a line differ from those of the next in what they multiply: FP4, FP8, INT8 alone."""


class Offer(NamedTuple):
    """A method, as a target takes it.

    Attributes:
        method: A key of METHODS.
        options: Its usual ones, in the layout that the target loads best.
        reading: How the target loads it; None: nobody has named one.
    """

    method: str
    options: MethodOptions
    reading: Reading | None

    @property
    def words(self) -> str:
        """Say where it runs or why not, or under which condition; nothing if it simply runs."""
        if self.reading is None:
            return f"Runs in {names(self.options)}."
        if self.reading.refusal:
            return f"{self.reading.refusal}."
        layout = "" if self.options == usual(self.method) else f"in the layout {layout_of(self.options)}"
        packages = f"with the package {' and '.join(self.reading.packages)}" if self.reading.packages else ""
        told = f"given {self.reading.told}" if self.reading.told else ""
        parts = [part for part in (layout, packages, told) if part]
        mixtures = "Mixtures of experts do not." if self.reading.experts else ""
        native = "Multiplied there without unpacking." if self.reading.native is not None else ""
        return " ".join(filter(None, (native, f"Runs there {', '.join(parts)}." if parts else "", mixtures)))


def offers(target: Target) -> list[Offer]:
    """Return all methods: those that a target loads before the others, and of those the best first."""
    if not target.reader:
        return [Offer(name, usual(name), None) for name in METHODS]
    kept = ((Offer(name, options, target.reading(options)) for options in kinds(name)) for name in METHODS)
    return sorted((min(layouts, key=_rank) for layouts in kept), key=_rank)


def _rank(offer: Offer) -> tuple[Any, ...]:
    """Return what the best offer has least of."""
    _, options, reading = offer
    assert reading
    quantized = "quantization_config" in options.config((), {})
    calibrated = isinstance(options, CalibratedOptions)
    native = reading.native is not None
    effort = len(reading.packages) + bool(reading.told)
    return bool(reading.refusal), not quantized, not native, not reading.apt, not calibrated, effort


def usual(name: str) -> MethodOptions:
    """Return a method's usual options."""
    return METHODS[name].Options()


def kinds(name: str) -> Iterator[MethodOptions]:
    """Yield a method's usual options in each of its layouts, the usual one first, then the newest."""
    first = usual(name)
    yield first
    if isinstance(first, CalibratedOptions):
        for layout in reversed(get_args(type(first).model_fields["layout"].annotation)):
            held = _bits(first, layout)
            if layout != first.layout and held:
                yield type(first)(layout=layout, bits=first.bits if first.bits in held else held[0])


def widths(options: MethodOptions) -> list[MethodOptions]:
    """Return the options once for each number of bits that their method and layout can have."""
    if not isinstance(options, CalibratedOptions):
        return [options]
    return [type(options)(layout=options.layout, bits=bits) for bits in _bits(options, options.layout)]


def _bits(options: CalibratedOptions, layout: str) -> list[Any]:
    """Return the numbers of bits that a method can have in a layout."""
    known = get_args(type(options).model_fields["bits"].annotation)
    return [bits for bits in known if bits in LAYOUTS[layout].BITS]


def layout_of(options: MethodOptions) -> str:
    """Return the layout that options name; empty where a method has none to choose."""
    return options.layout if isinstance(options, CalibratedOptions) else ""


def readers_of(options: MethodOptions) -> Readers:
    """Return who loads a result with these options."""
    return readers(options.config((), {}))


def names(options: MethodOptions) -> str:
    """Name the programs that load a result with these options."""
    found = readers_of(options)
    able = sorted((name for name in READERS if not found[name].refusal), key=lambda name: not found[name].apt)
    titles = {name: READERS[name].split(",")[0] for name in able}
    if "vllm" in able and "vllm-cpu" not in able:
        titles["vllm"] = "vLLM with a GPU"
    return ", ".join(dict.fromkeys(titles.values()))


def names_in_all_layouts(name: str) -> str:
    """Name the programs that load a method's result, and in which other layout others do."""
    first, *others = kinds(name)
    found, known = names(first), names(first).split(", ")
    for options in others:
        added = [title for title in names(options).split(", ") if title not in known]
        known += added
        found += f"; {', '.join(added)} in the layout {layout_of(options)}" if added else ""
    return found
