"""Chat templates for base models that bring none; each ends an answer with the model's own end-of-text token.

No template adds a token to the vocabulary: a token that was never trained would have to be learned first.
"""

from typing import Any

from backend.errors import SpecError
from backend.models.chat_template import check_template
from backend.models.tokens import around

_SYSTEM = "{% for message in messages %}{% if message.role == 'system' %}"
_END = "{% endfor %}{% if add_generation_prompt %}"

CHAT_TEMPLATES = {
    "plain": (
        _SYSTEM + "{{ message.content }}\n\n{% elif message.role == 'user' %}User: {{ message.content }}\n"
        "{% else %}Assistant: {{ message.content }}{{ eos_token }}\n{% endif %}" + _END + "Assistant: {% endif %}"
    ),
    "alpaca": (
        _SYSTEM
        + "{{ message.content }}\n\n{% elif message.role == 'user' %}### Instruction:\n{{ message.content }}\n\n"
        "{% else %}### Response:\n{{ message.content }}{{ eos_token }}\n\n{% endif %}"
        + _END
        + "### Response:\n{% endif %}"
    ),
    "zephyr": (
        "{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}{{ eos_token }}\n"
        + _END
        + "<|assistant|>\n{% endif %}"
    ),
    "chatml": (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>"
        "{% if message.role == 'assistant' %}{{ eos_token if eos_token != '<|im_end|>' }}{% endif %}\n"
        + _END
        + "<|im_start|>assistant\n{% endif %}"
    ),
}
"""By name; chatml's marks are letters to a model that does not know them, and cost tokens then."""


def give_template(tokenizer: Any, name: str, model: str, tools: bool = False) -> None:
    """See that a tokenizer has a chat template.

    Args:
        tokenizer: Of transformers; changed.
        name: A key of CHAT_TEMPLATES, or `auto`: the model's own.
        model: What an error calls the model.
        tools: Whether the conversations have tools.

    Raises:
        SpecError: There is none, none that takes a conversation, or no token to end an answer with.
    """
    if name == "auto":
        if not tokenizer.chat_template:
            names = ", ".join(CHAT_TEMPLATES)
            text = f"'{model}' brings none, and the data are conversations: choose {names}"
            raise SpecError(f"chat_template: {text}.", {"chat_template": text})
        try:
            check_template(tokenizer, tools)
        except SpecError as e:
            text = f"{e} Or choose a chat_template: {', '.join(CHAT_TEMPLATES)}."
            raise SpecError(text, {"chat_template": text}) from e
        return
    if tokenizer.eos_token is None:
        text = f"'{model}' has no token that ends an answer: choose a model with a chat template of its own"
        raise SpecError(f"chat_template: {text}.", {"chat_template": text})
    begin = "{{ bos_token }}" if around(tokenizer).before[:1] == [tokenizer.bos_token_id] else ""
    tokenizer.chat_template = begin + CHAT_TEMPLATES[name]
