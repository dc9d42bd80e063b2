"""Conversion: rows become samples, checked one by one; a row that gives none is counted with the reason."""

from decimal import Decimal
from typing import Any

from backend.data.columns import CONVERSATION_AS_JSON, Mapping, kind_of
from backend.data.files.decoder import BadJson, Decoder
from backend.data.files.row import MAX_ROW, Number, Row
from backend.data.findings import Ledger
from backend.data.options import DatasetOptions
from backend.data.samples import Message, Sample
from backend.data.template import fill, filled_size, placeholders
from backend.data.turns import TurnReader, Unusable, turns_of
from backend.strict_json import quoted


class Converter:
    """Makes samples of rows.

    Args:
        mapping: What becomes of the columns.
        options: The system prompt; what may be parsed.
        ledger: Receives rows that cannot be used.
    """

    def __init__(self, mapping: Mapping, options: DatasetOptions, ledger: Ledger) -> None:
        self._map = mapping
        self._options = options
        self._ledger = ledger
        self._decoder = Decoder()
        self._number = 0
        self._turns = TurnReader(
            lambda content: self._text(self._number, {"content": content}, "content"),
            lambda text: self._ledger.noted("ignored", self._number, text),
        )
        self._placeholders = placeholders(mapping.template) if mapping.template else ()

    def sample(self, row: Row) -> Sample | None:
        """Return the row's sample; None where it has none, and the ledger says why."""
        if row.values is None:
            return None
        self._number = row.number
        try:
            return self._sample(row.number, row.values)
        except Unusable as e:
            self._ledger.faulty(e.kind, row.number, e.text, e.remedy)
            return None

    def _sample(self, number: int, values: dict[str, Any]) -> Sample:
        mapping = self._map
        if mapping.messages:
            return self._finished(number, self._turns.read(self._conversation(values)), values)
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
            prompt, answer = self._apart(prompt, answer)
            prompt = self._with_context(number, values, prompt)
        return self._finished(number, [*prompt, *answer], values, len(prompt))

    def _apart(self, prompt: list[Message], answer: list[Message]) -> tuple[list[Message], list[Message]]:
        """Return both sides of a pair without what the one repeats of the other."""
        last, first = prompt[-1], answer[0]
        if len(prompt) == len(answer) == 1 and self._map.whole == "assistant":
            return prompt, [Message(first.role, first.content.removeprefix(last.content).strip() or first.content)]
        if len(prompt) == len(answer) == 1 and self._map.whole == "user":
            return [Message(last.role, last.content.removesuffix(first.content).strip() or last.content)], answer
        if len(prompt) > 1 and last.role == "assistant" and _same(last, answer[-1]):
            prompt = prompt[:-1]
        if first.role == "assistant":
            return prompt, answer
        asked = next((i + 1 for i, turn in enumerate(answer) if _same(turn, prompt[-1])), None)
        if asked is None:
            text = f"{quoted(self._map.assistant)} is a conversation without what {quoted(self._map.user)} says"
            raise Unusable("conversation", text, "name it in messages_column")
        system = [turn for turn in prompt[:1] if turn.role == "system" != first.role]
        return [*system, *answer[:asked]], answer[asked:]

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
        tools = self._turns.tools(values.get(self._map.tools)) if self._map.tools else ""
        return Sample(number, tuple(turns), prompt=prompt, tools=tools)

    def _with_context(self, number: int, values: dict[str, Any], prompt: list[Message]) -> list[Message]:
        context = self._optional(number, values, self._map.context)
        if not context:
            return prompt
        last = prompt[-1]
        return [*prompt[:-1], Message(last.role, f"{last.content}\n\n{context}")]

    def _side(self, number: int, values: dict[str, Any], name: str, role: str) -> list[Message]:
        """Read one side of a pair: text, or a list of messages."""
        value = values.get(name)
        if self._options.parse_json and type(value) is str and kind_of(value) == CONVERSATION_AS_JSON:
            value = self._parsed(value, name)
        if turns := turns_of(value):
            return self._turns.read(turns)
        return [Message(role, self._needed(number, values, name))]

    def _filled(self, number: int, values: dict[str, Any]) -> str:
        assert self._map.template
        parts = {name: self._text(number, values, name) for name in self._placeholders}
        if not any(part.strip() for part in parts.values()):
            raise _empty("every column of the template")
        if filled_size(self._map.template, parts) > MAX_ROW:
            text = f"the template gives more than {MAX_ROW // 10**6} MB"
            raise Unusable("size", text, "name the long columns less often")
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
            raise Unusable(kind, f"{quoted(name)} {what}", "fill it in")
        if type(value) is str:
            return _checked(value, name)
        if isinstance(value, bytes):
            try:
                return _checked(value.decode(), name)
            except UnicodeDecodeError as e:
                raise Unusable("binary", f"{quoted(name)} is not UTF-8", "leave the column out") from e
        if isinstance(value, list | dict):
            what = "a list" if isinstance(value, list) else "an object"
            if turns_of(value):
                what = "a conversation"
            raise Unusable("type", f"{quoted(name)} is {what} where text is needed", "name another column")
        self._ledger.noted("converted", number, f"{quoted(name)} is {_kind(value)}, read as text,")
        text = str(value)
        return text.lower() if isinstance(value, bool) else text

    def _conversation(self, values: dict[str, Any]) -> list[Any]:
        name = self._map.messages
        assert name
        value = values.get(name)
        if value is None:
            kind, what = ("null", "is null") if name in values else ("missing", "is missing")
            raise Unusable(kind, f"{quoted(name)} {what}", "fill it in")
        if type(value) is str:
            value = self._parsed(value, name)
        turns = value if isinstance(value, list) else turns_of(value)
        if not value:
            raise _empty(quoted(name))
        if turns is None:
            raise Unusable("type", f"{quoted(name)} is no list of messages", "write it as [{role, content}, …]")
        return turns

    def _parsed(self, value: str, name: str) -> Any:
        if not self._options.parse_json:
            raise Unusable("json_text", f"{quoted(name)} is JSON written as text", "set parse_json to true")
        try:
            return self._decoder.decode(value)
        except BadJson as e:
            raise Unusable("json_text", f"{quoted(name)} is text but no JSON", "write it with json.dumps") from e


