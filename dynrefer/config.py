"""Settings: nested YAML and `section.key=value` from the command line -> one frozen dataclass.

    @dataclass(frozen=True)
    class LoopConfig:
        steps: int = 100

    @dataclass(frozen=True)
    class RunConfig:
        name: str
        loop: LoopConfig = LoopConfig()
        model: dict = field(default_factory=dict)  # free: keys are checked by whoever builds the model

    cfg = load_config(RunConfig, "configs/small.yaml", ["loop.steps=20", "model.vision.width=64"])

A YAML holds only what differs from the defaults and may start from another one with `base: other.yaml` (a path
relative to its own folder). Mappings are merged key by key: base, then the file, then the command line; any other value
is replaced.
"""

import ast
import dataclasses
import inspect
import io
import math
import os
import re
import textwrap
import tokenize
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from dynrefer.errors import check_keys, cut, suggestion
from dynrefer.files import atomic_path, read_text
from dynrefer.packed import other_text

Config = TypeVar("Config")

BASE_KEY = "base"
MOST_VALUES = 1_000_000  # of a YAML whose aliases are written out


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-4 as a number (YAML 1.1 wants 1.0e-4) and refuses a key written twice."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen and key != "<<":
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is written twice; keep one of them", key_node.start_mark
                )
            if isinstance(key, str):
                seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9_]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


@dataclasses.dataclass(frozen=True)
class _CommandLineValue:
    """A value from the command line with the text it was read from, which a field of type str takes as it stands."""

    value: Any
    text: str


def parse_value(text: str) -> Any:
    """One value as YAML reads it: "1e-4" -> 0.0001, "[1, 2]" -> [1, 2], "null" -> None, "" -> "".

    Raises ValueError for text that is no YAML.
    """
    if text.strip() == "":
        return ""
    try:
        return _load_yaml(text)
    except ValueError as error:
        start = cut(text, 200)
        raise ValueError(
            f"cannot read the value {start!r} as YAML: {error}; quote it, for instance '\"{start}\"'"
        ) from error


def _load_yaml(text: str) -> Any:
    """ValueError in a line for what is no YAML, and for what no end of writing would write out."""
    try:
        value = yaml.load(text, Loader=_Loader)
        if _size(value, (), {}) > MOST_VALUES:
            raise ValueError(f"its aliases stand for more than {MOST_VALUES:,} values")
        return value
    except RecursionError:
        raise ValueError("nested too deeply, or an alias that contains itself") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # ValueError: a date or a number that is none
        raise ValueError(_one_line(error)) from error


def _size(value: Any, above: tuple[int, ...], known: dict[int, int]) -> int:
    """How many values it is written out; an alias counts each time. ValueError for one that contains itself."""
    if not isinstance(value, dict | list | set | tuple):
        return 1
    if id(value) in above:
        raise ValueError("an alias contains itself; write the values out")
    if id(value) not in known:
        children = [*value, *value.values()] if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_size(child, (*above, id(value)), known) for child in children)
    return known[id(value)]


def parse_pairs(pairs: Sequence[str]) -> dict[str, Any]:
    """["num_beams=5"] -> {"num_beams": 5}; ValueError for one without a key or without "="."""
    values = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ValueError(f"{pair!r} is no setting; write KEY=VALUE, for instance num_beams=5")
        values[key] = parse_value(value)
    return values


def read_yaml(path: str | os.PathLike) -> dict:
    """The mapping in a YAML file, merged over its `base:` files. ValueError names the file and its fault."""
    return _read_yaml(Path(path), ())


def _read_yaml(path: Path, below: tuple[Path, ...]) -> dict:
    resolved = path.resolve()
    if resolved in below:
        chain = " -> ".join(str(p) for p in (*below, resolved))
        raise ValueError(f"{path}: `base:` goes round in a circle: {chain}")
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read the config {str(path)!r}: {_one_line(error)}") from error
    try:
        tree = _load_yaml(text)
    except ValueError as error:
        raise ValueError(f"{path}: not valid YAML: {other_text(text) or error}") from error
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        if kind := other_text(text):
            raise ValueError(f"{path}: not valid YAML: {kind}")
        raise ValueError(f"{path}: expected `key: value` lines at the top level, found a {type(tree).__name__}")
    base = tree.pop(BASE_KEY, None)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise ValueError(f"{path}: base: expected the path of one YAML file, got {base!r}")
    return merge(_read_yaml(path.parent / base, (*below, resolved)), tree)


