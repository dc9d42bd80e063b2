"""Names of columns that are recognized, as public data sets use them; compared without regard to case."""

MESSAGES = ("messages", "conversations", "conversation", "chat", "dialogue", "dialog")
USER = ("prompt", "question", "instruction", "query", "user", "human", "problem", "request")
ASSISTANT = ("completion", "answer", "response", "output", "assistant", "reply", "solution")
SYSTEM = ("system", "system_prompt")
CONTEXT = ("context", "passage", "document", "documents", "article", "paragraph", "background", "evidence")
TEXT = "text"
INPUT = "input"

KNOWN = frozenset({*MESSAGES, *USER, *ASSISTANT, *SYSTEM, *CONTEXT, TEXT, INPUT, "id", "label", "category", "chosen"})
