"""The quantization methods: each module holds a method's options and its quantize().

A new method is one module and its name twice here.
"""

from typing import Annotated

from pydantic import Field

from backend.quantize import awq, cast, fp4, gptq, int8, nf4

METHODS = {"nf4": nf4, "fp4": fp4, "int8": int8, "gptq": gptq, "awq": awq, "cast": cast}

QuantizeOptions = Annotated[
    nf4.Options | fp4.Options | int8.Options | gptq.Options | awq.Options | cast.Options,
    Field(discriminator="method"),
]
