r"""Tags from captions: the nouns, adjectives and noun groups of a text that a tag vocabulary knows, offline.

    python -m data_prep.tags --records train.jsonl --vocabulary ram_tag_list.txt --out tagged/train.jsonl
    python -m data_prep.tags --records train.jsonl --make-vocabulary 2000 --out tagged/train.jsonl
    python -m data_prep.tags --score tests/fixtures/tags/checked.jsonl --vocabulary tests/fixtures/tags/vocabulary.txt

A vocabulary is a word list, one tag a line; "couch, sofa" is the tag couch, which sofa means too. Without one,
--make-vocabulary N takes the N commonest words and noun groups of the captions themselves. The tags' names, in the
vocabulary's order, go to tags.txt beside --out. Records with tags of their own keep them unless --replace; one without
captions stays without tags (not annotated), one whose captions name none of the vocabulary has none ([]).

The longest group that the vocabulary knows counts: a "tennis racket" is no "tennis". Words count in the singular, with
or without hyphens and blanks ("tee-shirt", "surf board"), and with common synonyms where the vocabulary lacks the word
itself. What is not there ("without a hat"), what only says where ("on top of") and verbs ("watches a game") count not.
"""

import argparse
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import yaml

from data_prep.converter import write, write_list
from data_prep.counts import tell
from data_prep.shard import regions
from dynrefer.data.records import Region, record_root
from dynrefer.errors import Parser, run_command
from dynrefer.files import read_jsonl
from dynrefer.vocabulary import read_words

WORDS: dict[str, str] = yaml.safe_load(Path(__file__).with_name("tag_words.yaml").read_text(encoding="utf-8"))
IDIOMS = frozenset(" ".join(idiom.split()) for idiom in WORDS["idioms"].split("|"))
DETERMINERS, PRONOUNS, PREPOSITIONS, AGENTS, VERBS, COLOURS, SHADES, KEEP_PLURAL = (
    frozenset(WORDS[key].split())
    for key in (
        "determiners",
        "pronouns",
        "prepositions",
        "agents",
        "verbs",
        "colours",
        "shades",
        "keep_plural",
    )
)
FUNCTION_WORDS = DETERMINERS | PRONOUNS | PREPOSITIONS | frozenset(WORDS["other_function_words"].split())
NEGATIONS = frozenset(("no", "not", "without"))
ENDS_NEGATION = (PREPOSITIONS - {"of"}) | {"and", "but", "is", "are"}
MAX_WORDS = 5  # of a group that is looked for

_TOKEN = re.compile(r"[^\W_]+(?:['’][^\W_]+)*|[^\s\w'’-]")
_POSSESSIVE = re.compile(r"['’]s?$")


def caption_tags(captions: Sequence[str], vocabulary: "TagVocabulary | Sequence[str]") -> tuple[str, ...]:
    """Tags that captions of one region name, in the order of the vocabulary, each once.

    vocabulary: tag lines ("couch, sofa" is one tag with a synonym), or a `TagVocabulary` of them, which many calls
    should share.

    >>> caption_tags(["Two men's bikes on top of a grey car"], ["bicycle", "car", "gray", "man", "top"])
    ('bicycle', 'car', 'gray', 'man')
    """
    if not isinstance(vocabulary, TagVocabulary):
        vocabulary = TagVocabulary(vocabulary)
    found = {number for caption in captions for number in vocabulary.find(caption)}
    return tuple(vocabulary.names[number] for number in sorted(found))


