"""Forms made from option models: each option's name, default, help and faults come from the model."""

import types
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

import gradio as gr
from gradio.components import Component
from pydantic.fields import FieldInfo

from backend.options import COMMON_OPTIONS, Frozen

Updates = dict[Any, Any]
"""Component to its new value or gr.update(); what a handler returns."""

_FAULTY = "faulty"
_PREFIXES = ("bnb_4bit_", "llm_int8_")  # the method's title says it already


@dataclass(frozen=True)
class OptionForm:
    """The components that stand for an option model's fields."""

    options: type[Frozen]
    fields: dict[str, Component]

    @property
    def components(self) -> list[Component]:
        """All components of the form."""
        return list(self.fields.values())

    def values(self, given: dict[Component, Any]) -> dict[str, Any]:
        """Read the form as the mapping that the option model parses; an empty box is an option left out."""
        found = {name: given[component] for name, component in self.fields.items()}
        filled = {name: value for name, value in found.items() if not (isinstance(value, str) and not value.strip())}
        return {name: _read(self.options.model_fields[name], value) for name, value in filled.items()}

    def fill(self, options: Frozen) -> Updates:
        """Show an option object in the form."""
        shown = {name: _written(getattr(options, name), self.options.model_fields[name]) for name in self.fields}
        return {self.fields[name]: gr.update(value=value) for name, value in shown.items()}

    def mark(self, faults: dict[str, str]) -> Updates:
        """Say beside each field what is wrong with it, and take back what no longer is."""
        return {
            component: gr.update(
                info=_sentence(faults[name]) if name in faults else self.options.model_fields[name].description,
                elem_classes=[_FAULTY] if name in faults else [],
            )
            for name, component in self.fields.items()
        }


def option_form(options: type[Frozen], prefix: str, leave_out: tuple[str, ...] = ()) -> OptionForm:
    """Build a form inside the open Blocks; advanced options are folded under "More options".

    Args:
        options: The option model.
        prefix: Begins each component's elem_id: `quantize-nf4` gives `quantize-nf4-max_shard_size`.
        leave_out: Fields that the page asks for in another way.
    """
    wanted = {n: f for n, f in options.model_fields.items() if n not in (*COMMON_OPTIONS, *leave_out)}
    fields = {n: _component(n, f, prefix) for n, f in wanted.items() if not _extra(f, "advanced")}
    folded = {n: f for n, f in wanted.items() if n not in fields}
    if folded:
        with gr.Accordion("More options", open=False, elem_classes=["more"]):
            fields |= {n: _component(n, f, prefix) for n, f in folded.items()}
    return OptionForm(options, fields)


def label(name: str) -> str:
    """Write an option's name as words: bnb_4bit_use_double_quant becomes Use double quant."""
    for start in _PREFIXES:
        name = name.removeprefix(start)
    return name.replace("_", " ").capitalize()


def _component(name: str, field: FieldInfo, prefix: str) -> Component:
    kind = _plain(field.annotation)
    common = {"label": label(name), "info": field.description, "elem_id": f"{prefix}-{name}"}
    default = _written(field.get_default(call_default_factory=True), field)
    if get_origin(kind) is Literal:
        choices = list(get_args(kind))
        widget = gr.Radio if len(choices) <= 4 else gr.Dropdown
        return widget(choices=choices, value=default, **common)
    if kind is bool:
        return gr.Checkbox(value=default, **common)
    if field.annotation in (int, float):
        # Without minimum and maximum: Gradio would answer with a pop-up that names no field; the model's words do.
        return gr.Number(value=default, precision=0 if kind is int else None, **common)
    # An optional number is a text box too: an untouched empty gr.Number sends 0.
    return gr.Textbox(value=default, placeholder=_placeholder(kind), max_lines=1, **common)


def _plain(annotation: Any) -> Any:
    """Take None out of `X | None`."""
    if get_origin(annotation) in (Union, types.UnionType):
        return next(kind for kind in get_args(annotation) if kind is not type(None))
    return annotation


def _is_list(kind: Any) -> bool:
    return get_origin(kind) in (tuple, list)


def _placeholder(kind: Any) -> str:
    return "names, separated by commas" if _is_list(kind) else ""


def _read(field: FieldInfo, value: Any) -> Any:
    if isinstance(value, str) and _is_list(_plain(field.annotation)):
        return [part for part in (p.strip() for p in value.split(",")) if part]
    return value


def _written(value: Any, field: FieldInfo) -> Any:
    if isinstance(value, tuple | list):
        return ", ".join(str(part) for part in value)
    if value is None:
        return ""
    optional = field.annotation is not _plain(field.annotation)
    return str(value) if optional and isinstance(value, int | float) else value


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:] + "."


def _extra(field: FieldInfo, key: str) -> bool:
    extra = field.json_schema_extra
    return bool(isinstance(extra, dict) and extra.get(key))
