"""Turns: the messages of a conversation as ShareGPT, TRL and OpenAI's clients write them, with calls of tools.

A message keeps what chat templates read, under the names that they read it by; what a client writes without meaning
anything by it, such as `refusal: null`, is taken without a word.
"""

import json
from collections.abc import Callable
from itertools import chain
from typing import Any

from backend.data.files.content import TURN
from backend.data.files.decoder import BadJson, Decoder
from backend.data.files.row import Number
from backend.data.samples import ROLES, Message
from backend.strict_json import MAX_DEPTH, quoted

MAX_TURNS = 10_000

_ALIASES = {
    "human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant",
    "ai": "assistant", "developer": "system", "function": "tool", "ipython": "tool", "observation": "tool",
    "function_response": "tool", "tool_response": "tool", "function_call": "assistant", "tool_call": "assistant",
}  # fmt: skip
_CALLS = ("function_call", "tool_call")
"""Roles of LLaMA-Factory's ShareGPT whose text is the JSON of a call."""

_PAIRS = (("role", "content"), ("from", "value"), ("role", "value"), ("from", "content"))
_REASONING = ("reasoning_content", "reasoning", "thinking")
_TEXTS: tuple[Any, ...] = (None, "text", "input_text", "output_text")
"""What a part of a content calls itself where it is text."""

_READ = frozenset({*chain(*_PAIRS), "tool_calls", "function_call", "tool_call_id", "name", "weight", *_REASONING})

_NEUTRAL: tuple[Any, ...] = (None, "", [], {}, False, "null")


class Unusable(Exception):
    """Why a row gives no sample.

    Args:
        kind: Rows of one kind are counted together.
        text: What is wrong.
        remedy: What can be done to the file.
    """

    def __init__(self, kind: str, text: str, remedy: str) -> None:
        super().__init__(text)
        self.kind = kind
        self.text = text
        self.remedy = remedy


def turns_of(value: Any) -> list[Any] | None:
    """Return the messages that a value holds: a list of them, or lists of their parts as in Parquet; else None."""
    if isinstance(value, dict) and TURN & value.keys():
        columns = {name: column for name, column in value.items() if isinstance(column, list)}
        lengths = {len(column) for column in columns.values()}
        if len(lengths) != 1 or not TURN & columns.keys():
            return None
        return [dict(zip(columns, turn, strict=True)) for turn in zip(*columns.values(), strict=True)] or None
    if isinstance(value, list) and value and isinstance(value[0], dict) and TURN & value[0].keys():
        return value
    return None