class TagVocabulary:
    """Tags and the ways in which texts say them. lines: a tag each, "name" or "name, synonym, ...".

    ValueError for a list that is empty or names a tag twice.
    """

    def __init__(self, lines: Iterable[str]):
        entries = [[part.strip() for part in line.split(",") if part.strip()] for line in lines if line.strip(" ,\n")]
        self.names = [entry[0] for entry in entries]
        if not self.names:
            raise ValueError("tag vocabulary: no tags in it; expected one a line")
        if twice := [name for name, count in Counter(self.names).items() if count > 1]:
            raise ValueError(f"tag vocabulary: {twice[0]!r} stands in it more than once; once each")
        self._numbers: dict[str, int] = {}
        spoken = [[words for part in entry if (words := _words(part))] for entry in entries]
        for form in (_as_it_is, _last_singular, _compact):  # "glasses" is "glass" only where neither is a tag itself
            for number, groups in enumerate(spoken):
                for words in groups:
                    for text in form(words):
                        self._numbers.setdefault(text, number)
        self._longest = min(MAX_WORDS, 1 + max(text.count(" ") for text in self._numbers))
        self._known: dict[tuple[str, ...], int | None] = {}

    def __len__(self) -> int:
        return len(self.names)

    def find(self, caption: str) -> Iterator[int]:
        """Numbers of the tags that a caption names, in its order."""
        for words in _segments(caption):
            yield from self._find(words)

    def _find(self, words: list[str]) -> Iterator[int]:
        place = 0
        while place < len(words):
            if skipped := _skip(words, place):
                place += skipped
                continue
            for count in range(min(MAX_WORDS, len(words) - place), 0, -1):
                number = self._lookup(tuple(words[place : place + count]))
                if number is not None and not (count == 1 and _says_something_else(words, place)):
                    yield number
                    place += count
                    break
            else:
                place += 1

    def _lookup(self, words: tuple[str, ...]) -> int | None:
        if words not in self._known:
            if len(self._known) > 1_000_000:
                self._known.clear()
            self._known[words] = self._meaning(list(words))
        return self._known[words]

    def _meaning(self, words: list[str]) -> int | None:
        """The tag of a group of words, itself or a synonym of it."""
        plain = " ".join(words)
        if plain in self._numbers:
            return self._numbers[plain]
        if words[0] in FUNCTION_WORDS or words[-1] in FUNCTION_WORDS:
            return None
        texts = [plain, *_last_singular(words)]
        if len(words) == 2 and "ADJ" not in _lemmas(words[0]):  # surf board; but a black bird is no blackbird
            texts += [text for form in texts[: len(texts)] for text in _compact(form.split())]
        for text in texts:
            for candidate in (text, *_synonyms().get(text, ())):
                if candidate in self._numbers:
                    return self._numbers[candidate]
        return None


def make_vocabulary(captions: Iterable[str], size: int) -> list[str]:
    """The `size` commonest nouns, adjectives and noun groups of captions, commonest first.

    A group of two words counts where it makes up a fifth or more of what the rarer of them is used for.
    """
    singles: Counter[str] = Counter()
    pairs: Counter[tuple[str, str]] = Counter()
    for caption in captions:
        for words in _segments(caption):
            place, before = 0, None
            while place < len(words):
                if skipped := _skip(words, place):
                    place, before = place + skipped, None
                    continue
                word = _content_word(words, place)
                if word is not None:
                    singles[word] += 1
                    if before is not None and "NOUN" in _lemmas(word):
                        pairs[before, word] += 1
                before = words[place] if word is not None and words[place] not in COLOURS else None
                place += 1
    counts = Counter(singles)
    for (first, second), count in pairs.items():
        rarer = min(singles[_base_form(first)], singles[second])
        if count >= 3 and count >= rarer / 5 and "NOUN" in _lemmas(first) and "ADJ" not in _lemmas(first):
            counts[f"{first} {second}"] = count
    return [word for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:size]]


# --- words ---------------------------------------------------------------------------------------------------------


def _segments(caption: str) -> list[list[str]]:
    """The words of a caption, lower-case, without 's, cut at punctuation."""
    segments: list[list[str]] = [[]]
    for token in _TOKEN.findall(caption.lower()):
        if token[0].isalnum():
            if word := _POSSESSIVE.sub("", token):
                segments[-1].append(word)
        else:
            segments.append([])
    return [words for words in segments if words]


def _words(text: str) -> list[str]:
    return [word for words in _segments(text) for word in words]


def _as_it_is(words: list[str]) -> list[str]:
    return [" ".join(words)]


def _last_singular(words: list[str]) -> list[str]:
    """The group with its last word as a dictionary has it, nouns before adjectives."""
    *first, last = words
    if last in KEEP_PLURAL and not first:
        return []
    return [" ".join([*first, lemma]) for lemma in _base_forms(last)]


def _compact(words: list[str]) -> list[str]:
    return ["".join(form.split()) for form in (" ".join(words), *_last_singular(words))] if len(words) < 3 else []


@lru_cache(maxsize=100_000)
def _lemmas(word: str) -> dict[str, tuple[str, ...]]:
    from lemminflect import getAllLemmas

    return getAllLemmas(word)


