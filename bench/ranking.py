"""Words of a long list ranked by their scores, beside the plain way: one region at a time, word by word."""

import torch

from dynrefer.models.ranking import ranked

from .timing import Budget, Result, compare

REGIONS, WORDS, ABOVE = 64, 4585, 0.7  # a batch, the published tag list and its threshold


def ranked_tags(budget: Budget) -> Result:
    """Tags above 0.7 of 64 regions, 4,585 scores each, of which some 1 in 100 lies above."""
    names = [f"tag {number}" for number in range(WORDS)]
    logits = torch.randn(REGIONS, WORDS, generator=torch.Generator().manual_seed(0)) * 2 - 4
    scores = logits.sigmoid()
    found: dict[str, list] = {}

    def plain() -> int:
        found["plain"] = []
        for row in scores:
            chosen = [i for i in row.argsort(descending=True, stable=True).tolist() if row[i] > ABOVE]
            found["plain"].append([{"name": names[i], "score": float(row[i])} for i in chosen])
        return REGIONS

    def ours() -> int:
        found["ours"] = ranked(names, scores, above=ABOVE)
        return REGIONS

    rates = compare({"region by region": plain, "dynrefer.models": ours}, budget)
    same = "equal" if found["plain"] == found["ours"] else "DIFFERENT"
    above = sum(map(len, found["ours"])) / REGIONS
    notes = [
        f"{same} lists, {above:.0f} tags a region",
        *(f"{way}: {1000 / rate:.3f} ms a region" for way, rate in rates.items()),
    ]
    return Result(rates, "regions/s", notes)
