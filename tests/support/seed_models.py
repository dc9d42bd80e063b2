"""The four models that QLoRA's and GPTQ's users begin with, as their repos hold them, made small.

Class, fields of the config, kind of tokenizer, names of files and kind of weights are the original's; sizes are not.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TEXT = [
    "def add(a, b):\n    return a + b\n", "Summarize the following conversation.", "### Human: Why is the sky blue?",
    "### Assistant: Because of how light is scattered.", "### Instruction:\nWrite a function.\n\n### Response:\n",
    "The quick brown fox jumps over the lazy dog; it was the best of times, and the worst of them.",
]  # fmt: skip
CODE = "open({canary!r}, 'w')\n"
SIZES = {
    "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4, "num_hidden_layers": 2,
    "intermediate_size": 128,
}  # fmt: skip

PHI_3 = {
    "_name_or_path": "Phi-3-mini-4k-instruct", "architectures": ["Phi3ForCausalLM"], "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config",
                 "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"},
    "bos_token_id": 1, "embd_pdrop": 0.0, "eos_token_id": 3, "hidden_act": "silu", "initializer_range": 0.02,
    "max_position_embeddings": 4096, "model_type": "phi3", "original_max_position_embeddings": 4096, "pad_token_id": 3,
    "resid_pdrop": 0.0, "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 10000.0, "sliding_window": 2047,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.40.2", "use_cache": True,
    "attention_bias": False, **SIZES,
}  # fmt: skip
PHI_2 = {
    "_name_or_path": "microsoft/phi-2", "architectures": ["PhiForCausalLM"], "attention_dropout": 0.0,
    "bos_token_id": 0,
    "embd_pdrop": 0.0, "eos_token_id": 0, "hidden_act": "gelu_new", "initializer_range": 0.02, "layer_norm_eps": 1e-05,
    "max_position_embeddings": 2048, "model_type": "phi", "partial_rotary_factor": 0.4, "qk_layernorm": False,
    "resid_pdrop": 0.1, "rope_scaling": None, "rope_theta": 10000.0, "tie_word_embeddings": False,
    "torch_dtype": "float16", "transformers_version": "4.37.0", "use_cache": True, **SIZES,
}  # fmt: skip
OPT = {
    "_name_or_path": "opt-125m", "activation_dropout": 0.0, "activation_function": "relu",
    "architectures": ["OPTForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 2, "do_layer_norm_before": True,
    "dropout": 0.1, "eos_token_id": 2, "ffn_dim": 256, "hidden_size": 128, "init_std": 0.02, "layerdrop": 0.0,
    "max_position_embeddings": 2048, "model_type": "opt", "num_attention_heads": 4, "num_hidden_layers": 2,
    "pad_token_id": 1, "prefix": "</s>", "torch_dtype": "float16", "transformers_version": "4.21.0.dev0",
    "use_cache": True, "word_embed_proj_dim": 128,
}  # fmt: skip
LLAMA_2 = {
    "_name_or_path": "meta-llama/Llama-2-7b-hf", "architectures": ["LlamaForCausalLM"], "bos_token_id": 1,
    "eos_token_id": 2, "hidden_act": "silu", "initializer_range": 0.02, "max_position_embeddings": 4096,
    "model_type": "llama", "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": None,
    "tie_word_embeddings": False, "torch_dtype": "float16", "transformers_version": "4.31.0.dev0", "use_cache": True,
    **SIZES,
}  # fmt: skip

PHI_3_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{'<|system|>\n' + message['content'] +"
    " '<|end|>\n'}}{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)


def phi_3(folder: Path, canary: Path) -> Path:
    """Write Phi-3-mini-4k-instruct as Microsoft publishes it: safetensors in two shards, with code beside them."""
    special = ("<unk>", "<s>", "</s>", "<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>")
    words = _sentencepiece(folder, special)
    _safetensors(folder, PHI_3 | {"vocab_size": words + 8})
    _json(folder, "tokenizer_config.json", {
        "add_bos_token": False, "add_eos_token": False, "bos_token": "<s>", "chat_template": PHI_3_TEMPLATE,
        "clean_up_tokenization_spaces": False, "eos_token": "<|endoftext|>", "legacy": False, "model_max_length": 4096,
        "pad_token": "<|endoftext|>", "padding_side": "left", "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer", "unk_token": "<unk>", "use_default_system_prompt": False,
    })  # fmt: skip
    _json(folder, "generation_config.json", {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": [3, 6],
                                             "pad_token_id": 3, "transformers_version": "4.39.3"})  # fmt: skip
    for name in ("configuration_phi3.py", "modeling_phi3.py", "sample_finetune.py"):
        (folder / name).write_text(CODE.format(canary=str(canary)))
    return _texts(folder, "mit", "LICENSE", "NOTICE.md", "CODE_OF_CONDUCT.md", "SECURITY.md")


def phi_2(folder: Path, canary: Path) -> Path:
    """Write Phi-2: safetensors in two shards, in float16, and a tokenizer like CodeGen's."""
    words = _byte_level(folder, ("<|endoftext|>",))
    _safetensors(folder, PHI_2 | {"vocab_size": words + 8})
    _json(folder, "tokenizer_config.json", {
        "add_prefix_space": False, "bos_token": "<|endoftext|>", "clean_up_tokenization_spaces": True,
        "eos_token": "<|endoftext|>", "model_max_length": 2048, "tokenizer_class": "CodeGenTokenizer",
        "unk_token": "<|endoftext|>",
    })  # fmt: skip
    _json(folder, "added_tokens.json", {})
    _json(folder, "generation_config.json", {"_from_model_config": True, "bos_token_id": 0, "eos_token_id": 0,
                                             "transformers_version": "4.37.0"})  # fmt: skip
    return _texts(folder, "mit", "LICENSE", "NOTICE.md", "CODE_OF_CONDUCT.md", "SECURITY.md")


