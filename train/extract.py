"""Computes what the frozen parts of a model make of the training data, once: `data.train` entries with `features`.

    python -m train.extract --config configs/NAME.yaml [section.key=value ...]
    accelerate launch --num_processes 8 -m train.extract --config configs/NAME.yaml

It takes the configuration of the run that will read the features: same model, same data. Every entry of `data.train`
that names a folder under `features` gets it filled; training then reads pictures no more. A killed one goes on: files
that are whole, every byte of them, are kept. Where training mirrors pictures (`model.mirror` of RegionSpot), the
features of the mirrored ones are kept too, with mirrored boxes.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from dynrefer.config import load_config
from dynrefer.data.dataset import ExampleDataset
from dynrefer.data.features import (
    FEATURES_FILE,
    FORMAT,
    check_shard,
    example_key,
    made_with_of,
    mirrored,
    write_index,
    write_shard,
)
from dynrefer.data.mixture import Mixture, open_training
from dynrefer.data.packing import Piece
from dynrefer.data.shards import Shards
from dynrefer.errors import Parser, run_command
from dynrefer.files import write_json
from dynrefer.models import adapt
from dynrefer.models.family import Processor
from dynrefer.processes import Processes, launched
from train.run import new_model, saved_model, set_seed
from train.settings import RunConfig

TYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def extract(
    model: Any,
    records: Any,
    folder: str | Path,
    *,
    dtype: str = "float16",
    images_per_file: int = 256,
    batch_size: int = 8,
    num_workers: int = 2,
    device: str = "cpu",
    progress: bool = True,
) -> tuple[int, int]:
    """Fills a folder with the features of all examples of records; (files made, files that were whole already).

    Every process of a process group calls it and makes its share of the files. dtype: one of TYPES, that floating
    numbers are kept in. batch_size: examples of a pass. Raises ValueError for a family that keeps nothing, for records
    that are shards, and for a folder that was begun with other settings.
    """
    if isinstance(records, Shards):
        raise ValueError(f"{records.path}: features are kept of record files, not of shards; name the record file")
    folder, variants = Path(folder), list(model.processor.variants())
    dataset = ExampleDataset(records, model.processor, model.Options(), train=False, seed=0)
    made_with = {
        "format": FORMAT,
        "frozen_key": model.frozen_key(),
        "dtype": dtype,
        "variants": variants,
        "images_per_file": images_per_file,
    }
    wanted = [(number, variant) for number in range(len(dataset.counts)) for variant in variants]
    files = [wanted[first : first + images_per_file] for first in range(0, len(wanted), images_per_file)]
    names = [f"features-{number:05d}.safetensors" for number in range(len(files))]
    processes, text = Processes(), json.dumps(made_with)
    processes.from_main(lambda: _begin(folder, text))
    model.to(device).eval()
    own, made = range(processes.rank, len(files), processes.world_size), 0
    with tqdm(own, str(folder), unit=" files", disable=None if progress and not processes.rank else True) as bar:
        for number in bar:
            keys = [example_key(dataset.example(_whole(dataset, place)).regions, how) for place, how in files[number]]
            if not check_shard(folder / names[number], keys, text):
                loader = _prepared(dataset, files[number], batch_size, num_workers)
                rows = [_kept(one, TYPES[dtype]) for batch in loader for one in _features(model, batch.to(device))]
                write_shard(folder / names[number], keys, rows, text)
                made += 1
    processes.wait()
    if not processes.rank:
        write_index(folder, names)
        for stale in set(folder.glob("features-*.safetensors")) - {folder / name for name in names}:
            stale.unlink()  # of records that were more before
        sizes = {name: (folder / name).stat().st_size for name in names}
        write_json(folder / FEATURES_FILE, made_with | {"examples": len(wanted), "shards": sizes})
    processes.wait()
    return made, len(own) - made


def _begin(folder: Path, text: str) -> None:
    """ValueError for a folder of other features, or of something else."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.glob("features-*.safetensors"))[:1]:
        found = made_with_of(path)
        if found is not None and found != text:
            raise ValueError(
                f"features {str(folder)!r} were made with other settings ({found}, now {text}); name another folder, "
                "or remove it"
            )
    (folder / FEATURES_FILE).unlink(missing_ok=True)  # it is whole again at the end


