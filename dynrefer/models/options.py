"""What a user may set when regions are described: a frozen dataclass a family, read alike by every front door.

    dynrefer describe photo.jpg --model MODEL --box 40 30 180 200 num_beams=5 control=red
    RegionPredictor(model)("photo.jpg", boxes=[[40, 30, 180, 200]], num_beams=5, control="red")
    python -m eval.run --model MODEL --task world num_beams=5 control=red

A family's class is `Options` in its options.py. A field's comment is its text in `--help`. None is the model's own.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import os
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from dynrefer.config import load_config, parse_value
from dynrefer.errors import shown, suggestion
from dynrefer.files import read_text

# Metadata of a field: "choices", texts that the page offers, where others may be typed, too; and these.
LOCAL = {"local": True}  # it concerns the machine: a server's clients may not set it
FIRST = {"first": True}  # what people set first: it stands open on the page


@dataclass(frozen=True)
class Options:
    """Of a family that has none; the base of the others.

    categories_field: which field says how many categories of a region are reported, "" where none does.
    """

    categories_field: ClassVar[str] = ""

    def for_image(self, number: int, num_images: int) -> Options:
        """Those of one image of a list: a field that holds one entry an image gives this one's."""
        return self

    def for_regions(self, positions: Sequence[int], num_regions: int) -> Options:
        """Those of some regions of an image: a field that holds one entry a region gives theirs. ValueError where it
        holds another number of entries."""
        return self


@dataclass(frozen=True)
class TextOptions(Options):
    """Of a family that writes text: how it is generated. Each is transformers' generation option of that name."""

    num_beams: int | None = None  # beams of the search; 1: greedy
    max_new_tokens: int | None = None  # longest text, in tokens
    do_sample: bool | None = None  # draw tokens at random
    temperature: float | None = None  # with do_sample: above 1 more even, below 1 surer
    top_k: int | None = None  # with do_sample: only the k likeliest tokens
    top_p: float | None = None  # with do_sample: only the likeliest tokens that reach this probability together
    repetition_penalty: float | None = None  # above 1: tokens that stand in the text already become less likely
    length_penalty: float | None = None  # of beams: above 0 prefers long texts
    # any other generation option, as no_repeat_ngram_size=3
    generation: dict = field(default_factory=dict, metadata=LOCAL)

    def decoding(self) -> dict[str, Any]:
        """All generation options that are set, under transformers' names."""
        own = [each.name for each in dataclasses.fields(TextOptions) if each.name != "generation"]
        given = {name: value for name in own if (value := getattr(self, name)) is not None}
        return {**self.generation, **given}


Kind = TypeVar("Kind", bound=Options)


def make_options(kind: type[Kind], given: Mapping[str, Any], base: Kind | None = None) -> Kind:
    """Options of a class from names and values, those of `base` where they are not given.

    A name that is no field but one of transformers' generation options goes into `generation` where there is one.
    ValueError for an unknown name, with the nearest and all known ones, and for what the class itself refuses.
    """
    names = [each.name for each in dataclasses.fields(kind)]
    values = {} if base is None else {name: getattr(base, name) for name in names}
    others = dict(values.get("generation") or {})
    for name, value in given.items():
        if name == "generation" and "generation" in names:
            if not isinstance(value, Mapping | None):
                raise ValueError(f"generation {value!r}: expected settings, for instance {{'num_beams': 5}}")
            for key, setting in (value or {}).items():  # its own fields are named in one place only
                if key in names and key != "generation":
                    values[key] = setting
                else:
                    others[key] = setting
        elif name in names:
            values[name] = value
        elif "generation" in names and name in generation_names():
            others[name] = value
        else:
            known = ", ".join(names) or "none"
            raise ValueError(f"unknown option {name!r}.{suggestion(name, names)} Options of this model: {known}.")
    if "generation" in names:
        if unknown := [name for name in others if name not in generation_names()]:
            hint = suggestion(unknown[0], generation_names())
            raise ValueError(f"generation option {unknown[0]!r} is not one of transformers' GenerationConfig.{hint}")
        values["generation"] = others
    options = kind(**values)
    check_types(options)
    return options


def check_types(options: Options) -> None:
    """ValueError for a field whose value is of another type than it says. What a list holds is the family's matter."""
    hints = typing.get_type_hints(type(options))
    for each in dataclasses.fields(options):
        value, hint = getattr(options, each.name), hints[each.name]
        kinds = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
        if not any(_is_a(value, kind) for kind in kinds):
            names = ["None" if kind is type(None) else getattr(kind, "__name__", str(kind)) for kind in kinds]
            raise ValueError(f"{each.name}: expected {' or '.join(names)}, got {shown(value)} ({type(value).__name__})")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{each.name}: {value} is no number to go by; give a finite one")


def _is_a(value: Any, kind: Any) -> bool:
    origin = typing.get_origin(kind) or kind
    if origin is typing.Literal:
        return value in typing.get_args(kind)
    if origin in (int, float):
        number = numbers.Integral if origin is int else numbers.Real
        return isinstance(value, number) and not isinstance(value, bool)
    if origin in (list, tuple):
        return isinstance(value, Sequence) and not isinstance(value, str | bytes)
    return kind is Any or isinstance(value, Mapping if origin is dict else origin)


def parse_options(kind: type[Options], pairs: Iterable[str]) -> dict[str, Any]:
    """`key=value` texts of a command line -> names and values for `make_options`, in the types of the fields.

    A list is given as a,b,c or as a file with one a line. ValueError names key, value and expected type.
    """
    hints, given = typing.get_type_hints(kind), {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        name, _, within = key.partition(".")
        if not equals or not key:
            raise ValueError(f"option {pair!r}: expected key=value, for instance num_beams=5")
        if key in hints and is_names(hints[key]):
            given[key] = read_names(text, key)
        elif within and hints.get(name) is dict:
            given[name] = {**given.get(name, {}), within: parse_value(text)}
        elif key in hints:
            given[key] = getattr(load_config(kind, None, [pair]), key)
        else:
            given[key] = parse_value(text)
    make_options(kind, given)
    return given


def read_names(text: str, option: str) -> list[str]:
    """Names from `a,b,c` or from a file with one name a line; no text is no name."""
    if os.path.isfile(text):
        names = read_text(text, option).splitlines()
    elif text.endswith((".txt", ".csv", ".json")):
        raise ValueError(f"{option}: no file {text!r}; give names as a,b,c or the path of a file with one name a line")
    else:
        names = text.split(",")
    names = [name.strip() for name in names if name.strip()]
    if not names and text.strip():
        raise ValueError(f"{option}: {text!r} holds no name; give a,b,c or a file with one name a line")
    return names


def is_names(hint: Any) -> bool:
    """Whether a field holds a list of names."""
    return any(option == list[str] for option in (hint, *typing.get_args(hint)))


def generation_names() -> frozenset[str]:
    """Names of transformers' generation options."""
    from transformers import GenerationConfig

    return frozenset(GenerationConfig().to_dict())