class TurnReader:
    """Reads the messages of conversations.

    Args:
        text: Gives a content that is no list as text; raises Unusable.
        noted: Receives what a message has and nobody reads.
    """

    def __init__(self, text: Callable[[Any], str], noted: Callable[[str], None]) -> None:
        self._text, self._noted = text, noted
        self._decoder = Decoder()

    def read(self, turns: list[Any]) -> list[Message]:
        """Return the messages; those of the system that follow each other are one.

        Raises:
            Unusable: A message is none.
        """
        if len(turns) > MAX_TURNS:
            raise Unusable("long", f"the conversation has more than {MAX_TURNS} messages", "split it")
        found: list[Message] = []
        for turn in turns:
            message = self._message(turn)
            if message.role == "system" and len(found) == 1 and found[0].role == "system":
                message = Message("system", f"{found.pop().content}\n\n{message.content}".strip())
            found.append(message)
        return found

    def _message(self, turn: Any) -> Message:
        keys = turn.keys() if isinstance(turn, dict) else set[str]()
        pair = next((pair for pair in _PAIRS if keys >= set(pair)), None)
        pair = pair or next((pair for pair in _PAIRS if pair[0] in keys), None)
        if pair is None:
            raise _no_turn()
        named = str(turn[pair[0]])
        spelled = named.strip().lower()
        role = _ALIASES.get(spelled, spelled)
        if role not in ROLES:
            raise Unusable("role", f"the role {quoted(named, 40)} is unknown", f"use one of {', '.join(ROLES)}")
        content, more = turn.get(pair[1]), self._more(role, turn)
        if spelled in _CALLS:
            content, more = None, {"tool_calls": self._calls(content), **more}
        thoughts, text = self._content(content) if content not in (None, []) else ("", "")
        if thoughts:
            more.setdefault("reasoning_content", thoughts)
        if content is None and not more.keys() & {"tool_calls", "reasoning_content"}:
            if pair[1] not in keys:
                raise _no_turn()
            self._text(content)  # says that it is null
        for key in sorted(keys - _READ):
            if turn[key] not in _NEUTRAL:
                self._noted(f"messages have {quoted(key)}, which is not used,")
        return Message(role, text, json.dumps(more, ensure_ascii=False) if more else "")

    def _more(self, role: str, turn: dict[str, Any]) -> dict[str, Any]:
        """Return what templates read of a message besides role and content."""
        more: dict[str, Any] = {}
        if role == "assistant":
            calls = turn.get("tool_calls") or turn.get("function_call")
            if calls not in _NEUTRAL:
                more["tool_calls"] = self._calls(calls)
            thought = next((turn[name] for name in _REASONING if isinstance(turn.get(name), str)), "")
            if thought.strip():
                more["reasoning_content"] = self._text(thought)
            if str(turn.get("weight")) in ("0", "0.0"):
                more["weight"] = 0  # OpenAI's word for an answer that is not learned
        elif role == "tool":
            more = {name: str(turn[name]) for name in ("tool_call_id", "name") if turn.get(name) is not None}
        elif turn.get("name") not in _NEUTRAL:
            self._noted("messages have 'name', which is not used,")
        return more

    def _calls(self, calls: Any) -> list[dict[str, Any]]:
        """Return calls as OpenAI's API has them, the arguments as an object where they are one."""
        calls = self._parsed(calls)
        found = []
        for call in calls if isinstance(calls, list) else [calls]:
            call = self._parsed(call)
            function = self._parsed(call.get("function", call)) if isinstance(call, dict) else None
            if not isinstance(function, dict) or not isinstance(function.get("name"), str):
                raise Unusable(
                    "tool_calls", "a tool call has no function with a name", 'write {"function": {"name": …}}'
                )
            arguments = self._parsed(next((function[n] for n in ("arguments", "parameters") if n in function), None))
            known = {"name": function["name"], "arguments": {} if arguments in (None, "") else arguments}
            identity = {"id": str(call["id"])} if call.get("id") else {}
            found.append({**identity, "type": "function", "function": known})
        self._text(json.dumps(found, ensure_ascii=False))  # refuses what no tokenizer takes
        return found

    def tools(self, value: Any) -> str:
        """Return the JSON of the functions that may be called: schemas, each as OpenAI's API has it.

        Args:
            value: A list, or its JSON; "" where there are none.

        Raises:
            Unusable: It is something else.
        """
        listed = self._parsed(value)
        listed = [listed] if isinstance(listed, dict) else listed
        if listed in _NEUTRAL:
            return ""
        every = []
        for item in listed if isinstance(listed, list) else [None]:
            tool = self._parsed(item)
            function = tool.get("function", tool) if isinstance(tool, dict) else None
            if not isinstance(function, dict):
                raise Unusable("tools", "the tools are no list of functions", "write each as OpenAI's API has it")
            every.append({"type": "function", "function": function} if "name" in function else tool)
        return self._text(json.dumps(every, ensure_ascii=False))

    def _parsed(self, value: Any) -> Any:
        """Return a value as plain JSON, read from text where it is the JSON of a list or an object."""
        if type(value) is str and value.lstrip()[:1] in ("[", "{"):
            try:
                value = self._decoder.decode(value)
            except BadJson:
                return value
        return _plain(value)

    def _content(self, content: Any) -> tuple[str, str]:
        """Return the thoughts and the text of a content: text, or a list of parts."""
        if not isinstance(content, list):
            return "", self._text(content)
        thoughts, texts = [], []
        for part in content:
            kind = part.get("type") if isinstance(part, dict) else None
            text = part.get("text") if isinstance(part, dict) else part
            if kind in ("thinking", "reasoning") and isinstance(part.get(kind, text), str):
                thoughts.append(part.get(kind, text))
            elif kind in _TEXTS and isinstance(text, str):
                texts.append(text)
            else:
                raise Unusable("type", "a message has pictures or other parts that are no text", "leave such rows out")
        return "".join(thoughts), self._text("".join(texts))


def _no_turn() -> Unusable:
    return Unusable("turn", "a message has no role and content", "write it as {role, content}")


def _plain(value: Any, depth: int = 0) -> Any:
    """Return a value as json.dumps() takes it, numbers as numbers, without the nulls that tables fill objects with.

    Raises:
        Unusable: It nests too deep.
    """
    if depth > MAX_DEPTH:
        raise Unusable("depth", f"a message nests deeper than {MAX_DEPTH} levels", "flatten it")
    if isinstance(value, dict):
        return {name: _plain(part, depth + 1) for name, part in value.items() if part is not None}
    if isinstance(value, list):
        return [_plain(part, depth + 1) for part in value]
    if isinstance(value, Number):
        try:
            return json.loads(value)
        except ValueError:  # more digits than Python reads
            return str(value)
    return value if isinstance(value, str | int | float | None) else str(value)
