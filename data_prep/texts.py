"""Texts of regions in users' own data: under which keys they stand, and what was not read is told."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from data_prep.counts import BadEntry, Undecided
from dynrefer.data.records import whole_text
from dynrefer.errors import cut, suggestion

TEXT_KEY = "where texts stand (default: caption, description, text and the like; a.b leads into a)"

# keys whose meaning is clear, the likeliest first; the first that has a text counts
TEXT_KEYS = (
    *("captions", "caption", "descriptions", "description", "phrases", "phrase", "sentences", "sentence"),
    *("expressions", "expression", "referring_expression", "text", "texts"),
)
INSIDE = ("sent", "raw", "sentence", "caption", "text", "phrase", "description")  # of a text that is an object
PLACES = ("attributes", "meta")  # objects in which programs keep what annotators typed


class TextKeys:
    """Texts of entries under --text-key, or else under the first usual key that has one; also within `attributes` and
    `meta`, objects or lists of {"name", "value"}. given: the keys of --text-key ("attributes.note" leads inside).
    ignored: keys of the format, which are no texts. Other texts are counted by their key."""

    def __init__(self, counts: Counter, given: Sequence[str] = (), ignored: Sequence[str] = ()):
        self._counts, self._given, self._ignored = counts, tuple(given), frozenset((*ignored, *PLACES))
        self._keys = self._given or [
            f"{place}{name}" for name in TEXT_KEYS for place in ("", *(f"{p}." for p in PLACES))
        ]
        self._missing, self._seen = set(given), set()

    def read(self, entry: dict, where: str) -> list[str]:
        """Each text once, without blanks around it. BadEntry for a key of texts with something else."""
        values = dict(_values(entry))
        self._seen.update(values)
        self._missing -= values.keys()
        used: dict[str, list[str]] = {}
        for key in self._keys:
            if key in values and (texts := texts_of(values[key], key, where)):
                used[key] = texts
                if not self._given:
                    break
        for key, value in values.items():
            if key not in used and key not in self._ignored and _is_text(value):
                self._counts[f"texts not read: {key} (--text-key {key} takes them)"] += 1
        return list(dict.fromkeys(text for texts in used.values() for text in texts))

    def check(self, file: str) -> None:
        """Undecided where a key of --text-key stood nowhere."""
        if self._missing:
            key = sorted(self._missing)[0]
            raise Undecided(
                f"{file}: nothing under {key!r} (--text-key).{suggestion(key, self._seen)} Keys: "
                f"{cut(', '.join(sorted(self._seen)), 300)}"
            )


def texts_of(value: Any, key: str, where: str) -> list[str]:
    """The texts of a text, or of a list of texts or of objects with one (RefCOCO's {"sent": ...}); missing values, NaN
    among them, are none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return []
    entries = value if isinstance(value, list) else [value]
    entries = [_inside(entry) if isinstance(entry, dict) else entry for entry in entries]
    if not all(isinstance(text, str) for text in entries):
        raise BadEntry(f"{where}: {key} {cut(repr(value))}: expected a text or a list of texts")
    for text in entries:
        whole_text(text, f"{where}: {key}")
    return [text for text in (" ".join(text.split()) for text in entries) if text]


def _inside(entry: dict) -> Any:
    return next((entry[key] for key in INSIDE if isinstance(entry.get(key), str)), entry)


def _values(entry: dict) -> Iterator[tuple[str, Any]]:
    for key, value in entry.items():
        yield key, value
        if isinstance(value, dict):
            yield from ((f"{key}.{name}", inner) for name, inner in value.items())
        if isinstance(value, list) and key in PLACES:  # [{"name": "description", "value": "a cup"}]
            named = (item for item in value if isinstance(item, dict))
            yield from ((f"{key}.{item['name']}", item.get("value")) for item in named if item.get("name"))


def _is_text(value: Any) -> bool:
    texts = value if isinstance(value, list) else [value]
    return bool(texts) and all(isinstance(text, str) and any(map(str.isalpha, text)) for text in texts)
