"""Frozen, the base of every option model, and the words for what is wrong with a value."""

import re
import reprlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import RLock
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, TypeAdapter, ValidationError
from pydantic.config import JsonDict
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from backend.errors import MAX_TEXT, SpecError, shortened

M = TypeVar("M")

MAX_SHOWN = 80  # characters that a fault repeats of a value, or of the name of a field
MAX_FAULTS = 50  # that are named at once

_BRIEF = reprlib.Repr()
_BRIEF.maxlevel = 2

COMMON_OPTIONS = ("stage", "method")
"""Fields that say which option model it is; every other field is a choice of the user."""

ADVANCED: JsonDict = {"advanced": True}
"""Marks a field that is folded away under "more options" in the page."""

_BUILDING = RLock()


def _word(value: Any) -> Any:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


Switch = Annotated[Literal["auto", "on", "off"], BeforeValidator(_word)]
"""On, off, or as suits the machine; true and false are taken too, as TRL's own options of these names have them."""


class Frozen(BaseModel):
    """An option model: each option is described once, here; form, flags, recipe and card come from it.

    A field marked `json_schema_extra=ADVANCED` is folded away under "more options" in the page.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        str_strip_whitespace=True,
        defer_build=True,
        coerce_numbers_to_str=True,  # a file's name, a commit or a title may be all digits
    )

    @classmethod
    def model_rebuild(cls, *, _parent_namespace_depth: int = 2, **how: Any) -> bool | None:
        """Build what validates it, at its first use; pydantic's own is not made for two threads at once."""
        with _BUILDING:
            return super().model_rebuild(_parent_namespace_depth=_parent_namespace_depth + 1, **how)


def within(field: FieldInfo) -> type[Frozen] | None:
    """Return the option model that a field holds, where it holds one.

    The first field of such a model stands for the whole where there is one text for it: in a flag, in a form.
    """
    union = get_origin(field.annotation) in (Union, UnionType)
    kinds = get_args(field.annotation) if union else (field.annotation,)
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Frozen)), None)


def first_field(options: type[Frozen]) -> str:
    """Return the field that stands for options within options; see within()."""
    return next(iter(options.model_fields))


@contextmanager
def faults_of(field: str) -> Iterator[None]:
    """Put the field that holds options before what is wrong with them.

    Raises:
        SpecError: What was raised within, with each of its fields as `field.name`.
    """
    try:
        yield
    except SpecError as e:
        text = "\n".join(f"{field}: {line}" for line in str(e).splitlines())
        raise SpecError(text, {f"{field}.{name}": fault for name, fault in e.faults.items()}) from e


def parse(kind: type[M], data: Any, where: str = "", context: dict[str, Any] | None = None) -> M:
    """Build an option model from foreign data, naming every fault at once.

    Args:
        kind: The model class, or a union of classes.
        data: A mapping from a form, flags or a file.
        where: Put before each field's name, such as a file's name.
        context: What the model's validators need to know of who asks.

    Raises:
        SpecError: With one line a fault and the field of each.
    """
    try:
        return TypeAdapter(kind).validate_python(data, context=context)
    except ValidationError as e:
        raise spec_error(e.errors(), data, where) from e


def spec_error(errors: list[ErrorDetails], data: Any, where: str = "") -> SpecError:
    """Turn pydantic's error list into one SpecError: `field: what is wrong (got 'value')`.

    A validator of a whole model may begin its message with `field: ` to name the field.
    """
    faults: dict[str, str] = {}
    for error in errors:
        if _follows_from_another(error):
            continue
        field, text = _field(error["loc"], data), words(error)
        if error["type"] == "value_error" and (named := _NAMED.fullmatch(text)):
            field, text = f"{field}.{named[1]}".lstrip("."), named[2]
        if len(faults) < MAX_FAULTS or field in faults:
            faults.setdefault(field, shortened(text, MAX_TEXT))
    return SpecError("\n".join(f"{where}{field or 'all'}: {text}" for field, text in faults.items()), faults)


_NAMED = re.compile(r"([a-z0-9_.\[\]]+): (.+)", re.DOTALL)


def _follows_from_another(error: ErrorDetails) -> bool:
    """Pydantic calls a list too short when its elements are at fault; these are named anyway."""
    return error["type"] == "too_short" and bool(error["input"])


def _field(loc: tuple[int | str, ...], data: Any) -> str:
    """Name a place as it stands in the data: stages[0].group_size, without pydantic's union tags."""
    name, at = "", data
    for i, part in enumerate(loc):
        if isinstance(part, int):
            name += f"[{part}]"
            at = at[part] if isinstance(at, list | tuple) and part < len(at) else None
        elif isinstance(at, Mapping) and (part in at or i == len(loc) - 1) and part not in at.values():
            shown = shortened(part, MAX_SHOWN)
            name += f".{shown}" if name else shown
            at = at.get(part)
    return name


def words(error: ErrorDetails) -> str:
    """Say what is wrong with a value."""
    kind, ctx = error["type"], error.get("ctx", {})
    got = "" if isinstance(error["input"], Mapping) else f" (got {_shown(error['input'])})"
    if kind == "missing":
        return "is missing"
    if kind == "extra_forbidden":
        return "is not an option here; check its spelling, or the method it belongs to"
    if kind == "literal_error":
        return f"must be {ctx['expected']}{got}"
    if kind == "union_tag_invalid":
        return f"{ctx['discriminator']} must be one of {ctx['expected_tags']} (got {_shown(ctx['tag'])})"
    if kind == "union_tag_not_found":
        return f"has no {ctx['discriminator']}"
    if kind == "value_error":
        return str(ctx["error"])
    if kind in _WORDS:
        plain = {name: f"{value:g}" if isinstance(value, float) else value for name, value in ctx.items()}
        return _WORDS[kind].format(**plain) + got
    text = error["msg"]
    return text[0].lower() + text[1:] + got


def _shown(value: Any) -> str:
    """Write a value of anybody's as a fault repeats it: its beginning, however much it holds."""
    if isinstance(value, str):
        return repr(shortened(value, MAX_SHOWN))
    return shortened(_BRIEF.repr(value), MAX_SHOWN)


_WORDS = {
    "too_short": "must have at least {min_length} entry",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be more than {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "tuple_type": "must be a list, as in [a, b]",
    "model_attributes_type": "must be a mapping",
}
