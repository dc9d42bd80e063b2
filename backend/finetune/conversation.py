"""Conversations on their way through a chat template: what it is given, what it writes, and where the answers lie.

Tokens that steer a model and that somebody has typed become the letters they are written with; in answers thoughts and
calls stay marked. Where a template strips the thoughts of the last answer (DeepSeek-R1), the answer is written behind
the template's own beginning of one, as the model would go on from there.
"""

import json
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, NamedTuple

from backend.data.samples import ROLES, Message, Sample
from backend.errors import SpecError
from backend.finetune.answers import Ask, Ends, Span, Talk
from backend.finetune.marks import Marks
from backend.models.chat_template import TemplateRefusal, chat_text
from backend.models.tokens import THINKS, THOUGHT, Control, any_of

MOST_PARTS = 200
"""Beginnings of a conversation that are rendered for one row; few are needed, whatever the row."""


_TAGS = any_of((THINKS, THOUGHT))


class Template(NamedTuple):
    """A model's chat template, and the tokens that steer the model.

    Attributes:
        tokenizer: Of transformers.
        control: Tokens that steer the model.
        stops: Texts of the tokens that stop generation.
        closes: Whether the template itself ends an answer with one of these.
        parts: Whether it wants thoughts as a field of their own, and would take them for words in a content.
        whole: Whether it knows no such field, and writes thoughts that stand in a content.
    """

    tokenizer: Any
    control: Control
    stops: tuple[str, ...]
    closes: bool
    parts: bool
    whole: bool


