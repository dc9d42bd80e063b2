"""Names that are recognized: of files by their suffix, of columns as public data sets call them, in any case."""

from typing import Literal

Format = Literal["csv", "tsv", "json", "jsonl", "parquet", "txt"]

SUFFIXES: dict[str, Format] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".txt": "txt",
    ".text": "txt",
    ".md": "txt",
}

MESSAGES = ("messages", "conversations", "conversation", "chat", "dialogue", "dialog")
USER = ("prompt", "question", "instruction", "query", "user", "human", "problem", "request")
ASSISTANT = ("completion", "answer", "response", "output", "assistant", "reply", "solution")
SYSTEM = ("system", "system_prompt")
CONTEXT = ("context", "passage", "document", "documents", "article", "paragraph", "background", "evidence")
TOOLS = ("tools", "functions")
TEXT = "text"
INPUT = "input"

KNOWN = frozenset({*MESSAGES, *USER, *ASSISTANT, *SYSTEM, *CONTEXT, TEXT, INPUT, "id", "label", "category", "chosen"})