def merge(below: Mapping, above: Mapping) -> dict:
    """A new mapping: `above` over `below`, mappings key by key, every other value replaced."""
    out = dict(below)
    for key, value in above.items():
        if isinstance(value, Mapping) and isinstance(out.get(key), Mapping):
            out[key] = merge(out[key], value)
        else:
            out[key] = value
    return out


def apply_overrides(tree: Mapping, overrides: Sequence[str]) -> dict:
    """A new mapping with `section.key=value` settings put in, left to right; mapping values are merged."""
    for override in overrides:
        key, equals, text = override.partition("=")
        names = key.strip().split(".")
        if not equals or not all(names):
            raise ValueError(
                f"command line: {override!r} is no setting; write section.key=value, for instance train.lr=1e-4"
            )
        try:
            value = parse_value(text)
        except ValueError as error:
            raise ValueError(f"command line: {key}: {error}") from error
        node = tree
        for depth, name in enumerate(names[:-1]):
            node = node.get(name, {})
            if node is None:
                node = {}
            if not isinstance(node, Mapping):
                shown = node.value if isinstance(node, _CommandLineValue) else node
                raise ValueError(
                    f"command line: cannot set {key!r}: {'.'.join(names[: depth + 1])!r} is {shown!r}, not a section"
                )
        above: Any = value if isinstance(value, Mapping) else _CommandLineValue(value, text.strip())
        for name in reversed(names):
            above = {name: above}
        tree = merge(tree, above)
    return dict(tree)


def load_config(cls: type[Config], yaml_path: str | os.PathLike | None = None, overrides: Sequence[str] = ()) -> Config:
    """An instance of the dataclass `cls` from a YAML file (or none) and `section.key=value` settings.

    Fields may be bool, int, float, str, Path, Literal, `X | None`, list[X], tuple[X, ...], tuple[X, Y], dict,
    dict[str, X], Any and nested dataclasses; a plain dict takes any nested keys. An int is accepted for a float,
    nothing else is converted. null for a text whose default is empty is an empty one.

    Raises ValueError naming key, value and expected type for a wrong type, the nearest known key for an unknown one,
    and the section in front of whatever a `__post_init__` says.
    """
    tree = {} if yaml_path is None else read_yaml(yaml_path)
    return from_dict(cls, apply_overrides(tree, overrides), "settings" if yaml_path is None else str(yaml_path))


def from_dict(cls: type[Config], tree: Mapping, where: str = "settings") -> Config:
    """An instance of the dataclass `cls` from nested mappings (what `to_dict` returns); errors start with `where`."""
    return _build(cls, tree, where, "")


def to_dict(config: Any) -> dict:
    """A dataclass as nested dicts and lists of plain values, ready for YAML or JSON."""
    return _plain(config)


def check_numbers(config: Any, key: str = "") -> None:
    """ValueError that names the first NaN or infinity in a dataclass, in its sections, lists and mappings too."""
    if dataclasses.is_dataclass(config):
        config = {each.name: getattr(config, each.name) for each in dataclasses.fields(config)}
    if isinstance(config, float) and not math.isfinite(config):
        raise ValueError(f"{key} is {config}; expected a finite number")
    if isinstance(config, list | tuple):
        config = dict(enumerate(config))
    for name, value in config.items() if isinstance(config, Mapping) else ():
        check_numbers(value, f"{key}.{name}" if key else str(name))


def save_config(config: Any, path: str | os.PathLike) -> None:
    """Writes every setting as YAML that `load_config` reads back to an equal dataclass; whole file or none."""
    with atomic_path(path) as temporary:
        temporary.write_text(yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True), encoding="utf-8")


def settings_help(cls: type, section: str = "") -> str:
    """Every setting of a dataclass, a line each: name, type, default and the comment that stands at its field."""
    lines = []
    hints, texts = typing.get_type_hints(cls), field_comments(cls)
    for each in dataclasses.fields(cls):
        key, hint = f"{section}{each.name}", hints[each.name]
        if dataclasses.is_dataclass(hint):
            lines.append(settings_help(hint, f"{key}."))
            continue
        if each.default_factory is not dataclasses.MISSING:
            default = f" = {_plain(each.default_factory())!r}"
        else:
            default = " (required)" if each.default is dataclasses.MISSING else f" = {_plain(each.default)!r}"
        text = f"\n      {texts[each.name]}" if texts.get(each.name) else ""
        lines.append(f"  {key}: {_type_name(hint)}{default}{text}")
    return "\n".join(lines)


