"""Forms made from option models: each option's name, default, help and faults come from the model."""

import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

import gradio as gr
from gradio.blocks import Block
from gradio.components import Component
from pydantic.fields import FieldInfo

from backend.options import COMMON_OPTIONS, Frozen, first_field

Given = Mapping[Block, Any]
"""Component to its value; what a handler is given."""

Values = dict[str, Any]
"""Options by name, as typed; what an option model parses."""

Updates = dict[Block, Any]
"""Component to its new value or gr.update(); what a handler returns."""

_FAULTY = "faulty"
_PREFIXES = ("bnb_4bit_", "llm_int8_")  # the method's title says it already
_NAMES = {
    name.lower(): name
    for name in ("CPU", "DoRA", "FP16", "FP32", "ID", "JSON", "LoRA", "LR", "NEFTune", "r", "rsLoRA", "SDK", "TF32")
}
"""Words of options that are names, as one writes them."""


@dataclass(frozen=True)
class OptionForm:
    """The components that stand for an option model's fields."""

    options: type[Frozen]
    fields: dict[str, Component]

    @property
    def components(self) -> list[Component]:
        """All components of the form."""
        return list(self.fields.values())

    def values(self, given: Given) -> Values:
        """Read the form as the mapping that the option model parses; an empty box is an option left out."""
        found = {name: given[component] for name, component in self.fields.items()}
        filled = {name: value for name, value in found.items() if not (isinstance(value, str) and not value.strip())}
        return {name: _read(self.options.model_fields[name], value) for name, value in filled.items()}

    def fill(self, options: Frozen) -> Updates:
        """Show an option object in the form."""
        shown = {name: _written(getattr(options, name), self.options.model_fields[name]) for name in self.fields}
        return {self.fields[name]: gr.update(value=value) for name, value in shown.items()}

    def mark(self, faults: dict[str, str]) -> Updates:
        """Say beside each field what is wrong with it, and take back what no longer is.

        Of options within options the first field stands for the whole: `rows.dataset` is wrong with `rows`.
        """
        found = {name.split(".")[0]: text for name, text in faults.items()}
        return {
            component: gr.update(
                info=_sentence(found[name]) if name in found else self.options.model_fields[name].description,
                elem_classes=[_FAULTY] if name in found else [],
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
    asked = {n: f for n, f in options.model_fields.items() if n not in (*COMMON_OPTIONS, *leave_out)}
    wanted = {n: f for n, f in asked.items() if len(_choices(f.annotation)) != 1}
    fields = {n: _component(n, f, prefix) for n, f in wanted.items() if not _extra(f, "advanced")}
    folded = {n: f for n, f in wanted.items() if n not in fields}
    if folded:
        with gr.Accordion("More options", open=False, elem_classes=["more"]):
            fields |= {n: _component(n, f, prefix) for n, f in folded.items()}
    return OptionForm(options, fields)


def both(first: Updates, second: Updates) -> Updates:
    """Put updates together, also where both change the same component."""
    merged = dict(first)
    for component, update in second.items():
        before = merged.get(component)
        merged[component] = {**before, **update} if isinstance(before, dict) and isinstance(update, dict) else update
    return merged


def option_field(options: type[Frozen], name: str, prefix: str, widget: Any = None, **settings: Any) -> Component:
    """Build the component of one field, where the page lays a form out itself.

    Args:
        options: The option model.
        name: The field.
        prefix: As in option_form().
        widget: Another component than the field's type asks for; its value must stay what OptionForm reads.
        settings: Given to that component.
    """
    field = options.model_fields[name]
    if widget is None:
        return _component(name, field, prefix)
    default = _written(field.get_default(call_default_factory=True), field)
    built: Component = widget(value=default, **{**_common(name, field, prefix), **settings})
    return built


def can_show(options: Frozen) -> bool:
    """Return whether a form can show these options: no entry of a list is empty or holds a comma."""
    values = (getattr(options, name) for name in type(options).model_fields)
    entries = (str(entry) for value in values if isinstance(value, tuple) for entry in value)
    return all(entry.strip() and "," not in entry for entry in entries)


def label(name: str) -> str:
    """Write an option's name as words: bnb_4bit_use_double_quant becomes Use double quant, use_rslora Use rsLoRA."""
    for start in _PREFIXES:
        name = name.removeprefix(start)
    first, *others = (_NAMES.get(word, word) for word in name.split("_"))
    return " ".join([first if first in _NAMES.values() else first.capitalize(), *others])


def _component(name: str, field: FieldInfo, prefix: str) -> Component:
    kind = _plain(field.annotation)
    choices = _choices(field.annotation)
    common = _common(name, field, prefix)
    default = _written(field.get_default(call_default_factory=True), field)
    if choices:
        widget = gr.Radio if len(choices) <= 4 else gr.Dropdown
        return widget(choices=choices, value=default, **common)
    if kind is bool and field.default is None:
        return gr.Radio(choices=_YES_OR_NO, value=default, **common)
    if kind is bool:
        return gr.Checkbox(value=default, **common)
    if field.annotation in (int, float):
        # Without minimum and maximum: Gradio would answer with a pop-up that names no field; the model's words do.
        return gr.Number(value=default, precision=0 if kind is int else None, **common)
    # An optional number is a text box too: an untouched empty gr.Number sends 0.
    return gr.Textbox(value=default, placeholder=_placeholder(kind), max_lines=1, **common)


_YES_OR_NO = [("not set", ""), ("yes", "True"), ("no", "False")]


def _common(name: str, field: FieldInfo, prefix: str) -> Values:
    return {"label": label(name), "info": field.description, "elem_id": f"{prefix}-{name}"}


def _plain(annotation: Any) -> Any:
    """Take None out of `X | None`."""
    return next(kind for kind in _kinds(annotation) if kind is not type(None))


def _kinds(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _choices(annotation: Any) -> list[tuple[str, str]]:
    """Return the values of a Literal, or of a union of them, as they are shown and as they are sent."""
    kinds = _kinds(annotation)
    unset = [("not set", "")] if type(None) in kinds else []
    values = [value for kind in kinds if get_origin(kind) is Literal for value in get_args(kind)]
    return [*unset, *((value, value) for value in values)] if values else []


def _is_list(kind: Any) -> bool:
    return get_origin(kind) in (tuple, list)


def _placeholder(kind: Any) -> str:
    return "separated by commas" if _is_list(kind) else ""


def _read(field: FieldInfo, value: Any) -> Any:
    if isinstance(value, str) and _is_list(_plain(field.annotation)):
        return [part for part in (p.strip() for p in value.split(",")) if part]
    return value


def _written(value: Any, field: FieldInfo) -> Any:
    if isinstance(value, tuple | list):
        return ", ".join(str(part) for part in value)
    if value is None:
        return ""
    if isinstance(value, Frozen):
        return getattr(value, first_field(type(value)))
    optional = field.annotation is not _plain(field.annotation)
    return str(value) if optional and isinstance(value, int | float) else value


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:] + "."


def _extra(field: FieldInfo, key: str) -> bool:
    extra = field.json_schema_extra
    return bool(isinstance(extra, dict) and extra.get(key))
