"""ModelFacts: what a model is before it is loaded, from its config and safetensors headers alone."""

import math

from pydantic import Field

from backend.options import Frozen

BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32,
    "U16": 16, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "C64": 64, "F4": 4,
}  # fmt: skip
"""Bits an element takes in a safetensors file."""

_NOT_LINEAR = {"embed_tokens", "wte", "wpe", "embed_positions", "word_embeddings", "embed_in", "embed_out", "lm_head"}


class Tensor(Frozen):
    """One tensor of a checkpoint."""

    name: str
    dtype: str = Field(description="As safetensors writes it: BF16, F16, F32, I32, U8, …")
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes of its data."""
        return self.elements * BITS[self.dtype] // 8

    @property
    def is_linear(self) -> bool:
        """Whether it is the weight of a linear layer between the embeddings and the output head."""
        name = self.name.removesuffix(".weight")
        return len(self.shape) == 2 and name != self.name and name.rsplit(".", 1)[-1] not in _NOT_LINEAR


class ModelFacts(Frozen):
    """What the page shows and the estimates need; sizes in bytes."""

    model: str = Field(description="`demo`, a repo id, or the absolute path of a local folder.")
    commit: str | None = Field(None, description="The commit that was looked at.")
    base_model: str | None = Field(None, description="The Hub id that a card may name; None for a local folder.")
    architecture: str = Field(description="The class, such as LlamaForCausalLM.")
    model_type: str
    parameters: int
    size: int = Field(description="Bytes of the weight files.")
    download: int = Field(description="Bytes of every file that would be downloaded.")
    dtype: str = Field(description="The type of most parameters: bfloat16, float16, float32.")
    layers: int
    hidden_size: int
    vocab_size: int
    context_length: int | None = Field(None, description="Tokens the model was made for.")
    tied: bool = Field(description="Whether input and output embeddings are one tensor.")
    chat_template: bool
    quant_method: str | None = Field(None, description="How it is quantized already, if it is.")
    license: str | None = Field(None, description="From the card or repo; never guessed.")
    license_name: str | None = None
    license_link: str | None = None
    languages: tuple[str, ...] = ()
    gated: bool = False
    private: bool = False
    downloads: int | None = None
    tensors: tuple[Tensor, ...] = Field((), repr=False)
