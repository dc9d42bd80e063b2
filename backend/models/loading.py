"""Loading a model folder with transformers: from the disk only, never running code that a repo brings."""

import os
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from backend.errors import HardwareError, SpecError
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
from backend.models.torch_weights import opened
from backend.models.towers import stand_in
from backend.progress import Report
from backend.strict_json import quoted
from backend.weights.decoded import encoded_as

_READERS = ("tiktoken", "sentencepiece", "sacremoses", "mistral_common", "rjieba", "fugashi", "rhoknp", "pythainlp")
"""Packages that transformers reads some tokenizers with."""


def device() -> str:
    """Return the device that models run on: the first GPU where there is one; of several processes each has its own."""
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def load_causal_lm(folder: Path, report: Report, **kwargs: Any) -> Any:
    """Load a causal language model for inference, in the type that its config names; one in 8 or 4 bits is decoded.

    Args:
        folder: Admitted: config.json and safetensors weights.
        report: Receives the tensors loaded.
        kwargs: Passed on to `from_pretrained`, such as dtype or quantization_config.

    Raises:
        SpecError: transformers cannot make sense of the folder.
    """
    from transformers import AutoConfig

    options = {
        "dtype": "auto",
        "device_map": {"": device()},
        "trust_remote_code": False,
        "local_files_only": True,
        "use_safetensors": True,
        "generation_config": greedy(folder),
        "output_loading_info": True,
    }
    remedy = "choose another model, or install what the log says is missing"
    with in_our_words(f"Loading '{folder.name}'", remedy), progress_of(report):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        settings = getattr(config, "quantization_config", None)
        if device() == "cpu" and isinstance(settings, dict):
            # On a CPU this flag would leave int8 weights in plain linear layers; it speaks of GPUs short of memory.
            settings.pop("llm_int8_enable_fp32_cpu_offload", None)
        if encoded_as(read_config(folder)):
            model, found = _load_decoded(folder, config, options | kwargs)
        else:
            build = auto_class(read_config(folder))
            model, found = build.from_pretrained(folder, config=config, **(options | kwargs))
    refuse_made_up(found, folder.name)
    leave_kernels(model)
    leave_pictures_out()
    return model.eval()


_FOREIGN = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, MemoryError, OSError, RuntimeError,
    TypeError, ValueError,
)  # fmt: skip
"""What packages raise for all that goes wrong in them."""

_NO_MEMORY = ("not enough memory", "can't allocate")
"""What torch's allocator for CPUs says in a RuntimeError."""


@contextmanager
def in_our_words(what: str, remedy: str) -> Iterator[None]:
    """Say in one sentence that something failed in a package; what the package says goes to the log.

    Args:
        what: Was done: "Loading 'me/model'".
        remedy: What to do about it.

    Raises:
        HardwareError: There was not enough memory.
        SpecError: It failed.
    """
    try:
        yield
    except _FOREIGN as e:
        if isinstance(e, OSError) and e.errno:
            raise  # of the disk, for which there are words
        traceback.print_exc()
        if type(e).__name__ == "OutOfMemoryError" or isinstance(e, MemoryError) or any(x in str(e) for x in _NO_MEMORY):
            raise HardwareError(f"{what} ran out of memory: choose a smaller model, or a larger machine.") from e
        raise SpecError(f"{what} failed in {_package(e)}: {remedy}. The log has the details.") from e


def _package(error: BaseException) -> str:
    """Return the name of the package that an error was raised in."""
    frames = traceback.extract_tb(error.__traceback__)
    parts = [Path(frame.filename).parts for frame in frames]
    inside = [found[found.index("site-packages") + 1] for found in parts if "site-packages" in found]
    return inside[-1].removesuffix(".py") if inside else "a package"


def auto_class(config: Mapping[str, Any]) -> Any:
    """Return the class of transformers that builds a model, with empty towers where it could not build their own."""
    import transformers

    stand_in()
    return getattr(transformers, auto_class_name(config))


def _load_decoded(folder: Path, config: Any, options: dict[str, Any]) -> tuple[Any, Mapping[str, Any]]:
    """Load a model from weights that are decoded one tensor after the other; transformers knows nothing of it."""
    from transformers.models.auto.auto_factory import _get_model_class

    with opened(folder) as (said, tensors):
        plain = type(config).from_dict(config._decode_special_floats(said))  # infinite ones, which JSON does not have
        kind = _get_model_class(plain, auto_class(said)._model_mapping)
        model, found = kind.from_pretrained(None, config=plain, state_dict=tensors, **options)
    model.config.name_or_path = model.name_or_path = str(folder)  # adapters record it
    return model, found


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
        if ".lora_" in missing[0]:
            raise SpecError(
                f"The adapter '{name}' has nothing for {quoted(missing[0])}, which its settings name: its files name"
                " other layers. Tune again, or choose another adapter."
            )
        raise SpecError(
            f"{quoted(missing[0])} is missing in '{name}', and transformers has put random numbers in its place: choose"
            " a complete model."
        )


def refuse_idle(model: Any, name: str) -> None:
    """Refuse a model with an adapter that changes nothing of what it says.

    Args:
        model: Of transformers, with layers of PEFT's in it.
        name: The adapter's, for the error.

    Raises:
        SpecError: The logits are the same without the adapter.
    """
    if not changes(model):
        raise SpecError(
            f"The adapter '{name}' changes nothing of what the model says: no layer has the names in its files, or it"
            " has learned nothing. Tune again, or choose another adapter."
        )


def changes(model: Any) -> bool:
    """Return whether the adapter in a model changes its logits."""
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    layers = [m for m in model.modules() if isinstance(m, BaseTunerLayer | AuxiliaryTrainingWrapper)]
    ids = torch.arange(min(16, len(model.get_input_embeddings().weight)), device=model.device)[None]
    said, training = [], model.training
    model.eval()
    for on in (False, True):  # they are left on
        for layer in layers:
            layer.enable_adapters(on)
        with torch.inference_mode():
            said.append(model(input_ids=ids, use_cache=False).logits)
    model.train(training)
    return not torch.equal(*said)


def leave_kernels(model: Any) -> None:
    """Keep layers in 4 bits from bitsandbytes' kernel for CPUs where their sizes are none that it can take."""
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            fits = module.out_features % 32 == 0 and module.in_features % 64 == 0
            module.support_avx512bf16_for_cpu = fits


def leave_pictures_out() -> None:
    """Have transformers' Llama 4 read text: its class asks its text model's outputs for those of pictures."""
    from transformers.modeling_outputs import MoeCausalLMOutputWithPast

    if not hasattr(MoeCausalLMOutputWithPast, "image_outputs"):
        MoeCausalLMOutputWithPast.image_outputs = None


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
def progress_of(report: Report) -> Iterator[None]:
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