class Conversation:
    """A sample with messages, made ready for a template.

    Args:
        template: The model's.
        sample: With messages.

    Raises:
        TemplateRefusal: The row cannot be marked.
    """

    def __init__(self, template: Template, sample: Sample) -> None:
        self._template, self._messages = template, sample.messages
        self._parts = 0
        try:
            self._marks = Marks((*(part for message in sample.messages for part in message), sample.tools))
        except ValueError as e:
            raise TemplateRefusal(str(e)) from e
        self.breaker = self._marks.breaker
        """Stands in the text where letters are not to be read as a token."""
        anywhere = template.control.pattern()
        self._spellings = dict.fromkeys(ROLES, anywhere) | {"assistant": template.control.pattern(answers=True)}
        self._tools = _strings(json.loads(sample.tools), self._speller("tool")) if sample.tools else None
        self._turns = [self._turn(message, self._speller(message.role)) for message in self._messages]
        self._marked = [_edged(turn, partial(self._marks.mark, message=i)) for i, turn in enumerate(self._turns)]

    def text(self) -> str:
        """Return what the template writes.

        Raises:
            TemplateRefusal: It does not take the conversation.
        """
        return self._written(len(self._messages))

    def answers(self, wanted: Sequence[int], ends: Ends) -> tuple[str, list[Span]]:
        """Return what the template writes, and where answers lie in it.

        Args:
            wanted: The numbers of the answers' messages.
            ends: What an answer may end with.

        Raises:
            TemplateRefusal: It does not take the conversation, or leaves out a part of it.
        """
        roles, marked = self._faithfully()
        marked = self._with_thoughts(marked, wanted, roles)
        text, talk = self._talk(marked, ends)
        if talk.lost(roles):
            text, talk = self._talk(self._behind_prompt(marked, roles), ends)
        if lost := talk.lost(roles):
            raise TemplateRefusal(lost)
        return text, talk.spans(wanted, self._headers(roles), lambda i: self._tail(i + 1, roles))

    def _talk(self, marked: str, ends: Ends) -> tuple[str, Talk]:
        """Return a marked text without its marks, and as a conversation."""
        text, places = self._marks.find(marked)
        return text, Talk(text, places, self._messages, ends)

    def _faithfully(self) -> tuple[Collection[str], str]:
        """Return the roles whose marked messages the template writes as it does plain ones, and what it writes."""
        plain = self.text()
        for roles in (ROLES, ("assistant",)):
            try:
                marked = self._written(len(self._messages), roles)
            except TemplateRefusal:
                continue
            if self._marks.plain(marked) == plain:
                return roles, marked
        raise TemplateRefusal("it rewrites answers so that they are not found again")

    def _with_thoughts(self, marked: str, wanted: Collection[int], roles: Collection[str]) -> str:
        """Return a marked text with the thoughts of the last answer, where the template has stripped them."""
        last = len(self._messages) - 1
        turn = self._turns[last]
        thought, content = str(turn.get("reasoning_content", "")), str(turn["content"])
        said = _as_content(thought, content) if thought else content
        if last not in wanted or "tool_calls" in turn or self._marks.has_thought(marked, last):
            return marked
        if not self._marks.has_thought(self._marks.mark(said, last), last):
            return marked
        try:
            prompt = self._written(last, roles, prompt=True)
        except TemplateRefusal:
            return marked
        if prompt.rstrip().endswith(THINKS):
            said = said.lstrip().removeprefix(THINKS).lstrip("\n")
        return prompt + self._marks.mark(said, last) + self._marks.after(marked, last)

    def _behind_prompt(self, marked: str, roles: Collection[str]) -> str:
        """Return a marked text as it stands behind the prompt for its last answer.

        Mistral's templates write a system prompt before a question that nothing follows, and nowhere else.
        """
        last = len(self._messages) - 1
        try:
            prompt = self._written(last, roles, prompt=True)
        except TemplateRefusal:
            return marked
        begun, whole = (self._marks.after(text, last - 1) for text in (prompt, marked))
        return prompt + whole.removeprefix(begun) if begun and whole.startswith(begun) else marked

    def _headers(self, roles: Collection[str]) -> Ask:
        """Return what gives the template's beginning of an answer, as it stands behind the message before it."""
        found: dict[str | int, str | None] = {}

        def header(i: int) -> str | None:
            if i == 0:
                return None
            before = self._messages[i - 1]
            key = before.role if before.role in roles and before.content.strip() else i
            if key not in found:
                found[key] = self._tail(i, roles, prompt=True)
            return found[key]

        return header

    def _tail(self, count: int, roles: Collection[str], prompt: bool = False) -> str | None:
        """Return what the template writes behind the last mark of the first messages."""
        self._parts += 1
        if self._parts > MOST_PARTS:
            raise TemplateRefusal(f"more than {MOST_PARTS} parts of the row have to be rendered alone")
        try:
            text, places = self._marks.find(self._written(count, roles, prompt))
        except TemplateRefusal:
            return None
        return text[places[-1].at if places else 0 :]

    def _written(self, count: int, roles: Collection[str] = (), prompt: bool = False) -> str:
        """Return what the template writes of the first messages, those of some roles marked."""
        pairs = list(zip(self._turns, self._marked, strict=True))[:count]
        turns = [marked if turn["role"] in roles else turn for turn, marked in pairs]
        try:
            return self._with_calls(turns, prompt)
        except TemplateRefusal as e:
            refusal = e
        if not any("tool_calls" in turn for turn in turns):
            raise refusal
        try:  # some templates want the arguments of calls as JSON
            return self._with_calls([_as_json(turn) for turn in turns], prompt)
        except TemplateRefusal:
            raise refusal from None

    def _with_calls(self, turns: Sequence[dict[str, Any]], prompt: bool) -> str:
        """Return what the template writes, which is not what Python calls the arguments of a call."""
        text = chat_text(self._template.tokenizer, turns, self._tools, prompt)
        given = [call["function"]["arguments"] for turn in turns for call in turn.get("tool_calls", ())]
        objects = [arguments for arguments in given if isinstance(arguments, dict)]
        if any(str(each) in text for each in objects if str(each) != json.dumps(each, ensure_ascii=False)):
            raise TemplateRefusal("it writes the arguments of tool calls as Python does, not as JSON")
        return text

    def _speller(self, role: str) -> Callable[[str], str]:
        return lambda text: self._marks.spelled(text, self._spellings[role])

    def _turn(self, message: Message, spell: Callable[[str], str]) -> dict[str, Any]:
        """Return a message as templates take it."""
        content, end = _without_end(message.content, self._template.stops) if message.role == "assistant" else (
            message.content, "")  # fmt: skip
        content = spell(content) + ("" if self._template.closes else end)
        if message.role == "assistant" and not self._template.whole:
            at = _thought_end(content)
            content = content[:at] + self._marks.spelled(content[at:], _TAGS)
        fields = {name: value for name, value in message.fields.items() if name != "weight"}
        if self._template.parts and message.role == "assistant" and content.lstrip().startswith(THINKS):
            thought, there, words = content.lstrip().removeprefix(THINKS).partition(THOUGHT)
            if there and "reasoning_content" not in fields:
                content, fields["reasoning_content"] = words.strip(), thought.strip()
        if self._template.whole and "reasoning_content" in fields and "tool_calls" not in fields:
            content = _as_content(fields.pop("reasoning_content"), content)
        return {"role": message.role, "content": content, **_strings(fields, spell)}


