"""What a score is measured against: captions that need no look at the picture, and people."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

from dynrefer.data.records import Region

from .metrics.captions import lower_tokens


def coarse_type(region: Region) -> str | None:
    """The true category; where there are several, the first of those that `source` ends with: "SOURCE:scene+other"."""
    return region.category or region.source.partition(":")[2].split("+")[0] or None


def commonest_captions(
    train: Sequence[Region], key: Callable[[Region], str | None] = lambda region: None
) -> dict[str | None, str]:
    """The commonest reference caption (lower-cased, no punctuation) of each group of regions, the group named by `key`.

    A caption that occurs earlier wins a tie. The entry None is the commonest of all.
    """
    counts: defaultdict[str | None, Counter[str]] = defaultdict(Counter)
    for region in train:
        captions = [caption for caption in lower_tokens(region.captions) if caption]
        for group in {key(region), None}:
            counts[group].update(captions)
    if not counts[None]:
        raise ValueError("the training records have no captions; baselines need some, name others with --train-data")
    return {group: captions.most_common(1)[0][0] for group, captions in counts.items() if captions}


def constant_caption(train: Sequence[Region], regions: Sequence[Region]) -> dict[str, str]:
    """{region id: the commonest caption of the training records}."""
    caption = commonest_captions(train)[None]
    return {region.id: caption for region in regions}


def true_type_template(train: Sequence[Region], regions: Sequence[Region]) -> dict[str, str]:
    """{region id: the commonest training caption of the region's true category}: an oracle for the category."""
    captions = commonest_captions(train, coarse_type)
    return {region.id: captions.get(coarse_type(region), captions[None]) for region in regions}


def one_human(references: Mapping[str, Sequence[str]]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """(first reference as a prediction, the others as references), of the regions with at least two."""
    several = {region_id: texts for region_id, texts in references.items() if len(texts) > 1}
    return {i: texts[0] for i, texts in several.items()}, {i: list(texts[1:]) for i, texts in several.items()}
