"""Words of the records beside the word lists of their folder: those spelt unlike the list count as mistakes of a model
later, so `data_prep.check` names them."""

from collections.abc import Iterator
from pathlib import Path

from dynrefer.data.records import Region, record_root
from dynrefer.errors import suggestion
from dynrefer.vocabulary import read_attributes, read_words

MAX_TOLD = 20  # words of a field that are named, the others are counted
LISTS = {
    "category": ("categories.txt", "categories.json"),
    "tag": ("tags.txt", "tags.json"),
    "attribute": ("attributes.json", "attributes.txt"),
}


class Words:
    """Categories, tags and attributes that occurred: how often, and the first line."""

    def __init__(self) -> None:
        self._seen: dict[str, dict[str, list[int]]] = {field: {} for field in LISTS}  # word -> [first line, count]

    def add(self, line: int, region: Region) -> None:
        if region.category is not None:
            self._seen["category"].setdefault(region.category, [line, 0])[1] += 1
        for field, words in (("tag", region.tags or ()), ("attribute", region.attributes)):
            for word in words:
                self._seen[field].setdefault(word, [line, 0])[1] += 1

    def problems(self, path: Path) -> Iterator[tuple[int, str]]:
        """(line, text) of each category that the list beside the records has not, or not so; of other words only where
        the list has one that is spelt almost so. Where there is no list: of each that a more frequent word is alike."""
        for field, seen in self._seen.items():
            if not seen:
                continue
            name, listed = _list_of(field, record_root(path))
            if isinstance(listed, str):
                yield 0, listed
                continue
            known = sorted(seen, key=lambda word: -seen[word][1]) if listed is None else listed
            alike: dict[str, str] = {}
            for word in known:
                alike.setdefault(_plain(word), word)
            exact, found = frozenset(listed or ()), []
            for word, (line, count) in seen.items():
                other = alike.get(_plain(word))
                if word in exact or other == word or (other is None and (field != "category" or listed is None)):
                    continue
                where = f"the list {name} beside it" if listed is not None else f"other records ({seen[other][1]})"
                hint = f" has {other!r}" if other is not None else f" has no such word.{suggestion(word, known)}"
                found.append((line, f"{field} {word!r} of {count} region{'s' * (count != 1)}: {where}{hint}"))
            yield from found[:MAX_TOLD]
            if len(found) > MAX_TOLD:
                yield 0, f"{len(found) - MAX_TOLD} more words of that kind ({field}), not told"


def _list_of(field: str, folder: Path) -> tuple[str, list[str] | str | None]:
    """(file name, words) of the list beside the records; no words where there is none, what is wrong with it if so."""
    for name in LISTS[field]:
        if (folder / name).is_file():
            try:
                if field == "attribute":
                    return name, [entry["name"] for entry in read_attributes(folder / name)]
                return name, read_words(folder / name)
            except ValueError as error:
                return name, f"{error}"
    return "", None


def _plain(word: str) -> str:
    """What words that are meant alike share: letters without their case, blanks and hyphens."""
    return " ".join(word.casefold().replace("_", " ").replace("-", " ").split())
