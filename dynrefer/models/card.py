"""The model card: README.md of a saved model, written from what the config and the run's score files hold.

What nobody said is said to be unknown. Scores are those of `RUN/predictions/*/scores.json` that were made with the very
weights that are saved.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from dynrefer.files import atomic_path

from .base_parts import ON_HUB, Origin
from .fingerprint import model_fingerprint
from .folder_check import read_object

logger = logging.getLogger(__name__)

# A card without this line is somebody's own and stays as it is.
MARK = "<!-- Written by dynrefer. Without this line the card is yours and is not written again. -->"
CARD = "README.md"
# Licences that the hub knows by these names; others are given as "other" with their own name.
# fmt: off
HUB_LICENCES = (
    "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "mpl-2.0", "gpl-3.0", "lgpl-3.0", "agpl-3.0", "unlicense",
    "cc0-1.0", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-3.0", "cc-by-nc-4.0",
    "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0", "cc-by-nd-4.0", "openrail", "llama2", "llama3", "gemma",
)
# fmt: on
OWN_LAYERS = "own layers"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


@dataclass(frozen=True)
class About:
    """What a card and `dynrefer info` say of a model's family beside its answers. reads: in words, of each region, with
    fields of the config in braces; paper: its arXiv number; asks: what the example of a call names beside boxes."""

    reads: str = "an image"
    asks: str = ""
    paper: str | None = None


@dataclass(frozen=True)
class Answer:
    """What the hub and people call one of a family's answers. words: for each region; pipeline, tags: the hub's."""

    words: str
    pipeline: str
    tags: tuple[str, ...] = ()


# The first that a model gives names its pipeline.
ANSWERS = {
    "caption": Answer(
        "a caption with its probability",
        "image-to-text",
        ("region-captioning", "dense-captioning", "image-captioning"),
    ),
    "answer": Answer("an answer to a question", "image-text-to-text", ("visual-question-answering",)),
    "mask": Answer("a mask", "mask-generation", ("image-segmentation",)),
    "tags": Answer("tags", "image-classification"),
    "attributes": Answer("attributes", "image-classification"),
    "categories": Answer("a category", "image-classification"),
}


def answers_of(model) -> list[Answer]:
    """What a model answers, in the order of the table."""
    return [answer for name, answer in ANSWERS.items() if name in model.answers]


def answers_text(model) -> str:
    """ "a caption with its probability, tags and a category"."""
    *most, last = [answer.words for answer in answers_of(model)] or ["no answer"]
    return f"{', '.join(most)} and {last}" if most else last


def pipeline_of(model) -> str:
    """The hub's name for what a model does."""
    return next((answer.pipeline for answer in answers_of(model)), "other")


def write_card(folder: Path, model, config, records: Mapping[str, dict], name: str | None = None) -> None:
    """Writes folder/README.md, unless somebody's own stands there. records: parts that are left out; name: hub id."""
    path = folder / CARD
    if not is_somebodys(path):
        with atomic_path(path) as temporary:
            temporary.write_text(model_card(model, config, records, name), encoding="utf-8")


def is_somebodys(path: Path) -> bool:
    """Whether there is a card that was not written here."""
    return path.exists() and MARK not in path.read_text(encoding="utf-8", errors="replace")


def model_card(model, config, records: Mapping[str, dict], name: str | None = None) -> str:
    scores, about = found_scores(model), model.CARD
    front = yaml.safe_dump(front_matter(model, config, scores, name), sort_keys=False, allow_unicode=True, width=1000)
    parts = [
        f"---\n{front}---\n{MARK}",
        f"# {name or 'Region-level vision-language model'}",
        f"An image and regions (boxes or masks) in; for each region {answers_text(model)}. "
        f"Model family `{config.model_type}`"
        + (f" ([arXiv {about.paper}](https://arxiv.org/abs/{about.paper}))." if about.paper else "."),
        usage(name, about),
        "## Parts\n\n" + parts_table(model, config, records),
        "## Training\n\n" + training_text(config.training or []),
        "## Scores\n\n" + scores_text(scores),
        "## Licence\n\n" + licence_text(config),
    ]
    return "\n\n".join(parts) + "\n"


def front_matter(model, config, scores: Sequence[Mapping], name: str | None) -> dict:
    """The hub's metadata: https://huggingface.co/docs/hub/model-cards."""
    licence = (config.licence or "unknown").strip()
    known = licence.lower() in (*HUB_LICENCES, "unknown")
    metadata: dict = {"license": licence.lower() if known else "other"}
    if not known:
        metadata["license_name"] = re.sub(r"[^a-z0-9.]+", "-", licence.lower()).strip("-")
    metadata |= {"library_name": "dynrefer", "pipeline_tag": pipeline_of(model)}
    tags = [tag for answer in answers_of(model) for tag in answer.tags]
    metadata["tags"] = list(dict.fromkeys(["dynrefer", *tags, *(getattr(model, "model_tags", None) or ())]))
    datasets = [row["source"] for stage in config.training or [] for row in stage["sources"]]
    if datasets := [source for source in dict.fromkeys(datasets) if HUB_ID.fullmatch(source)]:
        metadata["datasets"] = datasets
    origins = [Origin.of(row) for row in (config.base_parts or {}).values()]
    names = [origin.name for origin in origins if origin.kind in ON_HUB]
    if bases := [name for name in dict.fromkeys(names) if HUB_ID.fullmatch(name)]:
        metadata["base_model"] = bases
    if scores:
        results = [
            {
                "task": {"type": pipeline_of(model), "name": "Region description"},
                "dataset": {
                    "name": score["task"],
                    "type": score["task"],
                    "args": {"sha256": score["data_sha256"], "regions": score["regions"]},
                },
                "metrics": [
                    {"type": metric, "value": round(value, 4), "name": metric}
                    for metric, value in score["scores"].items()
                ],
            }
            for score in scores
        ]
        metadata["model-index"] = [{"name": (name or "model").split("/")[-1], "results": results}]
    return metadata


