"""Word lists: tags, attributes and categories, their texts for the text encoder, and their hashes."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from dynrefer.errors import suggestion
from dynrefer.files import read_text

# Synonyms that the attribute list itself does not spell out (OVAD's evaluation adds them).
EXTRA_SYNONYMS = {
    "young/baby": ("kid", "kids", "child", "toddler", "boy", "girl"),
    "adult/old/aged": ("teen", "elder"),
}
ATTRIBUTE_TEMPLATES = {
    "is": ("the {attribute} {noun}", "the {noun} is {attribute}"),
    "has": ("the {attribute} {type} {noun}", "the {noun} has {attribute} {type}"),
}


class Vocabulary:
    """Names <-> ids of one word list. `hash` changes whenever a word or the order does.

    >>> Vocabulary(["cup", "lamp"]).ids(["lamp"])
    [1]
    """

    def __init__(self, words: Sequence[str], kind: str = "word"):
        self.words, self.kind = tuple(words), kind
        repeated = [word for word, count in Counter(self.words).items() if count > 1]
        if repeated:
            raise ValueError(
                f"{kind} list: {repeated[0]!r} stands in it {Counter(words)[repeated[0]]} times; once each"
            )
        self.index = {word: i for i, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    def ids(self, words: Iterable[str]) -> list[int]:
        """Ids in the order given; ValueError with the nearest word for an unknown one."""
        ids = []
        for word in words:
            if word not in self.index:
                raise ValueError(
                    f"unknown {self.kind} {word!r}: not among the {len(self)} of this list."
                    f"{suggestion(word, self.words)}"
                )
            ids.append(self.index[word])
        return ids

    @property
    def hash(self) -> str:
        return text_hash(self.words)


def text_hash(texts: Sequence[str]) -> str:
    """Sixteen hex digits of the texts in their order."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def read_words(source: str | Path | Sequence[str]) -> list[str]:
    """A list of names: a text file with one a line, a JSON list (of names or of {"name"}), or the list itself."""
    if not isinstance(source, str | Path):
        return [str(word) for word in source]
    path = Path(source)
    if not path.is_file():
        raise ValueError(f"word list {str(path)!r}: no such file; expected one name a line, or a JSON list of names")
    text = read_text(path, "word list")
    if path.suffix != ".json":
        return [line.strip() for line in text.splitlines() if line.strip()]
    entries = read_json(text, path, "word list")
    entries = entries.get("categories") if isinstance(entries, dict) else entries
    names = [entry.get("name") if isinstance(entry, dict) else entry for entry in entries or ()]
    if not isinstance(entries, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f'word list {str(path)!r}: expected a list of names, or of {{"name": ...}}')
    return names


def read_json(text: str, path: Path, kind: str):
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{kind} {str(path)!r}: not JSON ({error})") from error


def read_attributes(source: str | Path | Sequence) -> list[dict]:
    """Attributes in OVAD's format: {"attributes": [{"name": "color:red", "type", "is_has_att"}]} or the bare list.

    A plain list of names, "type:word" or just "word", is read too. Returns dicts with name, type, is_has_att.
    """
    entries = source
    if isinstance(source, str | Path):
        path = Path(source)
        if not path.is_file():
            raise ValueError(f"attribute list {str(path)!r}: no such file; expected OVAD's JSON or one name a line")
        if path.suffix == ".json":
            entries = read_json(read_text(path, "attribute list"), path, "attribute list")
        else:
            entries = read_words(path)
    if isinstance(entries, dict):
        entries = entries.get("attributes")
    if not isinstance(entries, list | tuple):
        raise ValueError('attribute list: expected a list of attributes, or OVAD\'s {"attributes": [{"name": ...}]}')
    attributes = []
    for entry in entries:
        entry = {"name": entry} if isinstance(entry, str) else entry
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise ValueError(f'attribute {entry!r}: expected a name, or {{"name": "color:red", "type", "is_has_att"}}')
        kind = entry.get("type") or (entry["name"].split(":")[0] if ":" in entry["name"] else "")
        how = entry.get("is_has_att", "is")
        if how not in ATTRIBUTE_TEMPLATES:
            raise ValueError(f"attribute {entry['name']!r}: is_has_att is {how!r}, expected 'is' or 'has'")
        attributes.append({"name": entry["name"], "type": kind, "is_has_att": how})
    Vocabulary([entry["name"] for entry in attributes], "attribute")
    return attributes


def attribute_texts(attributes: Sequence[dict]) -> tuple[list[str], list[int]]:
    """Texts of every attribute, and the attribute that each text belongs to.

    "color:red/reddish" of the has-type gives "the red color", "the  has red color", "the reddish color", ...:
    attributes, then synonyms, then templates (DynRefer's released templates; the noun is empty).
    """
    texts, owners = [], []
    for i, attribute in enumerate(attributes):
        words = attribute["name"].split(":", 1)[-1]
        kind = attribute["type"].replace(" tone", "")
        for word in (*words.split("/"), *EXTRA_SYNONYMS.get(words, ())):
            for template in ATTRIBUTE_TEMPLATES[attribute["is_has_att"]]:
                texts.append(template.format(attribute=word, type=kind, noun="").strip())
                owners.append(i)
    return texts, owners


def category_texts(categories: Sequence[str]) -> list[str]:
    """ "the {name}" in lower case, one a category."""
    return [f"the {name}".lower() for name in categories]


def words_of_records(records: Iterable, field: str, min_count: int = 1) -> list[str]:
    """The words of a field of the records ("tags", "category", "attributes") that occur often enough, sorted."""
    counts: Counter[str] = Counter()
    for record in records:
        value = getattr(record, field)
        counts.update([value] if isinstance(value, str) else list(value or ()))  # a mapping's names, not its numbers
    return sorted(word for word, count in counts.items() if count >= min_count)
