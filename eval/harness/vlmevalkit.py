"""Exported benchmarks as data sets of VLMEvalKit, and its own runner with them.

    python -m eval.export --task world --format vlmevalkit --out ~/LMUData
    python -m eval.harness.vlmevalkit --data dynrefer_world --model Qwen2.5-VL-7B-Instruct --work-dir out

VLMEvalKit has a fixed list of data sets, so its runner is started from here, with every option that it has; without
that a table of LMUData can be answered (`--mode infer`), but not scored, and models treat it as multiple choice.
"""

import csv
import json
import os
from pathlib import Path

import pandas
import vlmeval.dataset
from vlmeval.dataset.image_base import ImageBaseDataset
from vlmeval.smp import LMUDataRoot

from ..inputs.formats import read_any
from .exported import EXPORT, PREFIX, Exported, exported

HEADLINES = ("CIDEr", "category accuracy", "semantic similarity", "dense mAP")


class RegionDataset(ImageBaseDataset):
    """A benchmark that `python -m eval.export --format vlmevalkit` wrote into LMUData."""

    TYPE = "Caption"  # models have prompts of their own for other types
    force_use_dataset_prompt = True  # the question is part of the protocol

    @classmethod
    def supported_datasets(cls) -> list[str]:
        """The exported benchmarks that lie in LMUData."""
        tables = sorted(Path(LMUDataRoot()).glob(f"{PREFIX}*.tsv"))
        return [table.stem for table in tables if (_folder(table.stem) / EXPORT).is_file()]

    def load_data(self, dataset: str) -> pandas.DataFrame:
        """The table, its cells as they stand."""
        path = Path(LMUDataRoot()) / f"{dataset}.tsv"
        return pandas.read_csv(path, sep="\t", dtype=str, keep_default_na=False, quoting=csv.QUOTE_ALL)

    @classmethod
    def evaluate(cls, eval_file: str | os.PathLike, **judge: object) -> dict[str, float]:
        """{score name: fraction} of the answers in VLMEvalKit's file, also written beside it as *_score.json."""
        benchmark = benchmark_of(eval_file)
        found = read_any(eval_file, benchmark.records).results
        scores = benchmark.score({i: result.caption for i, result in found.items()})
        path = Path(eval_file)
        path.with_name(f"{path.stem}_score.json").write_text(json.dumps(scores, indent=1), encoding="utf-8")
        return scores

    @classmethod
    def report_primary_metric(cls, metrics: dict | None) -> dict[str, float]:
        """The score that VLMEvalKit's summary shows."""
        return next(({name: metrics[name]} for name in HEADLINES if name in (metrics or {})), {})


def benchmark_of(eval_file: str | os.PathLike) -> Exported:
    """The benchmark that a file of answers, MODEL_NAME.xlsx, is of; ValueError where it is none in LMUData."""
    stem = Path(eval_file).stem
    names = [name for name in RegionDataset.supported_datasets() if stem.endswith(f"_{name}")]
    if not names:
        raise ValueError(f"{eval_file}: its name ends with no exported benchmark of {LMUDataRoot()}; export it again")
    return exported(_folder(max(names, key=len)))


def register() -> None:
    """Makes the exported benchmarks known to VLMEvalKit, by name and as a class for its --config."""
    vlmeval.dataset.DATASET_CLASSES.insert(0, RegionDataset)
    vlmeval.dataset.SUPPORTED_DATASETS.extend(RegionDataset.supported_datasets())
    vlmeval.dataset.RegionDataset = RegionDataset


def _folder(name: str) -> Path:
    return Path(LMUDataRoot()) / "images" / name


if __name__ == "__main__":
    from vlmeval.run import main
    from vlmeval.smp import load_env

    register()
    load_env()
    main()
