"""Conversion: rows become samples, checked one by one; a row that gives none is counted with the reason."""

from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import Any

from backend.finetune.columns import Mapping, is_conversation
from backend.finetune.dataset import DatasetOptions
from backend.finetune.files.decoder import BadJson, Decoder
from backend.finetune.files.row import MAX_ROW, Number, Row
from backend.finetune.findings import Ledger
from backend.finetune.samples import ROLES, Message, Sample
from backend.finetune.template import fill, filled_size, placeholders
from backend.strict_json import quoted

_ALIASES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant"}
_TURN_PAIRS = (("role", "content"), ("from", "value"))
_TURN_KEYS = frozenset(key for pair in _TURN_PAIRS for key in pair)


class Converter:
    """Makes samples of rows.

    Args:
        mapping: What becomes of the columns.
        options: The system prompt; what may be parsed.
        ledger: Told of rows that cannot be used.
    """

    def __init__(self, mapping: Mapping, options: DatasetOptions, ledger: Ledger) -> None:
        self._map, self._options, self._ledger = mapping, options, ledger
        self._decoder = Decoder()
        self._placeholders = placeholders(mapping.template) if mapping.template else ()

    def sample(self, row: Row) -> Sample | None:
        """Give the row's sample; None where it has none, and the ledger says why."""
        if row.values is None:
            return None
        try:
            return self._sample(row.number, row.values)
        except _Unusable as e:
            self._ledger.faulty(e.kind, row.number, e.text, e.remedy)
            return None

    def _sample(self, number: int, values: dict[str, Any]) -> Sample:
        mapping = self._map
        if mapping.messages:
            return self._finished(number, self._turns(self._conversation(number, values), number), values)
        if mapping.text:
            return Sample(number, text=self._needed(number, values, mapping.text))
        if mapping.template and not mapping.assistant:
            return Sample(number, text=self._filled(number, values))
        assert mapping.assistant
        answer = self._side(number, values, mapping.assistant, "assistant")
        if mapping.template:
            prompt = [Message("user", self._filled(number, values))]
        else:
            assert mapping.user
            prompt = self._side(number, values, mapping.user, "user")
            prompt = self._with_context(number, values, prompt)
        return self._finished(number, [*prompt, *answer], values, len(prompt))

    def _finished(self, number: int, turns: list[Message], values: dict[str, Any], prompt: int | None = None) -> Sample:
        """Check a conversation and give it its system prompt."""
        if turns[0].role == "system" and not turns[0].content.strip():
            turns, prompt = turns[1:], prompt - 1 if prompt else prompt
        _check_turns(turns)
        if turns[0].role != "system":
            system = self._optional(number, values, self._map.system) or self._options.system_prompt
            if system:
                turns = [Message("system", system), *turns]
                prompt = prompt + 1 if prompt else prompt
        return Sample(number, tuple(turns), prompt=prompt)

    def _with_context(self, number: int, values: dict[str, Any], prompt: list[Message]) -> list[Message]:
        context = self._optional(number, values, self._map.context)
        if not context:
            return prompt
        last = prompt[-1]
        return [*prompt[:-1], Message(last.role, f"{last.content}\n\n{context}")]

    def _side(self, number: int, values: dict[str, Any], name: str, role: str) -> list[Message]:
        """Read one side of a pair: text, or a list of messages."""
        if is_conversation(values.get(name)):
            return self._turns(values[name], number)
        return [Message(role, self._needed(number, values, name))]

    def _filled(self, number: int, values: dict[str, Any]) -> str:
        assert self._map.template
        parts = {name: self._text(number, values, name) for name in self._placeholders}
        if not any(part.strip() for part in parts.values()):
            raise _empty("every column of the template")
        if filled_size(self._map.template, parts) > MAX_ROW:
            text = f"the template gives more than {MAX_ROW // 10**6} MB"
            raise _Unusable("size", text, "name the long columns less often")
        return fill(self._map.template, parts).strip()

    def _needed(self, number: int, values: dict[str, Any], name: str) -> str:
        text = self._text(number, values, name)
        if not text or text.isspace():
            raise _empty(quoted(name))
        return text

    def _optional(self, number: int, values: dict[str, Any], name: str | None) -> str:
        if name is None or values.get(name) is None:
            return ""
        text = self._text(number, values, name)
        return text if text.strip() else ""

    def _text(self, number: int, values: dict[str, Any], name: str) -> str:
        value = values.get(name)
        if value is None or value != value:  # NaN, as pandas writes null
            kind, what = ("null", "is null") if name in values else ("missing", "is missing")
            raise _Unusable(kind, f"{quoted(name)} {what}", "fill it in")
        if type(value) is str:
            return _checked(value, name)
        if isinstance(value, bytes):
            try:
                return _checked(value.decode(), name)
            except UnicodeDecodeError as e:
                raise _Unusable("binary", f"{quoted(name)} is not UTF-8", "leave the column out") from e
        if isinstance(value, list | dict):
            what = "a conversation" if is_conversation(value) else "a list" if isinstance(value, list) else "an object"
            raise _Unusable("type", f"{quoted(name)} is {what} where text is needed", "name another column")
        self._ledger.noted("converted", number, f"{quoted(name)} is {_kind(value)}, read as text,")
        return ("true" if value else "false") if isinstance(value, bool) else str(value)

    def _conversation(self, number: int, values: dict[str, Any]) -> list[Any]:
        name = self._map.messages
        assert name
        value = values.get(name)
        if value is None:
            kind, what = ("null", "is null") if name in values else ("missing", "is missing")
            raise _Unusable(kind, f"{quoted(name)} {what}", "fill it in")
        if type(value) is str:
            value = self._parsed(value, name)
        if not isinstance(value, list):
            raise _Unusable("type", f"{quoted(name)} is no list of messages", "write it as [{role, content}, …]")
        if not value:
            raise _empty(quoted(name))
        return value

    def _parsed(self, value: str, name: str) -> Any:
        if not self._options.parse_json:
            raise _Unusable("json_text", f"{quoted(name)} is JSON written as text", "set parse_json to true")
        try:
            return self._decoder.decode(value)
        except BadJson as e:
            raise _Unusable("json_text", f"{quoted(name)} is text but no JSON", "write it with json.dumps") from e

    def _turns(self, turns: list[Any], number: int) -> list[Message]:
        read = []
        for turn in turns:
            keys = turn.keys() if isinstance(turn, dict) else set[str]()
            pair = next((pair for pair in _TURN_PAIRS if keys >= set(pair)), None)
            if pair is None:
                raise _Unusable("turn", "a message has no role and content", "write it as {role, content}")
            role, content = (turn[key] for key in pair)
            known = _ALIASES.get(str(role), str(role))
            if known not in ROLES:
                allowed = ", ".join((*ROLES, *_ALIASES))
                raise _Unusable("role", f"the role {quoted(role, 40)} is unknown", f"use one of {allowed}")
            for key in sorted(keys - _TURN_KEYS):
                if turn[key] is not None:
                    self._ledger.noted("ignored", number, f"messages have {quoted(key)}, which is not used,")
            read.append(Message(known, self._content(number, content)))
        return read

    def _content(self, number: int, content: Any) -> str:
        if isinstance(content, list) and all(isinstance(p, dict) and p.get("type") == "text" for p in content):
            content = "".join(str(part.get("text", "")) for part in content)
        elif isinstance(content, list):
            raise _Unusable("type", "a message has pictures or other parts that are no text", "leave such rows out")
        return self._text(number, {"content": content}, "content")


