"""Records + model -> predictions JSONL, one region a line, by one process or several. A killed run goes on."""

import glob
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from dynrefer.data.records import RegionRecords, RegionResult
from dynrefer.files import atomic_path, file_sha256, naming, read_jsonl, write_lines
from dynrefer.models.fingerprint import model_fingerprint
from dynrefer.models.options import Options
from dynrefer.processes import Processes

Call = Callable[[Any, Options], list[RegionResult]]  # (batch on the model's device, options) -> one result an id


def predict(
    model: Any,
    records: RegionRecords,
    out_path: str | os.PathLike,
    options: Options | None = None,
    *,
    batch_size: int = 64,
    num_workers: int = 2,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
    labels: int | None = None,
    weights: Mapping[str, float] | None = None,
    asked: Mapping[str, Any] | None = None,
) -> dict[str, RegionResult]:
    """Predictions of a model for all records, {region id: result} in the order of the records.

    Every process of a process group calls it (see `dynrefer.processes.launched`) and takes some of the steps, which
    are the same for any number of processes; the main one gets the predictions, the others {}. Each process writes its
    own OUT_PATH.part-RUN-RANK batch by batch, and the main one puts all parts together as `out_path` at the end. After
    a kill, any number of processes goes on: steps that are whole in a part or in `out_path` are not predicted again,
    and a last line that the kill has torn is dropped. OUT_PATH.meta.json holds what the predictions depend on (weights,
    records, options, batch size) and what the model answers: with anything else it is an error to go on with the file.

    model: of any family, see `dynrefer/models/family.py`. options: of its class, its own where None. batch_size:
    regions of a step at most, whole images; what is predicted together decides the last digits of a score. seed: of
    random views, and of texts that are drawn at random. overwrite: begin anew whatever the file holds. labels, weights:
    see `keep_surest`. asked: how the records' questions were worded, which predictions depend on too.

    Raises ValueError: options that do not fit the model, before anything is written; a file of other settings, a
    damaged file, a result that is not finite.
    """
    out_path, options = Path(out_path), model.Options() if options is None else options
    model.check_options(options)
    loader = example_loader(model, records, options, batch_size=batch_size, num_workers=num_workers, seed=seed)
    settings = {
        "model": model_fingerprint(model),
        "records": file_sha256(records.path),
        "seed": seed,
        "batch_size": batch_size,
        "answers": sorted(model.answers),
        **model.settings(options),
    }
    if asked is not None:
        settings["asked"] = dict(asked)
    if labels is not None:
        settings["labels"] = labels
        image_of = dict(zip((region.id for region in records), records.images(), strict=True))

    def begin() -> tuple[str, set[str]]:
        if overwrite:
            for path in [out_path, *_parts(out_path)]:
                path.unlink(missing_ok=True)
        return secrets.token_hex(4), set(_resume(out_path, settings, records))

    processes = Processes()
    run, done = processes.from_main(begin)
    left = [step for step in range(loader.num_steps(0)) if not (done and ids_of(loader, step) <= done)]
    if left:
        parts = [out_path.with_name(f"{out_path.name}.part-{run}-{rank}") for rank in range(processes.world_size)]
        parts[processes.rank].touch()
        processes.wait()
        model.before_eval()
        known = sum(region.id in done for region in records) if done else 0
        own = share(left, processes.rank, processes.world_size)
        with (
            naming(parts[processes.rank]),
            open(parts[processes.rank], "a", encoding="utf-8") as file,
            _progress(len(records), known, parts, progress and processes.rank == 0) as update,
        ):
            for results in predicted(model, loader, own, options):
                if labels is not None:
                    keep_surest(results, labels, image_of, weights or {})
                file.writelines([_line(result) for result in results if result.id not in done])
                file.flush()
                update()
            processes.wait(update)
            update()
    if processes.rank:
        processes.wait()
        return {}
    found = _collect(out_path, records, parts if left else [])
    processes.wait()
    if missing := [region.id for region in records if region.id not in found]:
        raise ValueError(
            f"{out_path}: {len(missing)} regions are not in it, the first {missing[0]!r}: another run has written "
            "there at the same time; run the command again"
        )
    return {region.id: found[region.id] for region in records}


def predict_in_memory(
    model: Any,
    records: RegionRecords,
    options: Options | None = None,
    *,
    batch_size: int = 64,
    num_workers: int = 0,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    call: Call | None = None,
) -> dict[str, RegionResult]:
    """{region id: result} as `predict` gives them, without files: the share of process `rank` of `world_size`, of all
    records for one. The model is in eval mode and was told (`before_eval`). call: what answers instead of
    `model.predict`, for instance that under autocast."""
    options = model.Options() if options is None else options
    model.check_options(options)
    loader = example_loader(model, records, options, batch_size=batch_size, num_workers=num_workers, seed=seed)
    steps = share(range(loader.num_steps(0)), rank, world_size)
    return {result.id: result for results in predicted(model, loader, steps, options, call) for result in results}


def example_loader(
    model: Any, records: RegionRecords, options: Options, *, batch_size: int, num_workers: int, seed: int, **places: Any
) -> Any:
    """The steps in which records are predicted, in their order and the same for every process.

    places: `rank`, `world_size` and `stand_in` of the loader, where each process takes its share of every step.
    """
    from dynrefer.data.dataset import ExampleDataset
    from dynrefer.data.loader import ExampleLoader

    dataset = ExampleDataset(records, model.processor, options, train=False, seed=seed)
    places |= {"shuffle": False, "seed": seed, "num_workers": num_workers, "joint": model.joint}
    return ExampleLoader(dataset, batch_size, **places)


