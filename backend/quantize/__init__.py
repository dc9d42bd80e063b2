"""The quantization methods: each module holds a method's options, and the row that says what else is known of it.

A new method is one module and its line here.
"""

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from backend.quantize import awq, cast, fp8, gptq, int8, mxfp4, nf4, nvfp4, w8a8, wna16
from backend.quantize.method import Method, MethodOptions

METHODS: dict[str, Method] = {
    "nf4": nf4.NF4,
    "fp4": nf4.FP4,
    "int8": int8.METHOD,
    "fp8": fp8.METHOD,
    "w8a16": wna16.W8A16,
    "w4a16": wna16.W4A16,
    "mxfp4": mxfp4.METHOD,
    "gptq": gptq.METHOD,
    "awq": awq.METHOD,
    "w8a8": w8a8.METHOD,
    "nvfp4": nvfp4.METHOD,
    "cast": cast.METHOD,
}

if TYPE_CHECKING:
    QuantizeOptions = MethodOptions
else:
    QuantizeOptions = Annotated[reduce(or_, (row.Options for row in METHODS.values())), Field(discriminator="method")]
