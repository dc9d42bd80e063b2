"""ModelFacts: what a model is before it is loaded, from its config and safetensors headers alone."""

from typing import Any

from pydantic import Field

from backend.options import Frozen
from backend.weights.tensor import Tensor


class ModelFacts(Frozen):
    """What the page shows and the estimates need; sizes in bytes."""

    model: str = Field(description="`demo`, a repo id, or the absolute path of a local folder.")
    commit: str | None = Field(None, description="The commit that was looked at.")
    base_model: str | None = Field(None, description="The Hub id that a card may name; None for a local folder.")
    architecture: str = Field(description="The class, such as LlamaForCausalLM.")
    model_type: str
    parameters: int
    size: int = Field(description="Bytes of the weight files.")
    largest_file: int = Field(0, description="Bytes of the largest weight file.")
    download: int = Field(description="Bytes of every file that would be downloaded.")
    dtype: str = Field(description="The type of most parameters: bfloat16, float16, float32.")
    layers: int
    hidden_size: int
    vocab_size: int
    context_length: int | None = Field(None, description="Tokens the model was made for.")
    tied: bool = Field(description="Whether input embeddings and output head are one tensor.")
    chat_template: bool
    quant_method: str | None = Field(None, description="How it is quantized already, if it is.")
    encoding: str | None = Field(
        None,
        description="How its weights ship in 8 or 4 bit, where they are decoded; all else here is as if they were.",
    )
    decoded: int = Field(0, description="Parameters that are decoded.")
    decoding_memory: int = Field(0, description="Bytes that this takes beside what is decoded.")
    license: str | None = Field(None, description="From the card or repo; never guessed.")
    license_name: str | None = None
    license_link: str | None = None
    languages: tuple[str, ...] = ()
    gated: bool = False
    private: bool = False
    downloads: int | None = None
    pickled: int = Field(0, description="Bytes of the pickled weight files that are converted first; 0 where none are.")
    pickled_memory: int = Field(0, description="Bytes of what is in memory at a time while they are converted.")
    tensors: tuple[Tensor, ...] = Field((), repr=False)
    config: dict[str, Any] = Field(default_factory=dict, repr=False, description="What config.json says.")
    files: dict[str, int] = Field(
        default_factory=dict, repr=False, description="Bytes of its files as they lie here, weights included."
    )
    card: dict[Any, Any] = Field(default_factory=dict, repr=False, description="Its card's front matter.")

    @property
    def loaded(self) -> int:
        """Bytes of its weights in memory, as the config says their type."""
        return sum(tensor.bytes for tensor in self.tensors) if self.encoding else self.size
