"""What every test has: a Hub on loopback, no token, no way out, and tiny real models.

`hub` is a LoopbackHub (tests/support/loopback_hub.py says how to use it) at HF_ENDPOINT, emptied for each test.
`tiny_model`, `tiny_tied_model` and `tiny_bare_model` are read-only folders; copy one to change it.
"""

import atexit
import json
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.support.loopback_hub import LoopbackHub

# huggingface_hub reads these when it is imported, so they are set before anything can import it; the apps and commands
# that tests start as processes inherit them.
_HUB = LoopbackHub().start()
_HF_HOME, _GRADIO = (Path(tempfile.mkdtemp(prefix="weightsmith-tests-")) for _ in range(2))
for folder in (_HF_HOME, _GRADIO):
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACEHUB_API_TOKEN", "HF_TOKEN_PATH", "HF_HUB_CACHE")
for name in TOKENS:
    os.environ.pop(name, None)
os.environ |= {
    "HF_ENDPOINT": _HUB.url,
    "HF_HOME": str(_HF_HOME),
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_TEMP_DIR": str(_GRADIO),
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    "TORCH_COMPILE_DISABLE": "1",  # vLLM would compile each model for 50 s before it serves it
}
# Each of the hundreds of processes that tests start would compile what it imports again, and pytest the tests.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
pytest_plugins = ["tests.support.browser"]
expect.set_options(timeout=30_000)  # milliseconds: two processes test side by side


@pytest.fixture
def hub() -> LoopbackHub:
    """The Hub that HF_ENDPOINT names, emptied."""
    _HUB.reset()
    return _HUB


@pytest.fixture(autouse=True)
def _nobody_is_signed_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in TOKENS:
        monkeypatch.delenv(name, raising=False)
    yield
    shutil.rmtree(_HF_HOME, ignore_errors=True)


@pytest.fixture(autouse=True)
def _nothing_leaves_this_machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.get_closest_marker("network"):
        return
    connect, connect_ex, getaddrinfo = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo
    monkeypatch.setattr(socket.socket, "connect", lambda s, to: connect(s, _loopback(s.family, to)))
    monkeypatch.setattr(socket.socket, "connect_ex", lambda s, to: connect_ex(s, _loopback(s.family, to)))
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *a, **k: getaddrinfo(_local(host), *a, **k))


def _loopback(family: int, address: object) -> object:
    if family in (socket.AF_INET, socket.AF_INET6):
        _local(address[0])  # type: ignore[index]
    return address


def _local(host: object) -> object:
    name = host.decode() if isinstance(host, bytes) else host
    if name not in (None, "", "localhost", "::1", "0.0.0.0", "::") and not str(name).startswith("127."):
        pytest.fail(f"This test tried to reach {name!r}: only loopback is open to tests.")
    return host


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the module that takes the longest: else one process would be left with it at the end."""
    items.sort(key=lambda item: item.path.name != "test_rows_browser.py")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the tables whose cells tests have recorded, in whatever process: ("cell", [table, row, column, text])."""
    tables: dict[str, dict[str, dict[str, str]]] = {}
    for report in (report for reports in terminalreporter.stats.values() for report in reports):
        for name, value in getattr(report, "user_properties", ()):
            if name == "cell":
                table, row, column, text = value
                tables.setdefault(table, {}).setdefault(row, {})[column] = text
    for table, rows in tables.items():
        columns = list(dict.fromkeys(column for cells in rows.values() for column in cells))
        terminalreporter.section(f"{table}: {sum(map(len, rows.values()))} cells")
        for row, cells in {"": dict(zip(columns, columns, strict=True)), **rows}.items():
            line = "".join(f"{cells.get(column, '-'):16}" for column in columns)
            terminalreporter.write_line(f"{row:28}{line}")


CHAT_TEMPLATE = """{% for message in messages %}<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 2 layers with a tokenizer that encodes any text, and a chat template."""
    return _tiny(tmp_path_factory.mktemp("tiny") / "tiny-llama")


@pytest.fixture(scope="session")
def tiny_tied_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with one tensor for input and output embeddings."""
    return _tiny(tmp_path_factory.mktemp("tied") / "tiny-llama-tied", tied=True)


@pytest.fixture(scope="session")
def tiny_bare_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without a chat template."""
    return _tiny(tmp_path_factory.mktemp("bare") / "tiny-llama-bare", template=None)


