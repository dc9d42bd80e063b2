"""Columns: which of them the user's words, the answer, a whole conversation or plain text are.

Recognized are the layouts of TRL (`messages`, `prompt` and `completion`, `text`), of ShareGPT (`conversations`), of
Alpaca (`instruction`, `input`, `output`), and questions with answers; everything else is asked.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from pydantic import Field

from backend.data.files.content import TURN
from backend.data.files.row import Row
from backend.data.findings import Ledger
from backend.data.options import DatasetOptions
from backend.data.synonyms import ASSISTANT, CONTEXT, INPUT, MESSAGES, SYSTEM, TEXT, TOOLS, USER
from backend.data.template import check_columns, placeholders
from backend.data.turns import turns_of
from backend.options import Frozen
from backend.strict_json import quoted

Layout = Literal[
    "messages", "conversations", "prompt_completion", "alpaca", "question_answer", "text", "template", "columns"
]


CONVERSATION_AS_JSON = "conversation as JSON"


class Column(Frozen):
    """A column as its first rows show it."""

    name: str
    kind: str = Field(description="text, number, list, conversation, …")
    example: str = Field("", description="The beginning of its first value.")


class Mapping(Frozen):
    """What becomes of the columns."""

    layout: Layout
    messages: str | None = None
    system: str | None = None
    user: str | None = None
    context: str | None = None
    assistant: str | None = None
    text: str | None = None
    template: str | None = None
    tools: str | None = None
    whole: Literal["user", "assistant"] | None = Field(None, description="The side that repeats the other in each row.")

    @property
    def used(self) -> tuple[str, ...]:
        """The columns that are read."""
        named = (self.messages, self.tools, self.system, self.user, self.context, self.assistant, self.text)
        return (*(name for name in named if name), *(placeholders(self.template) if self.template else ()))

    @property
    def words(self) -> str:
        """Say it: `question → user, answer → assistant`."""
        parts = [f"{name} → {role}" for role in ROLES_SHOWN if (name := getattr(self, role))]
        return ", ".join(parts)


ROLES_SHOWN = ("messages", "tools", "system", "template", "user", "context", "assistant", "text")


def describe(rows: Sequence[Row], names: Iterable[str]) -> tuple[Column, ...]:
    """Describe the columns by their first rows.

    Args:
        rows: The first rows.
        names: Columns that the file lists; others are added as they come.
    """
    examples: dict[str, Any] = dict.fromkeys(names)
    for row in rows:
        for name, value in (row.values or {}).items():
            if examples.get(name) in _EMPTY:
                examples[name] = value
    return tuple(Column(name=n, kind=kind_of(v), example=shown(v)) for n, v in examples.items())


_EMPTY: tuple[Any, ...] = (None, "", [], {})
"""Values that do not show what the others of their column are."""


def kind_of(value: Any) -> str:
    """Say what a value is."""
    if value is None:
        return "empty"
    if turns_of(value):
        return "conversation"
    if isinstance(value, str) and type(value) is str:
        return CONVERSATION_AS_JSON if _WRITTEN.match(value) else "text"
    for kind, name in ((bool, "true or false"), (list, "list"), (dict, "object"), (bytes, "binary")):
        if isinstance(value, kind):
            return name
    return "number or date"


_WRITTEN = re.compile(rf"""\s*\[\s*\{{.{{0,200}}['"](?:{"|".join(sorted(TURN))})['"]""", re.DOTALL)


def shown(value: Any, length: int = 120) -> str:
    """Return the beginning of a value, for a table."""
    text = "" if value is None else str(value)
    text = text if len(text) <= length else text[:length] + "…"
    return text.encode("utf-8", "replace").decode()  # JSON can hold half a character


def find_mapping(columns: Sequence[Column], options: DatasetOptions, ledger: Ledger, hint: str = "") -> Mapping | None:
    """Return what becomes of the columns: as the options say, else recognized; None after a question to the ledger.

    Args:
        columns: What there is.
        options: What was named.
        ledger: Asked.
        hint: Ends the question.
    """
    given = _given(options)
    there = [column.name for column in columns]
    faults = [
        (field, f"{quoted(name)} is no column: the columns are {_listed(there)}.")
        for field, name in given.items()
        if field != "template" and name not in there
    ]
    if options.template:
        try:
            check_columns(options.template, there)
        except ValueError as e:
            faults.append(("template", f"In the template {e}."))
    for field, text in faults:
        ledger.say("columns", text, field, asks=True)
    if faults:
        return None
    mapping = _by_options(options) or _recognized(columns, options, ledger, hint)
    overlay = {"system": options.system_column, "context": options.context_column, "tools": _tools(columns)}
    return mapping.model_copy(update={k: v for k, v in overlay.items() if v}) if mapping else None


def repeating(mapping: Mapping, rows: Iterable[Row]) -> Literal["user", "assistant"] | None:
    """Return which side of a pair holds the other too, in each of some rows; one row alone may do so by chance."""
    values = [row.values for row in rows if row.values]
    pairs = [(row.get(mapping.user or ""), row.get(mapping.assistant or "")) for row in values]
    texts = [(a.strip(), b.strip()) for a, b in pairs if type(a) is str and type(b) is str and a.strip() and b.strip()]
    if len(texts) < 2 or any(user == assistant for user, assistant in texts):
        return None
    if all(assistant.startswith(user) for user, assistant in texts):
        return "assistant"
    return "user" if all(user.endswith(assistant) for user, assistant in texts) else None


def _tools(columns: Iterable[Column]) -> str | None:
    """Return the column with the functions that may be called: schemas, or their JSON."""
    listed = (c for c in columns if c.name.lower() in TOOLS and c.kind in ("list", "object", "text"))
    return next((c.name for c in listed if c.example.lstrip()[:1] in ("[", "{")), None)


def _given(options: DatasetOptions) -> dict[str, str]:
    fields = ("messages", "user", "assistant", "context", "system", "text")
    given = {f"{name}_column": getattr(options, f"{name}_column") for name in fields} | {"template": options.template}
    return {field: value for field, value in given.items() if value}


def _by_options(options: DatasetOptions) -> Mapping | None:
    if options.messages_column:
        return Mapping(layout="messages", messages=options.messages_column)
    if options.text_column:
        return Mapping(layout="text", text=options.text_column)
    if options.template:
        return Mapping(layout="template", template=options.template, assistant=options.assistant_column)
    if options.user_column and options.assistant_column:
        return Mapping(layout="columns", user=options.user_column, assistant=options.assistant_column)
    return None


def _recognized(columns: Sequence[Column], options: DatasetOptions, ledger: Ledger, hint: str) -> Mapping | None:
    by_name = {column.name.lower(): column for column in columns}
    mapping = (
        _conversation(columns, by_name, options, ledger)
        or _pair(by_name, options, ledger)
        or _text(columns, by_name, options)
    )
    if mapping is None and not any(finding.kind == "columns" for finding in ledger.said.values()):
        ledger.say("columns", _question(columns) + hint, "user_column", asks=True)
    return mapping


def _conversation(
    columns: Sequence[Column], by_name: dict[str, Column], options: DatasetOptions, ledger: Ledger
) -> Mapping | None:
    if options.user_column or options.assistant_column:
        return None
    found = [by_name[name] for name in MESSAGES if name in by_name]
    found = [column for column in found if column.kind.startswith("conversation")]
    if not found:
        return None
    column = found[0]
    if column.kind == CONVERSATION_AS_JSON and not options.parse_json:
        text = f"The column {quoted(column.name)} holds conversations written as JSON text: set parse_json to true."
        ledger.say("json_text", text, "parse_json", asks=True)
    layout: Layout = "conversations" if column.name.lower() == "conversations" else "messages"
    system = next((by_name[name].name for name in SYSTEM if name in by_name and by_name[name].kind == "text"), None)
    return Mapping(layout=layout, messages=column.name, system=system)


def _pair(by_name: dict[str, Column], options: DatasetOptions, ledger: Ledger) -> Mapping | None:
    """Find the user's words and the answer; a column named in the options is taken for granted."""
    user = _one(USER, by_name, options.user_column)
    assistant = _one(ASSISTANT, by_name, options.assistant_column)
    if "prompt" in user and "completion" in assistant:
        user, assistant = {"prompt": user["prompt"]}, {"completion": assistant["completion"]}
    elif "instruction" in user and "output" in assistant:
        user, assistant = {"instruction": user["instruction"]}, {"output": assistant["output"]}
    if not user or not assistant:
        return None
    for found, field in ((user, "user_column"), (assistant, "assistant_column")):
        if len(found) > 1:
            text = f"Which column is it: {_listed(found.values(), ' or ')}? Name it in {field}."
            ledger.say("columns", text, field, asks=True)
            return None
    (asked, user_name), (answered, assistant_name) = next(iter(user.items())), next(iter(assistant.items()))
    system = next((by_name[name].name for name in SYSTEM if name in by_name), None)
    context = by_name[INPUT].name if asked == "instruction" and INPUT in by_name else None
    if not context and not options.context_column and not (options.user_column and options.assistant_column):
        _ask_for_context(by_name, user_name, assistant_name, ledger)
    layout: Layout = "alpaca" if (asked, answered) == ("instruction", "output") else "question_answer"
    layout = "prompt_completion" if (asked, answered) == ("prompt", "completion") else layout
    return Mapping(layout=layout, user=user_name, assistant=assistant_name, system=system, context=context)


def _one(names: Sequence[str], by_name: dict[str, Column], given: str | None) -> dict[str, str]:
    if given:
        return {given.lower(): given}
    return {name: by_name[name].name for name in names if name in by_name}


def _ask_for_context(by_name: dict[str, Column], user: str, assistant: str, ledger: Ledger) -> None:
    """A passage is neither the question nor to be lost without a word."""
    found = next((by_name[name].name for name in CONTEXT if name in by_name), None)
    if found and found not in (user, assistant):
        text = (
            f"The column {quoted(found)} is neither the user's words ({quoted(user)}) nor the answer"
            f" ({quoted(assistant)}): set context_column to {found} to put it below the user's words, or user_column to"
            f" {user} and assistant_column to {assistant} to leave it out."
        )
        ledger.say("columns", text, "context_column", asks=True)


def _text(columns: Sequence[Column], by_name: dict[str, Column], options: DatasetOptions) -> Mapping | None:
    if options.user_column or options.assistant_column:
        return None
    texts = [column.name for column in columns if column.kind == "text"]
    if TEXT in by_name:
        return Mapping(layout="text", text=by_name[TEXT].name)
    return Mapping(layout="text", text=texts[0]) if len(columns) == 1 and texts else None


def _question(columns: Sequence[Column]) -> str:
    return (
        f"Which columns are to be used? There are {_listed(column.name for column in columns)}: name them in"
        " user_column and assistant_column, in messages_column or in text_column, or write a template."
    )


def _listed(names: Iterable[str], between: str = ", ") -> str:
    every = list(names)
    return between.join(map(quoted, every[:20])) + (" …" if len(every) > 20 else "")