def _empty(what: str) -> Unusable:
    return Unusable("empty", f"{what} is empty", "fill it in")


def _checked(text: str, name: str) -> str:
    """Refuse what no tokenizer takes."""
    if "\0" in text:
        raise Unusable("nul", f"{quoted(name)} holds NUL bytes", "take them out")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as e:
            raise Unusable("surrogate", f"{quoted(name)} holds half a character (\\ud800 …)", "repair it") from e
    return text


def _check_turns(turns: list[Message]) -> None:
    if not turns:
        raise _empty("the conversation")
    answered = late = blank = False  # one loop: this is asked of every row of a file
    for i, turn in enumerate(turns):
        if turn.role == "system":
            late = late or i > 0
        elif not (turn.more or turn.role == "tool") and (not turn.content or turn.content.isspace()):
            blank = True
        answered = answered or turn.role == "assistant"
    if blank:
        raise _empty("a message")
    if late:
        raise Unusable("order", "a system message stands behind another", "put it first")
    if not answered:
        raise Unusable("no_answer", "the conversation has no assistant turn", "add the answer")
    if turns[-1].role != "assistant":
        who = "the user" if turns[-1].role == "user" else f"a message of {turns[-1].role}"
        raise Unusable("no_answer", f"the conversation ends with {who}", "add the answer")


def _same(one: Message, other: Message) -> bool:
    """Return whether two messages say the same, but for blanks."""
    return one.role == other.role and one.more == other.more and one.content.split() == other.content.split()


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    return "a number" if isinstance(value, Number | int | float | Decimal) else "a date or another type"
