"""Loading a model folder with transformers: from the disk only, never running code that a repo brings."""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from backend.errors import SpecError
from backend.model_folder import (
    CONFIG,
    GENERATION,
    TOKENIZER_CONFIG,
    has_tokenizer,
    is_token,
    read_config,
    settings_in,
    stops_in,
)
from backend.models.config import auto_class_name, longest_window
from backend.progress import Report
from backend.strict_json import quoted

_READERS = ("tiktoken", "sentencepiece", "sacremoses", "mistral_common", "rjieba", "fugashi", "rhoknp", "pythainlp")
"""Packages that transformers reads some tokenizers with."""


def device() -> str:
    """Return the device that models run on: the first GPU where there is one; of several processes each has its own."""
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def load_causal_lm(folder: Path, report: Report, **kwargs: Any) -> Any:
    """Load a causal language model for inference, in the type that its config names.

    Args:
        folder: Admitted: config.json and safetensors weights.
        report: Receives the tensors loaded.
        kwargs: Passed on to `from_pretrained`, such as dtype or quantization_config.

    Raises:
        SpecError: transformers cannot make sense of the folder.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    settings = getattr(config, "quantization_config", None)
    if device() == "cpu" and isinstance(settings, dict):
        # On a CPU this flag would leave int8 weights in plain linear layers; it speaks of GPUs with too little memory.
        settings.pop("llm_int8_enable_fp32_cpu_offload", None)
    options = {
        "dtype": "auto",
        "device_map": {"": device()},
        "trust_remote_code": False,
        "local_files_only": True,
        "use_safetensors": True,
        "generation_config": greedy(folder),
        "output_loading_info": True,
    }
    try:
        with _progress(report):
            model, found = auto_class(read_config(folder)).from_pretrained(folder, config=config, **(options | kwargs))
    except (ValueError, KeyError, RuntimeError, OSError) as e:
        text = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise SpecError(f"transformers could not load '{folder.name}': {text} Choose another model.") from e
    refuse_made_up(found, folder.name)
    leave_kernels(model)
    return model.eval()


def auto_class(config: Mapping[str, Any]) -> Any:
    """Return the class of transformers that builds a model; see auto_class_name()."""
    import transformers

    return getattr(transformers, auto_class_name(config))


def greedy(folder: Path) -> Any:
    """Return transformers' generation config for a model's likeliest answers: its stops and its penalty alone.

    What else a generation_config.json says is about sampling, and transformers refuses some of what others write there.
    """
    from transformers import GenerationConfig

    said = settings_in(folder, CONFIG) | settings_in(folder, GENERATION)
    kept: dict[str, Any] = {"eos_token_id": sorted(stops_in(folder)) or None}
    kept |= {name: said[name] for name in ("bos_token_id", "pad_token_id") if is_token(said.get(name))}
    penalty = said.get("repetition_penalty")
    if isinstance(penalty, int | float) and penalty > 0:
        kept["repetition_penalty"] = penalty
    return GenerationConfig(**kept)


def refuse_made_up(found: Mapping[str, Any], name: str) -> None:
    """Refuse a model of which transformers has made up weights that it did not find.

    Args:
        found: What `from_pretrained` gives for `output_loading_info`.
        name: The model's, for the error.

    Raises:
        SpecError: Which weight.
    """
    if missing := sorted([*found["missing_keys"], *(str(key) for key in found["mismatched_keys"])]):
        raise SpecError(
            f"{quoted(missing[0])} is missing in '{name}', and transformers has put random numbers in its place: choose"
            " a complete model."
        )


def leave_kernels(model: Any) -> None:
    """Keep layers in 4 bits from bitsandbytes' kernel for CPUs where their sizes are none that it can take."""
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            fits = module.out_features % 32 == 0 and module.in_features % 64 == 0
            module.support_avx512bf16_for_cpu = fits


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer of a model folder.

    Raises:
        SpecError: It has none that transformers can load.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (ValueError, LookupError, OSError, ImportError) as e:
        if _names_code(folder) and (folder / "tokenizer.json").is_file():
            return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        raise SpecError(f"The tokenizer of '{folder.name}' could not be loaded. {_remedy(e, folder)}") from e
    if not tokenizer("a b", add_special_tokens=False)["input_ids"]:  # of files that it does not know it makes none
        raise SpecError(
            f"The tokenizer of '{folder.name}' gives no tokens: its files are of a kind that transformers does not"
            " read. Choose a model with a tokenizer.json."
        )
    return tokenizer


def _remedy(error: Exception, folder: Path) -> str:
    """Say what to do where a tokenizer cannot be loaded: name the package that it wants, if it is one."""
    lacks = next((name for name in _READERS if name in str(error) and find_spec(name) is None), None)
    if lacks and has_tokenizer(path.name for path in folder.iterdir()):
        return f"transformers reads it with the package {lacks}: install that, or choose a model with a tokenizer.json."
    return "Choose a model with one."


def pad_within(tokenizer: Any, rows: int) -> None:
    """Have a tokenizer fill up with a token that a model with so many embeddings can read."""
    known = (tokenizer.pad_token, tokenizer.eos_token, tokenizer.convert_ids_to_tokens(0))
    tokenizer.pad_token = next(t for t in known if t is not None and tokenizer.convert_tokens_to_ids(t) < rows)


def check_embedded(tokenizer: Any, largest: int, rows: int | None, name: str) -> None:
    """Refuse a text with a token that a model has no embedding for.

    Args:
        tokenizer: That gave the text's tokens.
        largest: Number of the last of them.
        rows: Embeddings of the model; None where nobody knows.
        name: What the error calls the model.

    Raises:
        SpecError: The token, and what to do.
    """
    if rows is not None and largest >= rows:
        text = tokenizer.convert_ids_to_tokens(largest)
        raise SpecError(
            f"The tokenizer of '{name}' has {quoted(text)} as token {largest}, and the model has {rows} embeddings:"
            " give the model that the tokenizer belongs to, or take the token out of the text."
        )


def _names_code(folder: Path) -> bool:
    """Return whether a tokenizer's settings name a class of the repo's own code, which never runs."""
    return "auto_map" in settings_in(folder, TOKENIZER_CONFIG)


def window_length(folder: Path, asked: int, report: Report) -> int:
    """Return the tokens of a window that a model reads, and say so where it reads fewer than are asked for."""
    length = longest_window(read_config(folder), asked)
    if length < asked:
        report.log(f"The model reads {length} tokens at most: the windows have that length.")
    return length


@contextmanager
def _progress(report: Report) -> Iterator[None]:
    """Turn transformers' progress bars into progress events."""
    from transformers.utils import logging

    def counted(factory: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        phase = str(kwargs.get("desc", "")).lower()
        return _Counted(args[0], phase, report) if args and phase else factory(*args, **kwargs)

    previous = logging.set_tqdm_hook(counted)
    try:
        yield
    finally:
        logging.set_tqdm_hook(previous)


class _Counted:
    """What transformers asks of a progress bar around a loop."""

    def __init__(self, items: Iterable[Any], phase: str, report: Report) -> None:
        self._items = list(items)
        self._phase = phase
        self._report = report

    def __iter__(self) -> Iterator[Any]:
        for done, item in enumerate(self._items):
            yield item
            self._report.progress(self._phase, done + 1, len(self._items), "tensors")

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None
