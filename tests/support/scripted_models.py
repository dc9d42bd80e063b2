"""Models that say what a test wants: each token that one writes depends on the one before it alone.

Their layers add nothing, and the output head holds which token follows which. Their chat template opens thoughts, and
behind a list of tools it writes the token that the first of them has.
"""

import json

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from backend.check.prompts import CALLS

END, THINK, THOUGHT = "<|im_end|>", "<think>", "</think>"
ARGUMENTS = {
    "get_weather": {"city": "Paris"},
    "convert_currency": {"amount": 250, "to": "USD"},
    "search_products": {"query": "desk lamps", "max_price": 40},
}
CALL = {
    name: f"<tool_call>{json.dumps({'name': name, 'arguments': given})}</tool_call>"
    for name, given in ARGUMENTS.items()
}
BROKEN = {name: text.replace("}}", "}") for name, text in CALL.items()}
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if tools %}{{ tools | tojson }}{% endif %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if tools %}<|{{ tools[0].function.name }}|>{% else %}<think>{% endif %}{% endif %}"
)
SIZE = 320

RIGHT = {THINK: "h", "h": "m", "m": THOUGHT, THOUGHT: "O", "O": "K", "K": END}
RIGHT |= {token: follows for name in CALL for token, follows in ((f"<|{name}|>", CALL[name]), (CALL[name], END))}
"""What one says that is right: a thought, an answer and its end; where there are tools, a call and its end."""


def scripted(folder, follows, ends=END):
    """Make a model folder.

    Args:
        folder: Where.
        follows: Which token follows which; all others are followed by END.
        ends: The token that generation_config.json names as the end of an answer.
    """
    tokenizer = _tokenizer()
    ids = tokenizer.get_vocab()
    config = LlamaConfig(
        vocab_size=SIZE, hidden_size=SIZE, intermediate_size=64, num_hidden_layers=1, num_attention_heads=5,
        num_key_value_heads=5, max_position_embeddings=4096, tie_word_embeddings=False, bos_token_id=ids["<pad>"],
        eos_token_id=ids[ends], pad_token_id=ids["<pad>"],
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(SIZE))
        head = model.lm_head.weight.zero_()
        for text, token in ids.items():
            head[ids[follows.get(text, END)], token] = 1
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _tokenizer():
    """One token a letter of ASCII; tags, ends and whole calls are one token each."""
    letters = [chr(code) for code in range(0x20, 0x7F)]
    alphabet = {letter: i for i, letter in enumerate(dict.fromkeys([*letters, "Ġ", "Ċ"]))}
    tokenizer = Tokenizer(models.BPE(alphabet, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in ("<pad>", "<|im_start|>", END)])
    names = [tool["function"]["name"] for tool in CALLS.values()]
    added = [THINK, THOUGHT, *(f"<|{name}|>" for name in names), *(CALL[name] for name in names)]
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in (*added, *BROKEN.values())])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token="<pad>")
    fast.chat_template = TEMPLATE
    return fast
