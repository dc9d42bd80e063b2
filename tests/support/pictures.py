"""Pictures of one color, and tiny models that read them: with a processor beside the weights, as repos have it."""

import base64
import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

from tests.support.family_models import TOWER, make
from tests.support.tokenizers_made import CHATML_TOKENS, make_tokenizer

TEMPLATE = (
    "{%% for m in messages %%}<|im_start|>{{ m.role }}\n{%% if m.content is string %%}{{ m.content }}{%% else %%}"
    "{%% for p in m.content %%}{%% if p.type == 'image' %%}%s{%% else %%}{{ p.text }}{%% endif %%}{%% endfor %%}"
    "{%% endif %%}<|im_end|>\n{%% endfor %%}{%% if add_generation_prompt %%}<|im_start|>assistant\n{%% endif %%}"
)
GEMMA = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
QWEN = {"vision_start_token": "<|vision_start|>", "vision_end_token": "<|vision_end|>", "image_token": "<|image_pad|>"}
VIDEO = "<|video_pad|>"


def encoded(kind: str = "PNG", size: tuple[int, int] = (60, 40), color: str = "red", **options: Any) -> bytes:
    """Return a picture as a file holds it; options are Pillow's, of the kind."""
    written = io.BytesIO()
    Image.new("RGB", size, color).save(written, kind, **options)
    return written.getvalue()


def data_url(data: bytes, kind: str = "png") -> str:
    """Return the address that is the picture itself."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def shown(url: str, text: str = "What is it?") -> list[dict[str, Any]]:
    """Return a conversation of one question about a picture."""
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
    return [{"role": "user", "content": parts}]


def make_gemma(folder: Path) -> Path:
    """Write a tiny Gemma 3 with its processor, which is one file."""
    from transformers import Gemma3Processor
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    make("Gemma 3", folder)
    template = TEMPLATE % GEMMA["boi_token"]
    special = (*CHATML_TOKENS, *GEMMA.values())
    tokenizer = make_tokenizer(special, template, pad_token=CHATML_TOKENS[0], extra_special_tokens=GEMMA)
    side, pieces = TOWER["image_size"], 4
    images = Gemma3ImageProcessorPil(size={"height": side, "width": side}, image_seq_length=pieces)
    made = Gemma3Processor(images, tokenizer, chat_template=template, image_seq_length=pieces)
    made.save_pretrained(folder)
    return _with_tokens(folder, {"image_token_index": tokenizer.convert_tokens_to_ids(GEMMA["image_token"])})


def make_qwen(folder: Path, name: str = "Qwen3-VL", **sizes: int) -> Path:
    """Write a tiny Qwen3-VL as its repo is: its processor also takes films, for which it wants torchvision.

    Args:
        folder: Is made.
        name: Of another family with this processor.
        sizes: Of the text model.
    """
    make(name, folder, **sizes)
    patch = json.loads((folder / "config.json").read_text())["vision_config"]["patch_size"]
    template = TEMPLATE % "".join((QWEN["vision_start_token"], QWEN["image_token"], QWEN["vision_end_token"]))
    tokenizer = make_tokenizer((*CHATML_TOKENS, *QWEN.values(), VIDEO), template, extra_special_tokens=QWEN)
    tokenizer.save_pretrained(folder)
    common = {"patch_size": patch, "temporal_patch_size": 2, "merge_size": 2, "processor_class": "Qwen3VLProcessor"}
    common |= {"size": {"longest_edge": 16 * (2 * patch) ** 2, "shortest_edge": (2 * patch) ** 2}}
    common |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    for name, own in {
        "preprocessor_config.json": {"image_processor_type": "Qwen2VLImageProcessorFast"},
        "video_preprocessor_config.json": {"video_processor_type": "Qwen3VLVideoProcessor"},
    }.items():
        (folder / name).write_text(json.dumps(common | own))
    ids = {f"{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in QWEN.items()}
    return _with_tokens(folder, ids | {"video_token_id": tokenizer.convert_tokens_to_ids(VIDEO)})


def _with_tokens(folder: Path, ids: dict[str, int]) -> Path:
    """Have a model know the tokens that stand for pictures in its tokenizer."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | ids))
    return folder