def usage(name: str | None, about: About) -> str:
    asks = f", {about.asks}" if about.asks else ""
    return f"""## Use

```python
import dynrefer

model = dynrefer.load({json.dumps(name or "FOLDER_OR_HUB_ID")})
results = dynrefer.RegionPredictor(model)("photo.jpg", boxes=[[40, 30, 180, 200]]{asks})
print(results[0].to_dict())
```

After `import dynrefer.auto`, transformers' `AutoModel`, `AutoConfig` and `AutoProcessor` load it too."""


def part_rows(model, config) -> list[dict]:
    """One row a part that others trained, and one for the model's own layers: {"part", "type", "parameters", "trained"
    (how many of them), "source" (a record of base_parts.py, or None)}."""
    paths = {path: part for part, path in model.BASE_PARTS.items()}
    sizes = {part: {True: 0, False: 0} for part in (*model.BASE_PARTS, OWN_LAYERS)}
    for name, parameter in model.named_parameters():
        part = paths.get(next((path for path in paths if name.startswith(f"{path}.")), ""), OWN_LAYERS)
        # ZeRO-3 keeps only a piece of each here
        sizes[part][parameter.requires_grad] += getattr(parameter, "ds_numel", parameter.numel())
    return [
        {
            "part": part,
            "type": config.model_type if part == OWN_LAYERS else getattr(config, f"{part}_config").model_type,
            "parameters": sum(size.values()),
            "trained": size[True],
            "source": (config.base_parts or {}).get(part),
        }
        for part, size in sizes.items()
    ]


def parts_table(model, config, records: Mapping[str, dict]) -> str:
    lines = ["| part | type | parameters | trained | taken from |", "|---|---|---|---|---|"]
    for row in part_rows(model, config):
        source = row["source"]
        origin = f"`{place_name(source)}`" if source else ""
        if source and source.get("changed"):
            origin += ", trained further"
        if row["part"] in records:
            origin += ", not in this folder: fetched when the model is loaded"
        trained = f"{row['trained']:,}" if row["trained"] else "no"
        lines.append(f"| {row['part']} | {row['type']} | {row['parameters']:,} | {trained} | {origin} |")
    return "\n".join(lines)


def place_name(source: Mapping) -> str:
    name = public_name(source["name"])
    return f"{name}@{source['revision']}" if source.get("revision") else name


def public_name(name: str) -> str:
    """A hub id, or the last part of a local path: others need not know where somebody's files lie."""
    return Path(name).name if Path(name).is_absolute() else name


def training_text(stages: Sequence[Mapping]) -> str:
    if not stages:
        return "Not recorded."
    blocks = []
    for stage in stages:
        start = f", starting from `{public_name(stage['init'])}`" if stage.get("init") else ""
        tasks = ", ".join(f"{task} {weight:g}" for task, weight in stage["tasks"].items())
        lines = [
            f"Run `{stage['run']}`{start}: {stage['steps']:,} steps of {stage['batch_size']} regions on "
            f"{stage['regions']:,} regions; weights of the tasks' losses: {tasks}; seed {stage['seed']}.",
            "",
            "| data | regions | licence |",
            "|---|---|---|",
        ]
        for row in stage["sources"]:
            lines.append(f"| {row['source'] or 'not stated'} | {row['regions']:,} | {row['licence'] or 'not stated'} |")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def scores_text(scores: Sequence[Mapping]) -> str:
    if not scores:
        return "None recorded for these weights."
    blocks = []
    for score in scores:
        lines = [f"### {score['task']}, version {score['task_version']}", "", score["protocol"], ""]
        rows = {"this model": score["scores"], **(score.get("baselines") or {})}
        names = [name for name in score["scores"] if "/" not in name]
        lines += ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
        for row, values in rows.items():
            cells = [f"{values[name]:.3f}" if name in values else "" for name in names]
            lines.append(f"| {row} | " + " | ".join(cells) + " |")
        lines += [
            "",
            f"{score['regions']:,} regions of `{Path(score['data']).name}` (sha256 {score['data_sha256']}), "
            f"{score['date'][:10]}; settings: `{json.dumps(score['settings'], sort_keys=True)}`.",
        ]
        lines += [f"Not computed: {metric} ({why})." for metric, why in (score.get("left_out") or {}).items()]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def licence_text(config) -> str:
    said = config.licence or "Not stated by whoever published the weights."
    return f"{said}\n\nThe data and the models that parts were taken from have their own licences."


def found_scores(model) -> list[dict]:
    """What score files of the run that the model was loaded from say of these weights."""
    if model.loaded_from is None or any(parameter.is_meta for parameter in model.parameters()):
        return []
    folder = Path(model.loaded_from[0])
    files = sorted(path for place in (folder, folder.parent) for path in place.glob("predictions/*/scores.json"))
    own = model_fingerprint(model) if files else None
    scores = []
    for path in files:
        made_with = path.with_name("predictions.jsonl.meta.json")
        try:
            if made_with.is_file() and read_object(made_with).get("model") == own:
                scores.append(read_object(path))
        except ValueError as error:  # a model is saved whatever became of its scores
            logger.warning(f"{error}. The model card is written without these scores")
    return scores