@lru_cache(maxsize=100_000)
def _base_forms(word: str) -> tuple[str, ...]:
    """Singulars of a noun, the positive of an adjective; () where there are none but the word."""
    lemmas = _lemmas(word)
    if lemmas:
        found = lemmas.get("NOUN") or lemmas.get("ADJ", ())  # a number is a noun, not more numb
        found = found[::-1] if word.endswith("ves") else found  # leaves: leave, leaf
    else:  # a name or a slip: its singular by rule
        from lemminflect import getAllLemmasOOV

        found = getAllLemmasOOV(word, upos="NOUN").get("NOUN", ()) if word.endswith("s") and len(word) > 3 else ()
    return tuple(lemma for lemma in dict.fromkeys(found) if lemma != word)


def _base_form(word: str) -> str:
    """The word that a vocabulary would have."""
    forms = _base_forms(word)
    return word if not forms or word in KEEP_PLURAL or word in _lemmas(word).get("NOUN", ()) else forms[0]


@lru_cache(maxsize=1)
def _synonyms() -> dict[str, tuple[str, ...]]:
    """Text -> what may stand for it, best first. In the form that captions are brought into."""
    found: dict[str, list[str]] = {}
    for group in re.split(r"[;\n]", WORDS["equal"]):
        words = [" ".join(_words(word)) for word in group.split("=") if word.strip()]
        for word in words:
            found.setdefault(word, []).extend(other for other in words if other != word)
    for group in re.split(r"[;\n]", WORDS["kinds"]):
        whole, _, kinds = group.partition("<")
        whole = " ".join(_words(whole))
        for kind in kinds.split(","):
            if kind := " ".join(_words(kind)):
                equal = [other for other in found.get(whole, ()) if other != kind]
                found.setdefault(kind, []).extend([whole, *equal])
    return {word: tuple(dict.fromkeys(others)) for word, others in found.items()}


# --- what a word does in its sentence ---------------------------------------------------------------------------------


def _skip(words: list[str], place: int) -> int:
    """How many words from here on name nothing that is there: "on top of", "without a hat"."""
    for count in range(min(5, len(words) - place), 1, -1):
        if " ".join(words[place : place + count]) in IDIOMS:
            return count
    if words[place] in NEGATIONS and not (place and words[place - 1] in DETERMINERS):  # "a no parking sign"
        end = place + 1
        while end < len(words) and words[end] not in ENDS_NEGATION:
            end += 1
        return end - place
    return 0


def _says_something_else(words: list[str], place: int) -> bool:
    """Whether a single word is a verb here, or the shade of a colour."""
    word = words[place]
    before = words[place - 1] if place else ""
    behind = words[place + 1] if place + 1 < len(words) else ""
    if word in SHADES and behind in COLOURS:
        return True
    verb = _lemmas(word).get("VERB", ())
    if not verb or before in DETERMINERS:
        return False
    if word.endswith("ing") and verb[0] != word:
        return behind in DETERMINERS | PRONOUNS and "ADJ" not in _lemmas(before) and before not in PREPOSITIONS
    if verb[0] not in VERBS:
        return False
    if before in PRONOUNS:
        return True
    agents = _base_forms(before)
    if word == verb[0]:  # "two men watch"; "to ride"
        return before == "people" or not AGENTS.isdisjoint(agents) or (before == "to" and behind != "")
    return before in AGENTS  # "a man watches"


def _content_word(words: list[str], place: int) -> str | None:
    """A noun's singular or an adjective; None for what a vocabulary does not want."""
    word = words[place]
    if word in FUNCTION_WORDS or len(word) < 3 or not word.isalpha() or _says_something_else(words, place):
        return None
    lemmas = _lemmas(word)
    if lemmas and "NOUN" not in lemmas and "ADJ" not in lemmas:
        return None
    if word.endswith("ing") and lemmas.get("VERB") and (not place or words[place - 1] not in DETERMINERS):
        return None
    return _base_form(word)


# --- the command ---------------------------------------------------------------------------------------------------