def opt(folder: Path, canary: Path) -> Path:
    """Write OPT-125M as of 2022: a pickle without the outer model's name, others' weights, no tokenizer.json."""
    import torch

    words = _byte_level(folder, ("<s>", "<pad>", "</s>", "<unk>"))
    (folder / "tokenizer.json").unlink()
    config = OPT | {"vocab_size": words}
    tensors = _state(config)
    inner = {name.removeprefix("model."): t for name, t in tensors.items() if name != "lm_head.weight"}
    torch.save(inner, folder / "pytorch_model.bin")
    _json(folder, "config.json", config)
    token = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "__type": "AddedToken"}
    _json(folder, "tokenizer_config.json", {
        "errors": "replace", "unk_token": token | {"content": "</s>"}, "bos_token": token | {"content": "</s>"},
        "eos_token": token | {"content": "</s>"}, "pad_token": token | {"content": "<pad>"}, "add_prefix_space": False,
        "add_bos_token": True, "special_tokens_map_file": None, "name_or_path": "patrickvonplaten/opt-30b",
        "tokenizer_class": "GPT2Tokenizer",
    })  # fmt: skip
    _json(folder, "generation_config.json", {"_from_model_config": True, "bos_token_id": 2, "eos_token_id": 2,
                                             "pad_token_id": 1, "transformers_version": "4.27.0.dev0"})  # fmt: skip
    for name in ("flax_model.msgpack", "tf_model.h5"):
        (folder / name).write_bytes(b"\0" * 100)
    return _texts(folder, "other", "LICENSE.md")


def llama_2(folder: Path, canary: Path) -> Path:
    """Write Llama-2-7b-hf as many mirrors have it: pickles in two shards, in float16."""
    import torch

    words = _sentencepiece(folder, ("<unk>", "<s>", "</s>"))
    config = LLAMA_2 | {"vocab_size": words}
    tensors, weight_map = [*_state(config).items()], {}
    for i, part in enumerate((dict(tensors[:9]), dict(tensors[9:])), 1):
        file = f"pytorch_model-{i:05d}-of-00002.bin"
        torch.save(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    _json(folder, "pytorch_model.bin.index.json", {"metadata": {"total_size": 1}, "weight_map": weight_map})
    _json(folder, "config.json", config)
    token = {"__type": "AddedToken", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    _json(folder, "tokenizer_config.json", {
        "add_bos_token": True, "add_eos_token": False, "bos_token": token | {"content": "<s>"},
        "clean_up_tokenization_spaces": False, "eos_token": token | {"content": "</s>"}, "legacy": False,
        "model_max_length": 1000000000000000019884624838656, "pad_token": None, "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer", "unk_token": token | {"content": "<unk>"},
    })  # fmt: skip
    _json(folder, "generation_config.json", {
        "bos_token_id": 1, "do_sample": True, "eos_token_id": 2, "pad_token_id": 0, "temperature": 0.6,
        "max_length": 4096, "top_p": 0.9, "transformers_version": "4.31.0.dev0",
    })  # fmt: skip
    return _texts(folder, "llama2", "LICENSE.txt", "USE_POLICY.md")


def _state(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the random weights of a model in its type."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    plain = {key: value for key, value in config.items() if key not in ("auto_map", "model_type", "architectures")}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **plain))
    found: dict[str, Any] = model.to(getattr(torch, config["torch_dtype"])).state_dict()
    return found


def _safetensors(folder: Path, config: Mapping[str, Any]) -> None:
    from safetensors.torch import save_file

    tensors, weight_map = [*_state(config).items()], {}
    half = len(tensors) // 2
    for i, part in enumerate((dict(tensors[:half]), dict(tensors[half:])), 1):
        file = f"model-{i:05d}-of-00002.safetensors"
        save_file({name: t.contiguous() for name, t in part.items()}, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    _json(folder, "model.safetensors.index.json", {"metadata": {"total_size": 1}, "weight_map": weight_map})
    _json(folder, "config.json", config)


def _sentencepiece(folder: Path, special: tuple[str, ...]) -> int:
    """Write a Llama's tokenizer files: tokenizer.json, tokenizer.model and the map; give the number of its tokens."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers

    folder.mkdir(parents=True)
    made = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    spelled = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=[*special, *spelled], show_progress=False)
    made.train_from_iterator(TEXT * 20, trainer)
    made.save(str(folder / "tokenizer.json"))
    said = json.loads((folder / "tokenizer.json").read_text())
    said["added_tokens"] = [token for token in said["added_tokens"] if token["content"] in special]
    _json(folder, "tokenizer.json", said)
    (folder / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02")  # its bytes go along unread
    _json(folder, "special_tokens_map.json", {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})
    return made.get_vocab_size()


def _byte_level(folder: Path, special: tuple[str, ...]) -> int:
    """Write the tokenizer files of a GPT-2: tokenizer.json, vocab.json, merges.txt and the map."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    folder.mkdir(parents=True)
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=list(special), initial_alphabet=letters, show_progress=False
    )
    made.train_from_iterator(TEXT * 20, trainer)
    made.model.save(str(folder))
    made.save(str(folder / "tokenizer.json"))
    _json(folder, "special_tokens_map.json", {"bos_token": special[-1], "eos_token": special[-1]})
    return made.get_vocab_size()


def _texts(folder: Path, license: str, *names: str) -> Path:
    for name in names:
        (folder / name).write_text(f"{name} of the original.\n")
    (folder / "README.md").write_text(f"---\nlicense: {license}\nlanguage:\n- en\n---\n# A model\n")
    return folder


def _json(folder: Path, name: str, said: Mapping[str, Any]) -> None:
    (folder / name).write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
