"""Speeds: how fast this machine is, measured once and kept as `speeds.json` in the data folder."""

import os
from pathlib import Path

from pydantic import Field, PositiveFloat

from backend import __version__
from backend.disk import read_whole, write_whole
from backend.machine.hardware import processor
from backend.options import Frozen

SPEEDS = "speeds.json"


class Speeds(Frozen):
    """What a stage's time is estimated from; rates in bytes a second, of what is read where nothing else is said.

    The defaults serve until it is measured: 2 cores of an AVX-512 server with an SSD.
    """

    machine: str = Field("", description="What it holds for, see machine().")
    start_seconds: float = Field(0.9, gt=0, description="From a worker's start until its stage begins.")
    worker_bytes: int = Field(118_000_000, gt=0, description="Memory of a worker that has not read a tensor yet.")
    methods: dict[str, PositiveFloat] = Field(
        default={
            "nf4": 1.1e9,
            "fp4": 1.0e9,
            "int8": 0.9e9,
            "fp8": 1.2e9,
            "w8a16": 0.7e9,
            "w4a16": 0.45e9,
            "mxfp4": 0.45e9,
            "cast": 1.5e9,
        },
        description="Rate of the tensors that a method changes; of cast, for those that stay.",
    )
    hash: float = Field(0.9e9, gt=0, description="Rate of sha256.")
    write: float = Field(0.5e9, gt=0, description="Rate at which what is written reaches the disk.")

    def rate(self, method: str) -> float:
        """Return the rate of a method; one that was not measured counts as a cast."""
        return self.methods.get(method) or self.methods["cast"]


def machine() -> str:
    """Name what a measurement depends on: this version, the processor, and how much of it is ours."""
    return f"{__version__}, {processor()}, {len(os.sched_getaffinity(0))} threads"


def read_speeds(data: Path) -> Speeds | None:
    """Return what was measured on this machine; None where nothing was, or the file is damaged."""
    found = read_whole(data / SPEEDS, Speeds)
    return found if found and found.machine == machine() and "cast" in found.methods else None


def write_speeds(data: Path, measured: Speeds) -> None:
    """Keep what was measured: whole or not at all."""
    write_whole(data / SPEEDS, measured.model_dump_json(indent=2))