def score(path: str | os.PathLike, vocabulary: TagVocabulary) -> dict[str, dict[str, float]]:
    """Split -> precision, recall, F1 and counts of the tags found in captions against those checked by hand.

    path: JSON lines of {"captions": [...], "tags": [...], "split": "..."}; a record file will do.
    """
    counts: dict[str, Counter[str]] = {}
    for line, row in read_jsonl(path):
        if (
            not isinstance(row, dict)
            or not isinstance(row.get("tags"), list)
            or not isinstance(row.get("captions"), list)
        ):
            raise ValueError(f"{path}:{line}: expected captions and tags, two lists of texts")
        said, right = set(caption_tags(row["captions"], vocabulary)), set(row["tags"])
        if unknown := sorted(right - set(vocabulary.names)):
            raise ValueError(f"{path}:{line}: tag {unknown[0]!r} is not in the vocabulary")
        for name in (row.get("split") or "all",):
            counts.setdefault(name, Counter()).update(
                texts=1, right=len(said & right), wrong=len(said - right), missed=len(right - said)
            )
    if not counts:
        raise ValueError(f"{path}: nothing in it; expected JSON lines with captions and tags")
    return {name: {**_rates(count), **count} for name, count in counts.items()}


def _rates(count: Counter[str]) -> dict[str, float]:
    precision = count["right"] / max(1, count["right"] + count["wrong"])
    recall = count["right"] / max(1, count["right"] + count["missed"])
    return {"precision": precision, "recall": recall, "f1": 2 * precision * recall / max(1e-9, precision + recall)}


def tagged(path: Path, out: Path, vocabulary: TagVocabulary, counts: Counter, keep: bool = True) -> Iterator[Region]:
    """The records of a file with tags of their captions, image paths as a record file at `out` says them. keep: tags
    that a record has already stay."""
    for region in regions([path], record_root(out)):
        tags = region.tags
        if tags is not None and keep:
            counts["records that had tags, kept"] += 1
        elif not region.captions:
            counts["records without captions, left as they are"] += 1
        else:
            counts["records whose tags were replaced"] += tags is not None
            tags = caption_tags(region.captions, vocabulary)
            counts["records tagged from their captions"] += 1
            counts["records whose captions name no tag"] += not tags
            counts["tags"] += len(tags)
        yield replace(region, tags=tags)


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m data_prep.tags", description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=Path, help="record file whose captions are read")
    parser.add_argument("--out", type=Path, help="record file to write: .jsonl, .jsonl.gz, or an Arrow folder")
    words = parser.add_mutually_exclusive_group(required=True)
    words.add_argument("--vocabulary", type=Path, help="word list, a tag a line, or a JSON list")
    words.add_argument("--make-vocabulary", type=int, metavar="N", help="the N commonest words of the captions")
    parser.add_argument("--replace", action="store_true", help="replace tags that records have already")
    parser.add_argument("--score", type=Path, metavar="FILE", help="only measure: texts with tags checked by hand")
    return run_command("data_prep.tags", _run, parser.parse_args(argv))


def _run(args: argparse.Namespace) -> None:
    if args.score:
        if not args.vocabulary:
            raise ValueError("--score: measured with the vocabulary that was checked; give --vocabulary")
        for name, row in score(args.score, TagVocabulary(read_words(args.vocabulary))).items():
            print(
                f"{name}: precision {row['precision']:.3f}, recall {row['recall']:.3f}, F1 {row['f1']:.3f} "
                f"({row['texts']} texts, {row['right'] + row['missed']} tags)"
            )
        return
    if not args.records or not args.out:
        raise ValueError("--records and --out are needed (or --score)")
    if args.vocabulary:
        vocabulary = TagVocabulary(read_words(args.vocabulary))
    elif args.make_vocabulary < 1:
        raise ValueError(f"--make-vocabulary {args.make_vocabulary}: expected 1 or more")
    else:
        texts = (caption for region in regions([args.records], args.out.parent) for caption in region.captions)
        found = make_vocabulary(texts, args.make_vocabulary)
        if not found:
            raise ValueError(f"{args.records}: no captions with words in it to make a vocabulary of")
        vocabulary = TagVocabulary(found)
    names = args.out.absolute().parent / "tags.txt"
    write_list(names, vocabulary.names, check_only=True)
    counts: Counter[str] = Counter()
    rows = tagged(args.records, args.out, vocabulary, counts, keep=not args.replace)
    counts["records"] = write(args.out, rows, counts)
    write_list(names, vocabulary.names)
    tell(args.out, {**{name: count for name, count in counts.items() if count}, "tags in the list": len(vocabulary)})


if __name__ == "__main__":
    sys.exit(main())
