"""Small byte-level tokenizers with the control tokens of a model family, and the families' own chat templates."""

from pathlib import Path
from typing import Any

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHATML_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

FAMILIES = {
    "deepseek_r1_distill": ("<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"),
    "qwen3": ("<|im_end|>", "<|im_start|>", "<|endoftext|>"),
    "qwen3_5_think": ("<|im_end|>", "<|im_start|>", "<|endoftext|>"),
    "phi3": ("<|end|>", "<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>"),
    "gptoss": ("<|return|>", "<|call|>", "<|end|>", "<|start|>", "<|message|>", "<|channel|>"),
    "llama3_1": ("<|eot_id|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>"),
    "gemma3": ("<end_of_turn>", "<start_of_turn>", "<bos>"),
    "cohere2": ("<|END_OF_TURN_TOKEN|>", "<|START_OF_TURN_TOKEN|>", "<|END_RESPONSE|>", "<|START_RESPONSE|>"),
    "deepseekv3": ("<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"),
}
"""Name of a template in TRL → the tokens that steer the model, the one that ends an answer first."""

INST = (  # as Llama 2 writes: the system prompt in the first turn, contents trimmed, no beginning of an answer
    "{{ bos_token }}{% set system = messages[0].content if messages[0].role == 'system' else '' %}"
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ system + '\\n\\n' if loop.index0 < 2 and system }}"
    "{{ m.content.strip() }} [/INST]{% elif m.role == 'assistant' %} {{ m.content.strip() }} {{ eos_token }}{% endif %}"
    "{% endfor %}"
)


def template_of(family: str) -> str:
    """Return a family's own chat template, as TRL ships it."""
    import trl

    return (Path(trl.__file__).parent / "chat_templates" / f"{family}.jinja").read_text(encoding="utf-8")


def make_tokenizer(special: tuple[str, ...] = CHATML_TOKENS, template: Any = CHATML, **tokens: str) -> Any:
    """Return a byte-level tokenizer.

    Args:
        special: Its special tokens; the first ends an answer where `tokens` names none.
        template: Its chat template, or several by name.
        tokens: eos_token, bos_token, pad_token.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=list(special), initial_alphabet=letters, show_progress=False
    )
    made.train_from_iterator(["the question and the answer, yes or no"] * 9, trainer)
    found = PreTrainedTokenizerFast(tokenizer_object=made, **{"eos_token": special[0], **tokens})
    found.chat_template = template
    return found


def family_tokenizer(family: str) -> Any:
    """Return a tokenizer with a family's tokens and template."""
    special = FAMILIES[family]
    begin = next((token for token in special if "beg" in token or token == "<bos>"), special[0])
    return make_tokenizer(special, template_of(family), bos_token=begin)
