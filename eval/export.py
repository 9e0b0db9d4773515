"""Writes a benchmark as a task of lmms-eval or VLMEvalKit, in their own files.

    python -m eval.export --task world --format lmms-eval --out harness
    python -m lmms_eval --model qwen2_5_vl --tasks dynrefer_world --include_path harness --log_samples --output_path out
    python -m eval.export --task refcocog-d-val --format vlmevalkit --out ~/LMUData
    python -m eval.harness.vlmevalkit --data dynrefer_refcocog_d_val --model Qwen2.5-VL-7B-Instruct

The regions are shown by a line on the image, or named by coordinates in the question (--show). Scores are computed by
`eval.scoring`, inside the harness as by `python -m eval.run --predictions`, which reads what both write.
"""

import argparse
import csv
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml
from PIL import Image
from tqdm import tqdm

from dynrefer.errors import Parser, run_command
from dynrefer.files import atomic_path, file_sha256

from .benchmarks import TASKS
from .harness.exported import SHOW, Exported, check_exportable
from .options import open_task

LMMS_EVAL_FILES = Path(__file__).parent / "harness" / "lmms_eval_tasks"
TEMPLATE = "_default_template_yaml"
DECODING = ("max_new_tokens", "num_beams", "do_sample", "temperature", "top_p")  # what models of lmms-eval look for
UNTIL = "ASSISTANT:"  # as lmms-eval's own tasks of this kind; its default would cut answers at an empty line


class Function(str):
    """A `!function` of lmms-eval's YAML files."""


yaml.SafeDumper.add_representer(Function, lambda dumper, name: dumper.represent_scalar("!function", name))


def write_lmms_eval(benchmark: Exported, out: Path) -> Path:
    """The folder out/NAME: the task's YAML, the template and functions that it uses, a JSON line a region, EXPORT."""
    task = benchmark.row
    config = {
        "include": TEMPLATE,
        "task": benchmark.name,
        "generation_kwargs": {"until": [UNTIL], **{k: v for k, v in task.generation.items() if k in DECODING}},
        "metric_list": [
            {"metric": score, "aggregation": Function(f"utils.{score}"), "higher_is_better": True}
            for score in benchmark.scores
        ],
        # not named task, split, doc_id or repeats, which would take the place of lmms-eval's own
        "metadata": {
            "version": task.version,
            "benchmark": task.name,
            "protocol": task.protocol,
            "data_sha256": benchmark.data_sha256,
            "num_regions": len(benchmark.records),
            "decoding": dict(task.generation),
        },
    }
    folder = out / benchmark.name
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        benchmark.write(temporary)
        for name in (TEMPLATE, "utils.py"):
            shutil.copyfile(LMMS_EVAL_FILES / name, temporary / name)
        with open(temporary / "regions.jsonl", "w", encoding="utf-8") as file:
            for region in benchmark.records:
                doc = {"region_id": region.id, "question": benchmark.ask(region)}
                doc["references"] = benchmark.references(region)
                file.write(json.dumps(doc, ensure_ascii=False) + "\n")
        text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=120)
        (temporary / f"{benchmark.name}.yaml").write_text(text, encoding="utf-8")
    return folder


def write_vlmevalkit(benchmark: Exported, out: Path) -> Path:
    """The table out/NAME.tsv, its pictures in out/images/NAME, EXPORT beside them. Pictures are PNG, one a region, or
    one an image where nothing is drawn on them."""
    folder, table = out / "images" / benchmark.name, out / f"{benchmark.name}.tsv"
    pictures: dict[str, str] = {}
    drawn = [region.id if benchmark.show == "overlay" else region.image for region in benchmark.records]
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        benchmark.write(temporary)
        for region, key in zip(tqdm(benchmark.records, desc="pictures", disable=None), drawn, strict=True):
            if key not in pictures:
                pictures[key] = f"{len(pictures)}.png"
                Image.fromarray(benchmark.picture(region.id)).save(temporary / pictures[key], compress_level=1)
    with atomic_path(table) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, delimiter="\t", quoting=csv.QUOTE_ALL, lineterminator="\n")
        rows.writerow(["index", "region_id", "question", "answer", "image_path"])
        for n, (region, key) in enumerate(zip(benchmark.records, drawn, strict=True)):
            answer = json.dumps(benchmark.references(region), ensure_ascii=False)
            path = str((folder / pictures[key]).absolute())
            rows.writerow([n, region.id, benchmark.ask(region), answer, path])
    return table


FORMATS: dict[str, Callable[[Exported, Path], Path]] = {"lmms-eval": write_lmms_eval, "vlmevalkit": write_vlmevalkit}


def export(args: argparse.Namespace) -> None:
    task, records, _ = open_task(args)
    check_exportable(task)
    benchmark = Exported(
        task=task.name,
        version=task.version,
        data=str(records.path.absolute()),
        data_sha256=file_sha256(records.path),
        split=None if args.data else task.split,
        limit=args.limit,
        show=args.show,
        question=args.question or task.question,
    ).with_scores()
    print(f"{benchmark.name}: {len(benchmark.records)} regions -> {FORMATS[args.format](benchmark, Path(args.out))}")
    if not benchmark.scores:
        print("no score can be computed inside the harness; take its answers to python -m eval.run --predictions")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; 0, or 2 after a mistake in input or settings."""
    parser = Parser(prog="python -m eval.export", description=__doc__.splitlines()[0])
    parser.add_argument("--task", required=True, help=f"one of {', '.join(TASKS)}")
    parser.add_argument("--format", required=True, choices=FORMATS, help="whose files to write")
    parser.add_argument("--out", required=True, help="lmms-eval: the folder for --include_path; VLMEvalKit: LMUData")
    parser.add_argument("--data", help="records; the task's own where not given")
    parser.add_argument("--limit", type=int, help="only the first N regions")
    parser.add_argument("--show", choices=SHOW, default=SHOW[0], help="a line on the image, or a box in the question")
    parser.add_argument("--question", help="instead of the task's own")
    return run_command("eval.export", export, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