def _whole(dataset: ExampleDataset, number: int) -> Piece:
    return Piece(number, np.arange(dataset.counts[number]))


class _Samples(Dataset):
    """Samples of one example and variant, as loader workers make them."""

    def __init__(self, dataset: ExampleDataset, wanted: Sequence[tuple[int, str]]):
        self.dataset, self.wanted = dataset, wanted

    def __len__(self) -> int:
        return len(self.wanted)

    def __getitem__(self, index: int) -> list[dict]:
        number, variant = self.wanted[index]
        example = replace(self.dataset.example(_whole(self.dataset, number)), stored=None)
        return self.dataset.samples(example if variant == "plain" else mirrored(example), 0)


def _prepared(dataset: ExampleDataset, wanted: Sequence[tuple[int, str]], batch_size: int, num_workers: int) -> Any:
    return DataLoader(
        _Samples(dataset, wanted), batch_size, num_workers=num_workers, collate_fn=_Joined(dataset.processor)
    )


class _Joined:
    """Samples of several examples -> one batch. A class, since workers that are spawned cannot take a closure."""

    def __init__(self, processor: Processor):
        self.processor = processor

    def __call__(self, parts: list[list[dict]]) -> Any:
        return self.processor.collate([sample for samples in parts for sample in samples])


@torch.no_grad()
def _features(model: Any, batch: Any) -> list[dict[str, Tensor]]:
    return model.frozen_features(batch)


def _kept(rows: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """In the type that is kept; ValueError for numbers that it does not hold."""
    kept = {name: (rows[name].to(dtype) if rows[name].is_floating_point() else rows[name]).cpu() for name in rows}
    for name, tensor in kept.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"features {name}: numbers that {dtype} does not hold; --dtype bfloat16 or float32 does")
    return kept


def run(args: argparse.Namespace) -> int:
    cfg = load_config(RunConfig, args.config, args.settings)
    records = open_training(cfg.data.train)
    sources = records.sources if isinstance(records, Mixture) else []
    if not any(source.features for source in sources):
        raise ValueError(
            f"{args.config}: no entry of data.train names a folder under `features`; write "
            "data: {train: [{path: RECORDS, features: FOLDER}]}"
        )
    with launched():
        set_seed(cfg.seed)
        if cfg.init is None:
            model, model.processor = new_model(cfg.model, records)
        else:
            model = saved_model(cfg.init)
            if cfg.model:
                adapt(model, cfg.model)
        for part, source in zip(records.parts, sources, strict=True):
            if source.features:
                made, whole = extract(
                    model,
                    part,
                    source.features,
                    dtype=args.dtype,
                    images_per_file=args.images_per_file,
                    batch_size=args.batch_size,
                    num_workers=args.workers,
                    device="cpu" if cfg.loop.cpu or not torch.cuda.is_available() else "cuda",
                )
                print(f"{source.features}: {made} files made, {whole} were whole already")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(
        prog="python -m train.extract", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="configs/NAME.yaml of the run that will read the features")
    parser.add_argument("settings", nargs="*", metavar="section.key=value", help="settings over those of the file")
    parser.add_argument("--dtype", choices=TYPES, default="float16", help="of the numbers kept (default: float16)")
    parser.add_argument("--images-per-file", type=int, default=256, metavar="N", help="a kill loses one file at most")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="images of a pass (default: 8)")
    parser.add_argument("--workers", type=int, default=2, help="processes that open images (default: 2)")
    return run_command("train.extract", run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