def _tiny(folder: Path, tied: bool = False, template: str | None = CHAT_TEMPLATE) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_bytes_tokenizer(), bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<pad>"
    )
    tokenizer.chat_template = template
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=tied,
        initializer_range=0.1,  # wider than usual: its guesses differ enough for quantizing to change them
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _bytes_tokenizer() -> object:
    """One token a byte of UTF-8; the 13 bytes that UTF-8 never uses make room for three special tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    unused = {chr(byte) for byte in (0xC0, 0xC1, *range(0xF5, 0x100))}
    alphabet = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - unused)
    tokenizer = Tokenizer(models.BPE({character: i for i, character in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in ("<pad>", "<|im_start|>", "<|im_end|>")])
    return tokenizer


@pytest.fixture
def make_artifact(tiny_model: Path, tmp_path: Path) -> Callable[..., Path]:
    """Seal an artifact made from the tiny model; see make() for what can be different."""
    return artifact_maker(tiny_model, tmp_path)


def artifact_maker(tiny_model: Path, tmp_path: Path) -> Callable[..., Path]:
    """Return what seals artifacts in a folder, for fixtures that outlive a test."""

    def make(
        name: str = "1-quantize",
        card: str | None = CARD,
        extra: Mapping[str, bytes | str] | None = None,
        quantize: Callable[[Path, Path], None] = lambda base, output: None,
        **fields: object,
    ) -> Path:
        """Make one.

        Args:
            name: Of its folder, under tmp_path / "artifacts".
            card: The base model's README.md; None where it has none.
            extra: More files of the artifact, or others in place of the tiny model's.
            quantize: Writes other weights; they take the place of the tiny model's.
            fields: Of Artifact.
        """
        from backend.artifacts.artifact import Artifact
        from backend.artifacts.sealing import seal
        from backend.recipes import parse_recipe, parse_yaml
        from backend.stages.companions import accompany, base_in

        base, draft = tmp_path / f"{name}-base", tmp_path / "artifacts" / f"{name}.partial"
        shutil.copytree(tiny_model, base)
        if card is not None:
            (base / "README.md").write_text(card)
            (base / "LICENSE").write_text("Do good things with it.\n")
        shutil.copytree(tiny_model, draft)
        accompany(parse_recipe(parse_yaml(RECIPE)), base_in(base), draft)
        quantize(base, draft)
        for file, content in {"recipe.yaml": RECIPE, **(extra or {})}.items():
            (draft / file).write_bytes(content.encode() if isinstance(content, str) else content)
        known = {"base_model": "acme/tiny", "revision": "c" * 40, "options": {"stage": "quantize", "method": "nf4"}}
        known |= {
            "versions": {"weightsmith": "0.1.0", "transformers": "5.23.0"},
            "created": "2026-11-22T00:00:00+00:00",
        }
        known["check"] = PASSED
        artifact = Artifact(**{"kind": "quantized", "stage": "quantize", **known, **fields})  # type: ignore[arg-type]
        seal(draft, draft.with_suffix(""), artifact)
        return draft.with_suffix("")

    return make


@pytest.fixture
def make_adapter(tiny_model: Path, tmp_path: Path) -> Callable[..., Path]:
    """Seal an adapter as the finetune stage leaves it, made without a training; see make()."""

    def make(
        name: str = "1-finetune",
        dataset: str = "rows.jsonl",
        commit: str | None = None,
        extra: Mapping[str, str] | None = None,
        **fields: object,
    ) -> Path:
        """Make one that changes two layers of the tiny model.

        Args:
            name: Of its folder, under tmp_path / "artifacts".
            dataset: That it was trained on.
            commit: Of the data set.
            extra: More files, or others in place of what they hold.
            fields: Of Artifact; those of its training in `training`, those of its options in `options`.
        """
        import numpy as np
        from safetensors.numpy import save_file

        from backend.artifacts.artifact import Artifact
        from backend.artifacts.sealing import seal
        from backend.publish.card.base_card import base_card
        from backend.recipes import parse_yaml

        folder = tmp_path / "artifacts" / f"{name}.partial"
        folder.mkdir(parents=True)
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
            shutil.copyfile(tiny_model / file, folder / file)
        random, layer = np.random.default_rng(0), "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
        shapes = {layer.format(i, part): shape for i in (0, 1) for part, shape in (("A", (4, 64)), ("B", (64, 4)))}
        tensors = {key: random.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}
        save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
        config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "acme/tiny", "r": 4}
        config |= {"lora_alpha": 8, "target_modules": ["q_proj"]}
        steps = [{"step": step, "loss": 3 - step / 50, "eval_loss": 3.5 - step / 50} for step in range(0, 61, 4)]
        stage = {"stage": "finetune", "dataset": dataset, "quantization": "nf4", "bnb_4bit_use_double_quant": True}
        texts = {
            "adapter_config.json": json.dumps(config),
            "LICENSE": "Do good things with it.\n",
            "base_card.json": base_card(parse_yaml(CARD.split("---")[1]), 2 * 10**6).decode(),
            "survey.json": json.dumps({"samples": [[{"text": CANARY, "learned": True}]]}),
            "samples.jsonl": json.dumps({"step": 0, "prompt": CANARY, "answer": CANARY}),
            "metrics.jsonl": "".join(json.dumps(step) + "\n" for step in steps),
            "recipe.yaml": json.dumps({"base_model": "acme/tiny", "stages": [stage]}),
        }
        for file, text in {**texts, **(extra or {})}.items():
            (folder / file).write_text(text, encoding="utf-8")
        training = {"dataset": dataset, "dataset_revision": commit, "rows": 1200, "validation_rows": 40, "steps": 60}
        training |= {"tokens": 50_000, "learned_tokens": 12_500, "planned_steps": 60, "train_loss": 2.1234}
        training |= {"eval_loss_before": 3.5, "eval_loss": 2.25, **fields.pop("training", {})}  # type: ignore[dict-item]
        options = stage | {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "bfloat16"}
        options |= fields.pop("options", {})  # type: ignore[arg-type]
        known = {"base_model": "acme/tiny", "revision": "c" * 40, "created": "2026-11-22T00:00:00+00:00"}
        known = {**known, "check": PASSED, **fields}
        seal(folder, folder.with_suffix(""), Artifact(kind="adapter", stage="finetune", training=training,
                                                      options=options, **known))  # type: ignore[arg-type]  # fmt: skip
        return folder.with_suffix("")

    return make


CANARY = "the canary of a user's row"
PASSED = {
    "passed": True,
    "engine": "transformers",
    "prompts": 8,
    "tokens": 150,
    "agreement": 0.99,
    "likeliest": 0.96,
    "convention": "as theirs counts the likeliest token",
}
CARD = """---
license: other
license_name: acme-1
license_link: LICENSE
language: [en, no]
tags: [chat, onnx, "license:mit", 4-bit]
datasets: [acme/rows]
widget: [{text: hello}]
---
# Tiny
"""
RECIPE = "base_model: acme/tiny\nstages:\n- stage: quantize\n  method: nf4\n"
