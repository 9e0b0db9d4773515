"""What `dynrefer info` tells of a model: what it is, answers and reads, how big it is, what it learned from."""

import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any

import dynrefer
from dynrefer.models.card import answers_text, part_rows, public_name
from dynrefer.vocabulary import Vocabulary


def facts(model: Any, name: str) -> dict[str, Any]:
    """Everything, as plain values. model: as `dynrefer.load` gives it; name: what it was loaded from."""
    config, about = model.config, model.CARD
    parameters = {part: counts(module.parameters()) for part, module in model.named_children()}
    parameters["own tensors"] = counts(model.parameters(recurse=False))  # in no module, such as learned query tokens
    parameters["total"] = counts(model.parameters())
    lists = {key: len(value) for key, value in vars(model.processor).items() if isinstance(value, Vocabulary)}
    return {
        "model": name,
        "family": config.model_type,
        "paper": about.paper,
        "answers": answers_text(model),
        "reads": about.reads.format_map(vars(config)),
        "licence": config.licence,
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "parameters": {part: sizes for part, sizes in parameters.items() if any(sizes.values())},
        "parts": part_rows(model, config),
        "vocabularies": lists,
        "training": config.training or [],
        "settings": {key: short(value) for key, value in config.to_diff_dict().items() if not key.startswith("_")},
        "versions": {
            "dynrefer": dynrefer.__version__,
            "python": platform.python_version(),
            **{package: version(package) for package in ("torch", "transformers")},
        },
    }


def counts(parameters: Iterable) -> dict[str, int]:
    sizes = {"trainable": 0, "frozen": 0}
    for parameter in parameters:
        sizes["trainable" if parameter.requires_grad else "frozen"] += parameter.numel()
    return sizes


def short(value: Any) -> Any:
    """A setting without its long lists, whose length is given instead."""
    if isinstance(value, dict):
        return {key: short(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)) and len(value) > 8:
        return f"{len(value)} entries"
    return value


def text(facts: Mapping[str, Any]) -> str:
    """The facts that a person wants to know, a line each."""
    total = facts["parameters"]["total"]
    paper = f" (arXiv {facts['paper']})" if facts["paper"] else ""
    rows = [
        ("family", f"{facts['family']}{paper}"),
        ("answers", f"for each region {facts['answers']}"),
        ("reads", facts["reads"]),
        (
            "size",
            f"{sum(total.values()):,} parameters, {total['trainable']:,} of them trained; {facts['dtype']} on "
            f"{facts['device']}",
        ),
        *((f"  {row['part']}", part_text(row)) for row in facts["parts"]),
        ("word lists", ", ".join(f"{size:,} {name}" for name, size in facts["vocabularies"].items()) or "none"),
        ("trained on", training_text(facts["training"])),
        ("licence", facts["licence"] or "not stated"),
        ("versions", ", ".join(f"{name} {number}" for name, number in facts["versions"].items())),
    ]
    width = max(len(title) for title, _ in rows) + 2
    return "\n".join([facts["model"], *(f"  {title:<{width}}{said}" for title, said in rows)])


def part_text(row: Mapping[str, Any]) -> str:
    """ "google/flan-t5-xl (t5), 2,849,757,184 parameters, frozen"."""
    name = f"{public_name(row['source']['name'])} ({row['type']})" if row["source"] else row["type"]
    trained = f"{row['trained']:,} of them trained" if row["trained"] else "frozen"
    return f"{name}, {row['parameters']:,} parameters, {'trained' if row['trained'] == row['parameters'] else trained}"


def training_text(runs: Iterable[Mapping[str, Any]]) -> str:
    """The data of all runs, the regions that each of them saw, and the licence of each."""
    said = [
        f"{row['source'] or 'data of no stated source'} ({row['regions']:,} regions, licence "
        f"{row['licence'] or 'not stated'})"
        for run in runs
        for row in run["sources"]
    ]
    return "; ".join(dict.fromkeys(said)) or "not recorded"