def ids_of(loader: Any, step: int) -> set[str]:
    """Names of the records of a step."""
    return {record.id for piece in loader.plan(0)[step] for record in loader.dataset.example(piece).records}


def predicted(
    model: Any, loader: Any, steps: Sequence[int], options: Options, call: Call | None = None
) -> Iterator[list[RegionResult]]:
    """The results of some steps, batch by batch."""
    call = model.predict if call is None else call
    made = loader.made(loader.key(0, step) for step in steps) if steps else ()
    for step, batches in zip(steps, made, strict=True):
        for number, batch in enumerate(batches):  # several where an example is larger than batch_size
            if len(batch):
                with _randomness(loader.seed, step, number, model.device):
                    yield call(batch.to(model.device), options)


def keep_surest(
    results: Sequence[RegionResult], number: int, images: Mapping[str, str], weights: Mapping[str, float]
) -> None:
    """Leaves of every image the surest pairs of a region and a category, of equal ones the first; each region keeps its
    first category too. images: region id -> image; weights: region id -> what its scores are multiplied by for this.
    """
    of_image: dict[str, list[RegionResult]] = {}
    for result in results:
        of_image.setdefault(images[result.id], []).append(result)
    for own in of_image.values():
        counts = [len(result.categories) for result in own]
        if sum(counts) > number:
            scores = np.array([each["score"] for result in own for each in result.categories])
            scores *= np.repeat([weights.get(result.id, 1.0) for result in own], counts)
            kept = np.zeros(len(scores), bool)
            kept[np.argsort(-scores, kind="stable")[:number]] = True
            for result, places in zip(own, np.split(kept, np.cumsum(counts)[:-1]), strict=True):
                places[:1] = True
                result.categories = [result.categories[k] for k in np.flatnonzero(places)]


def share(steps: Sequence[int], rank: int, world_size: int) -> Sequence[int]:
    """Process `rank`'s part of the steps: as many as the others', or one more."""
    return steps[len(steps) * rank // world_size : len(steps) * (rank + 1) // world_size]


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


def _resume(out_path: Path, settings: dict, records: RegionRecords) -> dict[str, RegionResult]:
    """What a prediction file and its parts hold already, after checking that they were made with the same settings."""
    meta_path = out_path.with_name(out_path.name + ".meta.json")
    parts = _parts(out_path)
    if any(path.exists() and path.stat().st_size for path in [out_path, *parts]):
        from dynrefer.models.folder_check import read_object

        if not meta_path.exists():
            raise ValueError(
                f"{out_path} has no {meta_path.name} beside it, so it is of something else; use another --out"
            )
        before = read_object(meta_path)
        older = "batch_size" not in before  # of a version that named less
        for name, value in json.loads(json.dumps(settings)).items():
            if before.get(name) != value and not (older and name not in before):
                if name == "records":
                    raise ValueError(f"{out_path} holds results of other records; use another --out, or --overwrite")
                raise ValueError(
                    f"{out_path} was written with {name} {before.get(name)!r}, now it is {value!r}; "
                    "use another --out, or --overwrite"
                )
        return _collect(out_path, records, parts)
    with atomic_path(meta_path) as temporary:
        temporary.write_text(json.dumps(settings, indent=1, ensure_ascii=False), encoding="utf-8")
    return {}


def _parts(out_path: Path) -> list[Path]:
    """What processes have written that is not in the file itself yet."""
    return sorted(out_path.parent.glob(glob.escape(out_path.name) + ".part-*"))


def _collect(out_path: Path, records: RegionRecords, parts: Sequence[Path]) -> dict[str, RegionResult]:
    """Moves the predictions of parts into the file, in the order of the records (those of others last): all of them."""
    found: dict[str, RegionResult] = {}
    for path in [out_path, *parts]:
        if path.exists():
            _drop_torn_line(path)
            # a region comes twice where a kill fell between the two last steps below
            found = read_predictions(path) | found
    if parts:
        order = {region.id: place for place, region in enumerate(records)}
        results = sorted(found.values(), key=lambda result: order.get(result.id, len(order)))
        write_lines(out_path, (_line(result).encode() for result in results))
        for path in parts:
            path.unlink(missing_ok=True)
    return found


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


@contextmanager
def _progress(total: int, done: int, parts: Sequence[Path], show: bool) -> Iterator[Callable[[], None]]:
    """A bar of all processes' regions, with the time left; the function within counts what the parts have gained."""
    if not show:
        yield lambda: None
        return
    from tqdm import tqdm

    with ExitStack() as stack:
        bar = stack.enter_context(tqdm(total=total, initial=done, unit="region", desc="predict"))
        files = [stack.enter_context(open(path, "rb")) for path in parts]
        yield lambda: bar.update(sum(file.read().count(b"\n") for file in files)) and None


@contextmanager
def _randomness(seed: int, step: int, number: int, device: Any) -> Iterator[None]:
    """Texts that are drawn at random within it depend on the batch alone, not on what was predicted before it."""
    import torch

    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int(np.random.SeedSequence([seed, step, number]).generate_state(1)[0]))
        yield