def template_of(tokenizer: Any, control: Control, stops: tuple[str, ...]) -> Template:
    """Return what is to be known of a model's chat template.

    Args:
        tokenizer: Of transformers.
        control: Tokens that steer the model.
        stops: Texts of the tokens that stop generation.
    """
    closes = any(stop in after_answer(tokenizer) for stop in stops)
    apart = _tried(tokenizer, {"content": "ANSWER", "reasoning_content": "WHY"})
    within = _tried(tokenizer, {"content": _as_content("WHY", "ANSWER")})
    parts = "WHY" in apart and (THINKS not in apart or within.count(THINKS) > apart.count(THINKS))
    return Template(tokenizer, control, stops, closes, parts, whole="WHY" in within and "WHY" not in apart)


def after_answer(tokenizer: Any) -> str:
    """Return what a chat template writes behind an answer; nothing where it takes no conversation."""
    _, found, after = _tried(tokenizer, {"content": "ANSWER"}).rpartition("ANSWER")
    return after if found else ""


def _tried(tokenizer: Any, answer: dict[str, str]) -> str:
    """Return what a chat template writes of a short conversation; nothing where it takes none."""
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", **answer}]
    try:
        return chat_text(tokenizer, turns) if tokenizer.chat_template else ""
    except SpecError:
        return ""


def _as_content(thought: str, words: str) -> str:
    """Return thoughts and words as one content."""
    return f"{THINKS}\n{thought}\n{THOUGHT}\n\n{words}"


def _thought_end(text: str) -> int:
    """Return where the thoughts end that an answer begins with; templates take later tags for the same, and cut there.

    They may have been opened by the prompt, and may lack their end.
    """
    before, closed, _ = text.partition(THOUGHT)
    opened = text.lstrip().startswith(THINKS)
    if closed and (opened or THINKS not in before):
        return len(before) + len(THOUGHT)
    return text.find(THINKS) + len(THINKS) if opened else 0


def _without_end(text: str, stops: Collection[str]) -> tuple[str, str]:
    """Return a text without the tokens at its end that stop generation, and the first of them."""
    end = len(text)
    at = -1
    found = ""
    while at != end:
        at = end
        while end and text[end - 1].isspace():
            end -= 1
        stop = next((stop for stop in stops if text.endswith(stop, 0, end)), "")
        end -= len(stop)
        found = stop or found
    return (text[:end], found) if found else (text, "")


def _strings(value: Any, change: Callable[[str], str]) -> Any:
    """Return a JSON value with its texts changed; names stay."""
    if isinstance(value, dict):
        return {name: _strings(part, change) for name, part in value.items()}
    if isinstance(value, list):
        return [_strings(part, change) for part in value]
    return change(value) if isinstance(value, str) else value


def _edged(turn: dict[str, Any], mark: Callable[[str], str]) -> dict[str, Any]:
    """Return a turn whose words are marked: content, thoughts, and the texts in the arguments of calls."""
    marked = turn | {"content": mark(turn["content"])}
    if "reasoning_content" in turn:
        marked["reasoning_content"] = mark(THINKS + turn["reasoning_content"]).removeprefix(THINKS)
    if "tool_calls" in turn:
        marked["tool_calls"] = _with_arguments(turn["tool_calls"], partial(_strings, change=mark))
    return marked


def _as_json(turn: dict[str, Any]) -> dict[str, Any]:
    """Return a turn with the arguments of its calls as JSON."""
    if "tool_calls" not in turn:
        return turn
    return turn | {"tool_calls": _with_arguments(turn["tool_calls"], partial(json.dumps, ensure_ascii=False))}


def _with_arguments(calls: Sequence[dict[str, Any]], change: Callable[[Any], Any]) -> list[dict[str, Any]]:
    """Return calls of tools with their arguments changed."""
    functions = [call["function"] for call in calls]
    changed = [function | {"arguments": change(function["arguments"])} for function in functions]
    return [call | {"function": function} for call, function in zip(calls, changed, strict=True)]
