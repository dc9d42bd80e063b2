"""`transformers serve` behind the guard.

`python -m backend.serve.engines.transformers_server FOLDER PORT DEVICE [BASE]` serves a folder.
FOLDER may hold an adapter, of which BASE is the model that it was trained on.
"""

import json
import logging
import os
import sys
import tempfile
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fastapi import HTTPException

from backend.errors import SpecError
from backend.model_folder import ADAPTER_CONFIG, GENERATION, kind_of, read_config
from backend.models.chat_template import in_words
from backend.models.config import context_length
from backend.models.loading import leave_kernels, leave_pictures_out, refuse_idle, refuse_made_up
from backend.models.towers import stand_in
from backend.progress import silent
from backend.quantize.engine_rounding import round_as_engines
from backend.quantize.formats import readers
from backend.quantize.packed import load_unpacked
from backend.serve.engines.transformers import unpacks
from backend.serve.guard import Guard
from backend.serve.pictures import KINDS, PIXELS


def main(stack: ExitStack) -> None:
    """Load the model, then answer until SIGTERM.

    Args:
        stack: Keeps what is needed until then.
    """
    from transformers.cli.serve import Serve
    from transformers.cli.serving.chat_completion import ChatCompletionHandler
    from transformers.cli.serving.completion import CompletionHandler

    folder = Path(sys.argv[1])
    port = int(sys.argv[2])
    device = sys.argv[3]
    if len(sys.argv) > 4:
        folder = _with_base(folder, Path(sys.argv[4]), Path(stack.enter_context(tempfile.TemporaryDirectory())))
    # transformers reads an "@" in a model's name as a revision; from its parent, the folder's bare name will do.
    os.chdir(folder.parent)

    build = ChatCompletionHandler._build_generation_config

    def with_top_k(self: Any, body: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Take top_k as vLLM does; OpenAI's API has none."""
        config = build(self, body, *args, **kwargs)
        config.top_k = body.get("top_k") or config.top_k
        return config

    ChatCompletionHandler._build_generation_config = with_top_k
    ChatCompletionHandler._valid_params_class.__mutable_keys__ |= {"top_k"}
    for handler in (ChatCompletionHandler, CompletionHandler):
        _give_token_ids(handler)
        if most := context_length(read_config(folder)):
            _keep_within(handler, most)

    stand_in()
    _load_whole_models_alone(folder)
    _load_processors_without_films()
    _word_refusals()
    _decode_pictures(ChatCompletionHandler)

    class KeyedServe(Serve):  # type: ignore[misc]
        def start_server(self) -> None:
            self.server.config.app = Guard(self.server.config.app)
            logging.getLogger("uvicorn.access").setLevel(logging.WARNING)  # its health is asked for each second
            self.server.run()

    KeyedServe(force_model=folder.name, host="127.0.0.1", port=port, device=device, non_blocking=True)


def _word_refusals() -> None:
    """Have the server answer in a sentence where a chat template or a processor does not take a conversation."""
    from transformers import PreTrainedTokenizerBase, ProcessorMixin, processing_utils

    def worded(place: Any, name: str, words: Callable[[], AbstractContextManager[None]]) -> None:
        write = getattr(place, name)

        def write_or_refuse(*args: Any, **kwargs: Any) -> Any:
            try:
                with words():
                    return write(*args, **kwargs)
            except SpecError as e:
                raise HTTPException(400, str(e)) from e

        setattr(place, name, write_or_refuse)

    worded(PreTrainedTokenizerBase, "apply_chat_template", in_words)
    worded(processing_utils, "render_jinja_template", in_words)
    worded(ProcessorMixin, "apply_chat_template", _pictures_in_words)


@contextmanager
def _pictures_in_words() -> Iterator[None]:
    try:
        yield
    except ValueError as e:
        why = " ".join(str(e).split())[:200]
        raise SpecError(f"The model does not take its pictures from this conversation ({why}): ask without one.") from e


def _load_processors_without_films() -> None:
    """Have processors load where torchvision, which they need for films alone, is missing.

    A model whose pictures need it too is served without: what prepares them is left out, and its tokenizer stays.
    """
    from transformers import AutoTokenizer, ProcessorMixin
    from transformers.cli.serving.model_manager import ModelManager
    from transformers.models.auto.video_processing_auto import AutoVideoProcessor

    if find_spec("torchvision"):
        return
    check, load = ProcessorMixin.check_argument_for_proper_class, ModelManager._load_processor
    AutoVideoProcessor.from_pretrained = classmethod(lambda cls, *args, **kwargs: None)
    ProcessorMixin.check_argument_for_proper_class = lambda self, name, given: given and check(self, name, given)

    def lenient(self: Any, model: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return load(self, model, *args, **kwargs)
        except ImportError:
            return AutoTokenizer.from_pretrained(model)

    ModelManager._load_processor = lenient


def _decode_pictures(handler: Any) -> None:
    """Have the server decode pictures itself, from data URLs alone: transformers would open addresses and files."""
    from transformers.cli.serving.utils import Modality

    convert = handler.get_processor_inputs_from_messages

    def decoded(messages: list[dict[str, Any]], modality: Any) -> list[dict[str, Any]]:
        turns: list[dict[str, Any]] = convert(messages, modality)
        parts = [part for turn in messages if isinstance(turn["content"], list) for part in turn["content"]]
        if modality == Modality.LLM and any(part["type"] == "image_url" for part in parts):
            raise HTTPException(400, "To prepare pictures for this model, transformers lacks torchvision here.")
        for part in (part for turn in turns if isinstance(turn["content"], list) for part in turn["content"]):
            if part["type"] == "image":
                part["image"] = _decoded(part.pop("url"))
        return turns

    handler.get_processor_inputs_from_messages = staticmethod(decoded)


def _decoded(url: str) -> Any:
    """Return the picture of a data URL, which the guard has looked at."""
    from PIL import Image, ImageOps

    Image.MAX_IMAGE_PIXELS = PIXELS // 2  # Pillow refuses what has more than twice as many
    try:
        opened = Image.open(BytesIO(b64decode(url.partition(",")[2])), formats=[kind.upper() for kind in KINDS])
        return ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as e:
        raise HTTPException(400, "A picture in the conversation cannot be decoded: save it again.") from e


def _give_token_ids(handler: Any) -> None:
    """Have answers that are not streamed hold the tokens of prompt and answer where vLLM puts them."""
    from starlette.responses import JSONResponse

    respond = handler._non_streaming
    handler._valid_params_class.__mutable_keys__ |= {"return_token_ids"}

    async def with_ids(self: Any, *known: Any, gen_manager: Any = None, **more: Any) -> Any:
        if gen_manager is None:  # completions pass it in its place
            known, (gen_manager, more["suffix"]) = known[:-2], known[-2:]
        inputs, written = known[4], list[int]()

        async def remember(*args: Any, **kwargs: Any) -> Any:
            found = await gen_manager.generate_non_streaming(*args, **kwargs)
            written.extend(map(int, found[2]))
            return found

        manager = SimpleNamespace(generate_non_streaming=remember)
        body = json.loads((await respond(self, *known, gen_manager=manager, **more)).body)
        body["prompt_token_ids"] = inputs["input_ids"].reshape(-1).tolist()
        body["choices"][0]["token_ids"] = written
        return JSONResponse(body)

    handler._non_streaming = with_ids


def _told(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what transformers must be told to load a model: to unpack some of compressed-tensors at once."""
    from transformers import CompressedTensorsConfig

    told = readers(config)["transformers"].told
    return {"quantization_config": CompressedTensorsConfig(dequantize=True)} if told else {}


def _load_whole_models_alone(folder: Path) -> None:
    """Have the server fail where transformers would make up a part of its model, and compute the rest.

    What transformers does not load is unpacked.

    Args:
        folder: Of the model.
    """
    from transformers import PreTrainedModel

    load, config = PreTrainedModel.from_pretrained.__func__, read_config(folder)

    def whole(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if unpacks(config):
            model = _unpacked(folder)
        else:
            model, found = load(cls, *args, output_loading_info=True, **(kwargs | _told(config)))
            refuse_made_up(found, folder.name)
        leave_kernels(model)
        leave_pictures_out()
        if getattr(model, "_hf_peft_config_loaded", False):
            refuse_idle(model.eval(), folder.name)
        return model

    PreTrainedModel.from_pretrained = classmethod(whole)


def _unpacked(folder: Path) -> Any:
    """Load a model as evaluate and check do, with its adapter if there is one, and round what engines round."""
    from transformers import GenerationConfig

    model = load_unpacked(folder, silent())
    round_as_engines(model, folder)
    if (folder / GENERATION).is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    if (folder / ADAPTER_CONFIG).is_file():
        model.load_adapter(folder)
    return model


def _keep_within(handler: Any, most: int) -> None:
    """Refuse what is longer than a model reads, and end an answer there: beyond its positions its code fails."""
    for name in ("_streaming", "_non_streaming"):
        setattr(handler, name, _limited(getattr(handler, name), most))


def _limited(respond: Callable[..., Any], most: int) -> Callable[..., Any]:
    def within(self: Any, *known: Any, **more: Any) -> Any:
        asked, config = known[4]["input_ids"].shape[-1], known[5]
        if asked >= most:
            text = f"The conversation has {asked} tokens, and the model reads {most} with its answer."
            raise HTTPException(400, text)
        config.max_new_tokens = min(config.max_new_tokens, most - asked)
        return respond(self, *known, **more)

    return within


def _with_base(adapter: Path, base: Path, place: Path) -> Path:
    """Return a folder of the adapter's name that transformers loads: a whole model with an adapter in it."""
    folder = place / adapter.name
    folder.mkdir()
    for file in adapter.iterdir():
        if file.is_file() and file.name != "adapter_config.json":
            (folder / file.name).symlink_to(file)
    for file in [base / "config.json", *base.glob("model*.safetensors*")]:
        (folder / file.name).symlink_to(file)
    for file in base.iterdir():
        if kind_of(file.name) == "processor" and not (folder / file.name).exists():
            (folder / file.name).symlink_to(file)
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = str(base)
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


if __name__ == "__main__":
    with ExitStack() as until_the_end:
        main(until_the_end)
