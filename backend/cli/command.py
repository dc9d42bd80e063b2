"""How a command is read and run: a flag or an argument for each field of a model, which looks at what was typed."""

import csv
import json
import os
import signal
import sys
from abc import abstractmethod
from argparse import (
    SUPPRESS,
    ArgumentParser,
    ArgumentTypeError,
    BooleanOptionalAction,
    RawDescriptionHelpFormatter,
)
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, Field, ValidationError, create_model
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from backend.errors import AppError
from backend.options import COMMON_OPTIONS, Frozen, first_field, within, words

T = TypeVar("T")
C = TypeVar("C", bound="Command")

_ARGUMENT = "argument"

Argument = Annotated[T, _ARGUMENT]
"""The type of a field that is typed by its place, not behind a flag."""


class _Choices(NamedTuple):
    """What a number may be, in the help; the option model of the method looks whether it is one of these."""

    values: tuple[Any, ...]


class Command(BaseModel):
    """What every command has.

    Attributes:
        notes: Lines that the help shows last.
    """

    notes: ClassVar[str] = ""

    json_: bool = Field(False, description="Print one JSON object and nothing else.")

    @abstractmethod
    def run(self) -> None:
        """Do what the command is for."""

    def given(self, *models: type[Frozen]) -> dict[str, Any]:
        """Return the options of these models that were typed."""
        found: dict[str, Any] = {}
        for flag in (flag for model in models for flag in _flags(model)):
            if flag.name in self.model_fields_set:
                at = found
                for outer in flag.place[:-1]:
                    at = at.setdefault(outer, {})
                at[flag.place[-1]] = getattr(self, flag.name)
        return found

    def say(self, data: dict[str, Any], text: str) -> None:
        """Print the result: as JSON, or as a person reads it."""
        sys.stdout.write((json.dumps(data, ensure_ascii=False) if self.json_ else text) + "\n")
        sys.stdout.flush()


def with_options(
    command: type[Command], models: Mapping[str, type[Frozen]], leave_out: tuple[str, ...] = (), **more: Any
) -> Any:
    """Return the command with a flag for each field of option models.

    What is not typed is not passed on, so that a flag of one method does not disturb another.

    Args:
        command: With what is its own.
        models: By the label that the help shows where there are several.
        leave_out: Fields that get no flag.
        more: Further fields, as pydantic's create_model() takes them.
    """
    fields: dict[str, Any] = dict(more)
    choices: dict[str, tuple[Any, ...]] = {}
    for label, model in models.items():
        for name, _, info in _flags(model):
            if name in leave_out:
                continue
            text = fields[name][1].description if name in fields else info.description or ""
            text += f" [{label}]" if len(models) > 1 else ""
            choices[name] = tuple(dict.fromkeys((*choices.get(name, ()), *_choices(info.annotation))))
            same = name not in fields or fields[name][1].default == info.default
            default = info.default if same else None  # each has its own: none is said
            fields[name] = (_typed(info.annotation, choices[name]), FieldInfo(default=default, description=text))
    return create_model(command.__name__.strip("_"), __base__=command, **fields)


class _Flag(NamedTuple):
    """A field of an option model, as a flag asks for it.

    Attributes:
        name: Of options within options, both names; the first of them has the outer name alone.
        place: Where its value stands in the model's data.
        field: Its type, default and description.
    """

    name: str
    place: tuple[str, ...]
    field: FieldInfo


def _flags(model: type[Frozen]) -> Iterator[_Flag]:
    """Yield the flags of an option model."""
    for name, field in model.model_fields.items():
        if name in COMMON_OPTIONS:
            continue
        inner = within(field)
        if inner is None:
            yield _Flag(name, (name,), field)
            continue
        for part, info in inner.model_fields.items():
            if part == first_field(inner):
                named = FieldInfo(annotation=info.annotation, default=field.default, description=field.description)
                yield _Flag(name, (name, part), named)
            else:
                yield _Flag(f"{name}_{part}", (name, part), info)


def _typed(annotation: Any, choices: tuple[Any, ...]) -> Any:
    """Return what a flag is read as: one of several, of which the option model then takes those that it knows."""
    if not choices:
        return annotation
    if isinstance(choices[0], int):
        return Annotated[int, _Choices(choices)]
    return annotation if set(choices) == set(_choices(annotation)) else Literal[*choices]


