"""Controls of a page, made from a family's options: a row a field, by its type; and their values back as options."""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass
from typing import Any

import gradio as gr

from dynrefer.config import field_comments
from dynrefer.models.options import FIRST, Options, is_names
from dynrefer.serve.client_options import open_names

OWN = "the model's own"
NOTHING = "''"  # typed for an empty text; an empty field is the model's own
ANSWERS = {"yes": True, "no": False}


@dataclass(frozen=True)
class Control:
    """One option: its component and how the component's value is read."""

    name: str
    component: Any
    kind: type

    def value(self, shown: Any) -> Any:
        """What the option is set to; None is the model's own."""
        if shown in (None, "", OWN):
            return None
        if self.kind is bool and isinstance(shown, str):
            return ANSWERS.get(shown, shown)
        if shown == NOTHING:
            return [] if self.kind is list else ""
        if self.kind is list:
            return [name.strip() for name in str(shown).replace("\n", ",").split(",") if name.strip()]
        if self.kind in (int, float) and isinstance(shown, str):
            return number(shown, self.name, self.kind)
        return shown


def controls(options: Options, side: str) -> list[Control]:
    """Those of a family on a side, A or B, rendered where this is called: what people set first stands open, then its
    own options, then those that it shares. A field's metadata may name `choices`; its comment is its explanation."""
    kind = type(options)
    first = [each.name for each in dataclasses.fields(kind) if FIRST.items() <= each.metadata.items()]
    names = [name for name in open_names(kind) if name not in first]
    own = [name for name in names if name in kind.__annotations__]
    made = [control(options, name, side) for name in first]
    for title, group in (("Options", own), ("How texts are written", [name for name in names if name not in own])):
        if group:
            with gr.Accordion(title, open=False), gr.Row(elem_classes="dr-options"):
                made += [control(options, name, side) for name in group]
    return made


def control(options: Options, name: str, side: str) -> Control:
    """The component of one field, with its present value; its id is dr-SIDE-NAME."""
    kind = type(options)
    (each,) = (each for each in dataclasses.fields(kind) if each.name == name)
    hint, value = typing.get_type_hints(kind)[name], getattr(options, name)
    optional = type(None) in typing.get_args(hint)
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    first = next(one for one in kinds if one is not type(None))
    text = field_comments(kind).get(name, "")
    shared = {"label": name, "info": text or None, "min_width": 200, "interactive": True}
    shared["elem_id"] = f"dr-{side}-{name}"
    if is_names(hint):
        return Control(name, gr.Textbox(", ".join(value or ()), placeholder="a, b, c", lines=1, **shared), list)
    if typing.get_origin(first) is typing.Literal:
        choices = [*([OWN] if optional else []), *typing.get_args(first)]
        return Control(name, gr.Dropdown(choices, value=OWN if value is None else value, **shared), str)
    if first is bool and optional:
        chosen = OWN if value is None else next(word for word, meant in ANSWERS.items() if meant == value)
        return Control(name, gr.Dropdown([OWN, *ANSWERS], value=chosen, **shared), bool)
    if first is bool:
        return Control(name, gr.Checkbox(value, **shared), bool)
    if choices := each.metadata.get("choices"):
        chosen = OWN if value is None else value
        return Control(name, gr.Dropdown([OWN, *choices], value=chosen, allow_custom_value=True, **shared), str)
    # numbers too: an empty field of Gradio's for numbers becomes 0 when it is first seen
    empty = OWN if optional else None
    text = gr.Textbox("" if value is None else str(value), placeholder=empty, lines=1, **shared)
    return Control(name, text, first if first in (int, float) else str)


def number(text: str, name: str, kind: type) -> int | float:
    """
    >>> number(" 5 ", "num_beams", int), number("0,5", "top_p", float)
    (5, 0.5)
    """
    try:
        return kind(text.strip().replace(",", "."))
    except ValueError:
        rule = "a whole number" if kind is int else "a number"
        raise ValueError(f"{name}: {text[:100]!r}; expected {rule}, or nothing for the model's own") from None


def given(group: list[Control], values: typing.Sequence[Any], options: Options) -> dict[str, Any]:
    """Options that a visitor has changed, by name; `options` are those that the page started with."""
    found = {one.name: one.value(shown) for one, shown in zip(group, values, strict=True)}
    return {name: value for name, value in found.items() if value != getattr(options, name)}
