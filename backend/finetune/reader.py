"""The model as a reader of rows: its own tokenizer, chat template and stops, for a training and for its preview."""

from pathlib import Path
from typing import Any, NamedTuple

from backend.data.examine import Dataset
from backend.data.findings import Finding
from backend.data.samples import find_literals
from backend.finetune.chat_templates import give_template
from backend.finetune.options import FinetuneOptions
from backend.finetune.rendering import Renderer, stops_of
from backend.model_folder import stops_in
from backend.models.loading import load_tokenizer


class Reader(NamedTuple):
    """What renders rows as one model sees them."""

    tokenizer: Any  # of transformers
    stops: set[int]  # tokens that end an answer
    renderer: Renderer


def open_reader(folder: Path, data: Dataset, options: FinetuneOptions) -> Reader:
    """Load a model's tokenizer, and give it a chat template where the rows need one.

    Args:
        folder: Of the model, admitted; no weights are read.
        data: What is rendered.
        options: The template, the loss and the length.

    Raises:
        SpecError: There is no chat template, or the tokenizer will not do.
    """
    tokenizer = load_tokenizer(folder)
    stops = stops_of(tokenizer, stops_in(folder))
    first = next(data.train(), None)
    if first and first.messages:
        give_template(tokenizer, options.chat_template, "The base model", bool(first.tools))
        if tokenizer.eos_token_id is not None:
            stops.add(tokenizer.eos_token_id)
    return Reader(tokenizer, stops, Renderer(tokenizer, options.loss, options.max_length, stops))


def literals(data: Dataset, reader: Reader) -> tuple[Finding, ...]:
    """Find the model's special tokens where somebody has typed them into the rows."""
    return find_literals(data.train(), reader.renderer.control, data.examination.name)