def field_comments(cls: type) -> dict[str, str]:
    """{field: its comment} of a dataclass and its bases: behind the field, or else in the lines above it."""
    comments: dict[str, str] = {}
    for kind in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(kind):
            continue
        try:
            lines = textwrap.dedent(inspect.getsource(kind)).splitlines()
        except OSError:  # a class of a program without its source, or of one that runs inside another
            continue
        for node in ast.parse("\n".join(lines)).body[0].body:
            if not isinstance(node, ast.AnnAssign):
                continue
            behind = [_comment(line) for line in lines[node.lineno - 1 : node.end_lineno]]
            first = node.lineno - 1
            while lines[first - 1].strip().startswith("#"):
                first -= 1
            above = [_comment(line) for line in lines[first : node.lineno - 1]]
            comments[node.target.id] = " ".join(text for text in (behind if any(behind) else above) if text)
    return comments


def _comment(line: str) -> str:
    """What stands behind the first # of a line that is in no quotes; "" where there is none."""
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(line).readline))
    except (tokenize.TokenError, IndentationError):  # a line of a longer statement
        return line.partition("  # ")[2].strip()
    return next((token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT), "")


def _plain(value: Any) -> Any:
    if isinstance(value, _CommandLineValue):
        return _plain(value.value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value


def _build(cls: type[Config], tree: Any, where: str, section: str) -> Config:
    if isinstance(tree, _CommandLineValue):
        tree = tree.value
    if not isinstance(tree, Mapping):
        raise ValueError(f"{where}: {section or 'top level'}: expected a section (key: value lines), got {tree!r}")
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    check_keys(tree, fields, f"{where}: {section}" if section else where)
    hints = typing.get_type_hints(cls)
    values = {}
    for name, field in fields.items():
        key = f"{section}.{name}" if section else name
        if name in tree:
            none = _plain(tree[name]) is None and field.default == ""  # null says what an empty text says
            values[name] = "" if none else _convert(tree[name], hints[name], where, key)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{where}: {key!r} is missing; it has no default, set it in the YAML or with {key}=VALUE")
    try:
        return cls(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {section + ': ' if section else ''}{error}") from error


def _convert(value: Any, hint: Any, where: str, key: str) -> Any:
    """`value` as the type `hint`, or ValueError."""
    text = None
    if isinstance(value, _CommandLineValue):
        value, text = value.value, value.text
        where = "command line"
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)

    def wrong() -> ValueError:
        return ValueError(
            f"{where}: {key}: expected {_type_name(hint)}, got {_plain(value)!r} ({type(value).__name__})"
        )

    if hint is Any:
        return _plain(value)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        errors = []
        for option in sorted(arguments, key=lambda option: option is str):  # str last: it takes any command-line text
            if option is type(None):
                continue
            try:
                return _convert(value if text is None else _CommandLineValue(value, text), option, where, key)
            except ValueError as error:
                if isinstance(value, list) and typing.get_origin(option) is list:
                    raise  # it knows which entry is wrong
                errors.append(error)
        if len(errors) == 1 or (isinstance(value, Mapping) and errors):
            raise errors[0]
        raise wrong()
    if origin is typing.Literal:
        for choice in arguments:
            if type(choice) is type(value) and choice == value or choice == text:
                return choice
        choices = ", ".join(repr(a) for a in arguments)
        raise ValueError(f"{where}: {key}: {value!r} is not one of {choices}.{suggestion(value, arguments)}")
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, where, key)
    if origin in (list, tuple) or hint in (list, tuple):
        return _convert_sequence(value, origin or hint, arguments, where, key, wrong)
    if origin in (dict, Mapping) or hint in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise wrong()
        if not arguments:
            return _plain(value)
        return {name: _convert(item, arguments[1], where, f"{key}.{name}") for name, item in value.items()}
    if hint is str:
        if isinstance(value, str):
            return value
        if text is not None and value is not None:
            return text
        raise wrong()
    if hint is Path:
        if isinstance(value, (str, Path)):
            return Path(value)
        raise wrong()
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and isinstance(value, hint) and isinstance(value, bool) == (hint is bool):
        return value
    raise wrong()


def _convert_sequence(value, kind, arguments, where, key, wrong):
    if not isinstance(value, (list, tuple)):
        raise wrong()
    if kind is tuple and arguments and arguments[-1] is not Ellipsis:
        if len(value) != len(arguments):
            raise wrong()
        hints = arguments
    else:
        hints = [arguments[0] if arguments else Any] * len(value)
    return kind(
        _convert(item, hint, where, f"{key}[{i}]") for i, (item, hint) in enumerate(zip(value, hints, strict=True))
    )


def _type_name(hint: Any) -> str:
    if hint is type(None):
        return "null"
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return " or ".join(_type_name(option) for option in typing.get_args(hint))
    if typing.get_origin(hint) is not None:
        return str(hint).replace("typing.", "")
    return getattr(hint, "__name__", str(hint))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