class _Unusable(Exception):
    """Why a row gives no sample."""

    def __init__(self, kind: str, text: str, remedy: str) -> None:
        super().__init__(text)
        self.kind, self.text, self.remedy = kind, text, remedy


def _empty(what: str) -> _Unusable:
    return _Unusable("empty", f"{what} is empty", "fill it in")


def _checked(text: str, name: str) -> str:
    """Refuse what no tokenizer takes."""
    if "\0" in text:
        raise _Unusable("nul", f"{quoted(name)} holds NUL bytes", "take them out")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as e:
            raise _Unusable("surrogate", f"{quoted(name)} holds half a character (\\ud800 …)", "repair it") from e
    return text


def _check_turns(turns: list[Message]) -> None:
    if not turns:
        raise _empty("the conversation")
    answered = late = blank = False  # one loop: this is asked of every row of a file
    for i, turn in enumerate(turns):
        if turn.role == "system":
            late = late or i > 0
        elif not turn.content or turn.content.isspace():
            blank = True
        answered = answered or turn.role == "assistant"
    if blank:
        raise _empty("a message")
    if late:
        raise _Unusable("order", "a system message stands behind another", "put it first")
    if not answered:
        raise _Unusable("no_answer", "the conversation has no assistant turn", "add the answer")
    if turns[-1].role != "assistant":
        raise _Unusable("no_answer", "the conversation ends with the user", "add the answer")


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    return "a number" if isinstance(value, Number | int | float | Decimal) else "a date or another type"


def kept(rows: Iterable[Row], converter: Converter) -> Iterator[Sample]:
    """Give the samples of the rows that have one."""
    for row in rows:
        if (sample := converter.sample(row)) is not None:
            yield sample
