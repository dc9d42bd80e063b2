"""The layouts that calibrated weights are packed in: each module says how integers on a grid lie in a file.

A new layout is one module and its line here.
"""

from backend.quantize.layouts import awq, compressed_tensors, gptq
from backend.quantize.layouts.layout import Layout

LAYOUTS: dict[str, Layout] = {
    "gptq": gptq,
    "awq": awq,
    "compressed-tensors": compressed_tensors,
}
"""By what config.json calls them: `quant_method`."""
