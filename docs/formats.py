"""The tables of methods, layouts and who loads them: docs/reference/formats.md, and the short one in README."""

import json
import re
from collections.abc import Sequence
from typing import Any

from backend.processes.child import ROOT
from backend.quantize import METHODS
from backend.quantize.calibrated.options import CalibratedOptions
from backend.quantize.method import MethodOptions
from backend.quantize.readers import READERS, Reading
from backend.quantize.targets import kinds, layout_of, names_in_all_layouts, readers_of, usual, widths

MEASURED = ROOT / "benchmarks" / "results" / "formats.json"

HEAD = """# Formats

What each method writes, and who loads it: transformers 5.24, vLLM 0.32 and 0.33, SGLang 0.5.23, and llama.cpp's
`convert_hf_to_gguf.py` of 2026-11, through which models come to Ollama, too. The figures are of the demo model,
SmolLM2-135M-Instruct; [benchmarks](../explanation/benchmarks.md) says how they were measured.

* A number at vLLM is the compute capability that an NVIDIA GPU needs: T4 7.5, A100 8.0, RTX 30 8.6, RTX 40 and L4
  8.9, H100 9.0, B200 10.0, RTX 50 12.0. *Native* is where the GPU multiplies in the format itself; below, weights
  are unpacked before each product.
* *No experts*: a mixture whose experts are in the format does not load there. [Families](families.md) says of which
  mixtures transformers loads no such format; the chat here unpacks them to 16 bit, and their cards say so.
* NF4, FP4 and INT8 are bitsandbytes' formats: for tuning (QLoRA) and for transformers. vLLM left them to a plugin in
  0.28.
"""

BAR = "\\|"  # within a cell of a table

_TABLE = re.compile(r"(?<=\n## Methods\n\n)(\|.*\n)+")


def formats() -> str:
    """Write the page."""
    reasons: list[str] = []
    measured = _cells()
    rows = [
        _row(name, options, reasons) + _figures(name, options, measured) for name in METHODS for options in kinds(name)
    ]
    head = ("method", "layout", "bits", "calibration", *READERS.values(), "size", "KL, nats a token")
    filled = [column for column in range(len(head)) if any(row[column] for row in rows)]
    lines = [tuple(row[column] for column in filled) for row in rows]
    notes = "".join(f"{number}. {reason}.\n" for number, reason in enumerate(reasons, 1))
    return f"{HEAD}\n{table(tuple(head[column] for column in filled), lines)}\n{notes}"


def with_methods(readme: str) -> str:
    """Return README with the table of methods as it is now."""
    rows = [(f"`{name}`", _titled(name), _calibration(usual(name)), names_in_all_layouts(name)) for name in METHODS]
    made = table(("method", "bits", "calibration data", "runs in"), rows)
    return _TABLE.sub(lambda _: made, readme, count=1)


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Write a table in Markdown."""
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', BAR) for cell in line)} |\n" for line in lines)


def _row(name: str, options: MethodOptions, reasons: list[str]) -> tuple[str, ...]:
    """Return a row without its figures; reasons that are new are added to those below the table."""
    made = [(_width(other), readers_of(other)) for other in widths(options)]
    cells = (_cell(reader, [(width, found[reader]) for width, found in made], reasons) for reader in READERS)
    layout = layout_of(options)
    return f"`{name}`", f"`{layout}`" if layout else "", _bits(options), _calibration(options), *cells


def _bits(options: MethodOptions) -> str:
    """Return the bits a weight; those of a method that has none to choose stand in its title."""
    found = [_width(other) for other in widths(options)]
    return ", ".join(found) if all(found) else _titled(options.method)


def _titled(name: str) -> str:
    return METHODS[name].title.split(" · ")[1].removesuffix(" bit")


def _width(options: MethodOptions) -> str:
    return str(options.bits) if isinstance(options, CalibratedOptions) else ""


def _calibration(options: MethodOptions) -> str:
    return "yes" if isinstance(options, CalibratedOptions) else "no"


def _cell(reader: str, made: Sequence[tuple[str, Reading]], reasons: list[str]) -> str:
    """Say whether a program loads a result, of each number of bits."""
    able = [(width, reading) for width, reading in made if not reading.refusal]
    notes = list(dict.fromkeys(reading.refusal for _, reading in made if reading.refusal))
    reasons += [reason for reason in notes if reason not in reasons]
    numbers = f" ({', '.join(str(reasons.index(reason) + 1) for reason in notes)})" if notes else ""
    if not able:
        return f"no{numbers}"
    bits = f"{', '.join(width for width, _ in able)} bit" if notes else "yes"
    first = able[0][1]
    if first.experts and first.experts not in reasons:
        reasons.append(first.experts)
    mixtures = f", no experts ({reasons.index(first.experts) + 1})" if first.experts else ""
    return f"{', '.join([bits, *_conditions(first)])}{numbers}{mixtures}"


def _conditions(reading: Reading) -> list[str]:
    packages = [f"with {' and '.join(reading.packages)}"] if reading.packages else []
    told = [f"`{reading.told}`"] if reading.told else []
    capability = [f"≥ {reading.capability}"] if reading.capability else []
    until = [f"< {reading.until}"] if reading.until else []
    native = [f"native ≥ {reading.native}"] if reading.native and reading.native > reading.capability else []
    return [*packages, *told, *capability, *until, *native]


def _cells() -> dict[str, Any]:
    found = json.loads(MEASURED.read_text(encoding="utf-8")) if MEASURED.is_file() else {}
    cells: dict[str, Any] = found.get("demo", {}).get("cells", {})
    return cells


def _figures(name: str, options: MethodOptions, measured: dict[str, Any]) -> tuple[str, str]:
    """Return size and loss as benchmarks/formats.py has them; empty where it has not."""
    usual_layout = layout_of(usual(name))
    cell = name if layout_of(options) == usual_layout else f"{name} --layout {layout_of(options)}"
    found = measured.get(cell, {})
    size = f"{found['megabytes']['median']:.0f} MB" if "megabytes" in found else ""
    return size, f"{found['kl']['same source']:.3f}" if "kl" in found else ""
