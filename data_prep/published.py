"""What the makers of data sets publish about their numbers, as records have them."""

from data_prep import coco_datasets, openimages, refcoco, visual_genome

COUNTED_AS = {
    **{name: "records" for name in ("annotations", "regions", "boxes")},
    **{name: "captions" for name in ("captions", "expressions")},
}


def published_counts(name: str) -> dict[str, int]:
    """Records, images and captions of "DATASET:SPLIT" ("coco:val") that its makers publish, as the converters have
    them. ValueError names those that are known."""
    known = _published()
    if name not in known:
        raise ValueError(f"--counts {name}: no published counts of that name; known are {', '.join(sorted(known))}")
    return known[name]


def _published() -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for dataset, row in coco_datasets.DATASETS.items():
        found.update({f"{dataset}:{split}": dict(counts) for split, counts in row.published.items()})
    found.update({f"openimages:{split}": dict(counts) for split, counts in openimages.PUBLISHED.items()})
    for dataset, splits in refcoco.PUBLISHED.items():
        found.update(
            {f"{dataset}:{split}": dict(zip(refcoco.COUNTED, row, strict=True)) for split, row in splits.items()}
        )
    found.update({f"visual-genome-{name}:{split}": row for (name, split), row in visual_genome.CAPTIONED.items()})
    return {name: counts for name, row in found.items() if (counts := _of_records(row))}


def _of_records(published: dict[str, int]) -> dict[str, int]:
    """The counts that records have too. A photo without annotations has no record."""
    counts = {COUNTED_AS[key]: count for key, count in published.items() if key in COUNTED_AS}
    if images := published.get("images with annotations", published.get("images")):
        counts["images"] = images
    return counts
