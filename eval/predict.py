"""Records + model -> predictions JSONL, one region a line. A killed run goes on where it stopped."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dynrefer.data.schema import RegionRecords, RegionResult, atomic_path, read_jsonl
from dynrefer.models.fingerprint import model_fingerprint

TAGS_LISTED_ABOVE = 0.01


def predict(
    model: Any,
    records: RegionRecords,
    out_path: str | os.PathLike,
    *,
    batch_size: int = 64,
    num_workers: int = 2,
    control: str | None = None,
    tag_threshold: float | None = None,
    attributes: Sequence[str] | None = None,
    categories: Sequence[str] | None = None,
    generation: Mapping[str, Any] | None = None,
    view_strategy: str | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, RegionResult]:
    """Predictions of a model for all records, {region id: result} in the order of the records.

    They are written to `out_path` batch by batch. Regions that are in it already are not predicted again, and a last
    line torn by a kill is dropped. OUT_PATH.meta.json holds what the predictions depend on (weights, records,
    settings): with anything else it is an error to go on with the file.

    Args:
        control: control words of every region; None = the predicted tags, "" = none.
        tag_threshold: probability above which a tag is a control word; None = the model's own. The file lists all
            tags above TAGS_LISTED_ABOVE, so that their ranking can be scored.
        attributes, categories: names to score; None = the model's own lists.
        generation: settings of text generation over the model's own.
        view_strategy: "phash", "joint", "task", "random", "fixed:0,0.3"; None = the processor's own.
        overwrite: begin anew whatever the file holds.

    Raises ValueError: a file of other settings, a damaged file, a result that is not finite.
    """
    from dynrefer.data.dataset import RegionDataset
    from dynrefer.data.loader import RegionLoader

    out_path = Path(out_path)
    settings = {
        "model": model_fingerprint(model),
        "records": file_sha256(records.path),
        "control": control,
        "tag_threshold": tag_threshold,
        "attributes": None if attributes is None else list(attributes),
        "categories": None if categories is None else list(categories),
        "generation": dict(generation or {}),
        "view_strategy": view_strategy or getattr(model.processor, "view_strategy", None),
        "seed": seed,
    }
    if overwrite:
        out_path.unlink(missing_ok=True)
    done = _resume(out_path, settings)

    dataset = RegionDataset(records, model.processor, train=False, seed=seed)
    loader = RegionLoader(dataset, batch_size, shuffle=False, seed=seed, num_workers=num_workers)
    order = [records[index].id for batch in loader.plan(0) for index in batch]
    known_until = next((place for place, region_id in enumerate(order) if region_id not in done), len(order))
    if known_until < len(order):
        own_strategy = getattr(model.processor, "view_strategy", None)
        model.before_eval()
        try:
            if view_strategy is not None:
                model.processor.view_strategy = view_strategy
            with open(out_path, "a", encoding="utf-8") as file:
                bar = _progress(len(order), known_until, progress)
                for batch in loader.epoch(0, start_batch=known_until // batch_size):
                    results = model.predict(
                        batch.to(model.device),
                        control=control,
                        tag_threshold=tag_threshold,
                        list_tags=TAGS_LISTED_ABOVE,
                        attributes=attributes,
                        categories=categories,
                        generation=generation,
                    )
                    new = [result for result in results if result.id not in done]
                    file.writelines(map(_line, new))
                    file.flush()
                    done |= {result.id: result for result in new}
                    bar.update(len(new))
                bar.close()
        finally:
            if view_strategy is not None:
                model.processor.view_strategy = own_strategy
    return {region.id: done[region.id] for region in records}


def read_predictions(path: str | os.PathLike) -> dict[str, RegionResult]:
    """{region id: result} of a prediction file; ValueError names file and line of a bad or repeated prediction."""
    if not Path(path).is_file():
        raise ValueError(f"predictions {str(path)!r}: no such file; `python -m eval.run --model M --task T` writes it")
    results: dict[str, RegionResult] = {}
    for line, value in read_jsonl(path):
        result = RegionResult.from_dict(value, f"{path}:{line}")
        if result.id in results:
            raise ValueError(f"{path}:{line}: a second prediction for region {result.id!r}; there is one a region")
        results[result.id] = result
    return results


def file_sha256(path: str | os.PathLike) -> str:
    """sha256 of a file, or of all files of a folder in the order of their names."""
    path = Path(path)
    digest = hashlib.sha256()
    for part in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
        with open(part, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _resume(out_path: Path, settings: dict) -> dict[str, RegionResult]:
    """What a prediction file holds already, after checking that it was made with the same settings."""
    meta_path = out_path.with_name(out_path.name + ".meta.json")
    if out_path.exists() and out_path.stat().st_size:
        if not meta_path.exists():
            raise ValueError(f"{out_path} has no {meta_path.name} beside it: remove it, or score it with --predictions")
        before = json.loads(meta_path.read_text(encoding="utf-8"))
        for name, value in settings.items():
            if before.get(name) != value:
                raise ValueError(
                    f"{out_path} was written with {name} {before.get(name)!r}, now it is {value!r}; "
                    "use another --out, or --overwrite"
                )
        _drop_torn_line(out_path)
        return read_predictions(out_path)
    with atomic_path(meta_path) as temporary:
        temporary.write_text(json.dumps(settings, indent=1, ensure_ascii=False), encoding="utf-8")
    return {}


def _drop_torn_line(path: Path) -> None:
    """Cuts a file behind its last line break: a kill can leave a line half-written."""
    with open(path, "rb+") as file:
        end = file.seek(0, os.SEEK_END)
        tail = b""
        while end and b"\n" not in tail:
            start = max(0, end - (1 << 16))
            file.seek(start)
            tail, end = file.read(end - start), start
        file.truncate(end + tail.rfind(b"\n") + 1)


def _line(result: RegionResult) -> str:
    try:
        return json.dumps(result.to_dict(), ensure_ascii=False, allow_nan=False) + "\n"
    except ValueError as error:
        raise ValueError(
            f"region {result.id}: a score of its prediction is not finite: {result}; the model's weights or the number "
            "type are at fault, `dynrefer info` shows both"
        ) from error


def _progress(total: int, done: int, show: bool):
    from tqdm import tqdm

    return tqdm(total=total, initial=done, unit="region", desc="predict", disable=None if show else True)