def _choices(annotation: Any) -> tuple[Any, ...]:
    """Return the values that an annotation names, if it does."""
    kinds = _kinds(annotation)
    named = all(get_origin(kind) is Literal for kind in kinds)
    return tuple(value for kind in kinds for value in get_args(kind)) if named else ()


def _kinds(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union but None; of any other annotation itself."""
    members = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return tuple(member for member in members if member is not type(None))


def run(kind: type[Command], typed: Sequence[str], prog: str, summary: str) -> int:
    """Run a command; 0, or 1 with one line on standard error, or 2 for wrong usage, as argparse does.

    Args:
        kind: The command.
        typed: What stands behind its name.
        prog: What is typed to call it.
        summary: What it is for.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        read(kind, typed, prog, summary).run()
        sys.stdout.flush()
    except ValidationError as e:
        _say("; ".join(f"{_flag(str(error['loc'][0]))} {words(error)}" for error in e.errors()))
        return 2
    except AppError as e:
        return _say("; ".join(str(e).splitlines()))
    except BrokenPipeError:  # whoever read the output has stopped, and wants to hear no more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as e:
        place = f" '{e.filename}'" if e.filename else ""
        return _say(f"Could not read or write{place}. {e.strerror or e}: check the path and the disk.")
    except KeyboardInterrupt:
        return _say("Canceled.")
    return 0


def _say(text: str) -> int:
    sys.stderr.write(f"error: {text}\n")
    return 1


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def read(kind: type[C], typed: Sequence[str], prog: str, summary: str) -> C:
    """Read what was typed; see run().

    Raises:
        ValidationError: A value will not do.
        SystemExit: The usage is wrong, or help was asked for; argparse has said it.
    """
    return kind.model_validate(vars(parser_of(kind, prog, summary).parse_args(typed)))


def parser_of(kind: type[Command], prog: str, summary: str) -> ArgumentParser:
    """Return the parser of a command: a flag or an argument for each field."""
    parser = ArgumentParser(
        prog,
        description=summary,
        epilog=kind.notes or None,
        argument_default=SUPPRESS,
        allow_abbrev=False,
        formatter_class=RawDescriptionHelpFormatter,
    )
    for name, field in kind.model_fields.items():
        shown = _shown(field)
        if _ARGUMENT in field.metadata:
            several = {"nargs": "+"} if get_origin(field.annotation) is list else {}
            parser.add_argument(name, metavar=name.upper(), help=shown, **several)  # type: ignore[arg-type]
        else:
            needed = field.is_required()
            parser.add_argument(_flag(name), dest=name, required=needed, help=shown, **_values(field))
    return parser


def _flag(name: str) -> str:
    """Return how a field is typed."""
    flag = name.strip("_").replace("_", "-")
    return f"-{flag}" if len(flag) == 1 else f"--{flag}"


_METAVARS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}


def _values(field: FieldInfo) -> dict[str, Any]:
    """Return what argparse is told of a flag's values."""
    if numbers := next((found.values for found in field.metadata if isinstance(found, _Choices)), None):
        return {"metavar": f"{{{','.join(map(str, numbers))}}}"}
    if choices := _choices(field.annotation):
        return {"choices": choices}
    [kind] = _kinds(field.annotation)
    if kind is bool:
        return {"action": BooleanOptionalAction}
    if get_origin(kind) in (tuple, list):
        one = _METAVARS[get_args(kind)[0]]
        return {"action": "extend", "type": _listed, "metavar": f"{one},…"}
    return {"metavar": _METAVARS[kind]}


def _listed(text: str) -> list[str]:
    """Read values with commas between them, in double quotes where they hold commas; or a JSON list."""
    if text.startswith("["):
        with suppress(ValueError):  # such as [INST], which is one value
            return [str(value) for value in json.loads(text)]
    if not {",", '"'} & set(text):
        return [text] if text else []
    try:
        return next(csv.reader([text], skipinitialspace=True))
    except csv.Error as e:
        raise ArgumentTypeError("a line break stands between commas: put quotes around it, or write JSON") from e


def _shown(field: FieldInfo) -> str:
    """Return the help of a field, as argparse takes it."""
    text = field.description or ""
    if field.is_required():
        text += "" if _ARGUMENT in field.metadata else " (required)"
    elif field.default not in (None, (), PydanticUndefined):
        text += f" (default: {_plain(field.default)})"
    return text.replace("%", "%%")


def _plain(value: Any) -> str:
    """Return a default as it would be typed."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
