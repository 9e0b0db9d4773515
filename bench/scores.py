"""Scoring at Visual Genome's size: whole commands, with intervals and Java programs, and the memory they hold at most.

    python -m bench.scores                              5,000 and 230,000 captions, 5,000 images of 50 boxes; 6 minutes
    python -m bench.scores --captions 500 --images 20   shows that all runs

Memory is the most that Python and its Java programs have held together. Captions have the lengths of Visual Genome's
phrases (5 words in the mean, up to 40) and words as frequent as in a language, from METEOR's own list.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from dynrefer.errors import Parser, run_command

from .metrics import densecap_loop, same_words

REGIONS_AN_IMAGE = 46  # of GRiT's test set
BOXES_AN_IMAGE = 50
LOOP_IMAGES = 20  # that the plain loop matches, which takes a second an image
COMMON = "the a of on in with and white black man woman blue red green shirt wall sky tree table street window sign"
Rows = Iterator[tuple[str, str, str]]  # what, measured, more


class Sentences:
    """Random captions, and others that say nearly the same."""

    def __init__(self, seed: int):
        from eval.metrics.captions import METEOR_JAR, jar_path

        with zipfile.ZipFile(jar_path(METEOR_JAR)) as jar:
            lines = jar.read("synonym/english.synsets").decode().split()
        words = sorted({word for word in lines if word.isalpha() and 2 < len(word) < 12})
        self.rng = np.random.default_rng(seed)
        self.words = [*COMMON.split(), *self.rng.permutation(words)[:8000].tolist()]
        shares = 1 / np.arange(2, len(self.words) + 2)
        self.shares = np.cumsum(shares / shares.sum())

    def _draw(self, number: int) -> list[str]:
        return [self.words[k] for k in np.searchsorted(self.shares, self.rng.random(number))]

    def __call__(self, number: int) -> list[str]:
        lengths = np.clip(self.rng.lognormal(1.5, 0.5, number).round(), 1, 40).astype(int)
        words = iter(self._draw(int(lengths.sum())))
        return [" ".join(next(words) for _ in range(length)) for length in lengths]

    def nearly(self, texts: Sequence[str]) -> list[str]:
        """Each text with about half of its words replaced."""
        said = []
        for text in texts:
            words = text.split()
            others, kept = self._draw(len(words)), self.rng.random(len(words)) < 0.5
            said.append(" ".join(w if keep else o for w, o, keep in zip(words, others, kept, strict=True)))
        return said


def captions(folder: Path, number: int) -> Rows:
    """Captions with one reference each: BLEU, ROUGE-L, METEOR, CIDEr and their intervals."""
    sentences = Sentences(0)
    texts = sentences(number)
    with open(folder / "records.jsonl", "w", encoding="utf-8") as file:
        for n, text in enumerate(texts):
            region = {"id": f"{n}", "image": f"{n // REGIONS_AN_IMAGE}.jpg", "image_hw": [600, 800]}
            file.write(json.dumps(region | {"box": [10, 20, 110, 220], "captions": [text], "split": "test"}) + "\n")
    said = [{"question_id": n, "text": text} for n, text in enumerate(sentences.nearly(texts))]
    (folder / "said.json").write_text(json.dumps(said))
    yield from command(f"{number:,} captions", folder, "vg-v2")


def dense_captions(folder: Path, number: int) -> Rows:
    """Dense captions: matching and ranking, beside the plain loop; with METEOR; the command, with intervals."""
    from eval.java import end_programs
    from eval.metrics.densecap import Boxes, densecap_scores

    sentences, rng = Sentences(1), np.random.default_rng(1)
    references, predictions = {}, {}
    for n in range(number):
        corner = rng.uniform(0, 500, (BOXES_AN_IMAGE, 2))
        truth = np.hstack([corner, corner + rng.uniform(40, 250, corner.shape)])
        truth[:15] = truth[15:30] + rng.uniform(-3, 3, (15, 4))  # some are one object
        chosen = rng.integers(0, BOXES_AN_IMAGE, BOXES_AN_IMAGE)
        texts = sentences(BOXES_AN_IMAGE)
        references[n] = Boxes(truth, texts)
        said = sentences.nearly([texts[k] for k in chosen])
        predictions[n] = Boxes(truth[chosen] + rng.uniform(-15, 15, (BOXES_AN_IMAGE, 4)), said, rng.random(len(chosen)))
    what = f"{number:,} images of {BOXES_AN_IMAGE} boxes"
    seconds = timed(lambda: densecap_scores(predictions, references, scorer=same_words))
    yield f"{what}: matching and AP", *seconds
    few = [{n: found[n] for n in range(min(number, LOOP_IMAGES))} for found in (predictions, references)]
    start = time.perf_counter()
    expected = densecap_loop(*few, "python", same_words)
    looped = time.perf_counter() - start
    parts = densecap_scores(*few, scorer=same_words)[1]
    difference = max(abs(expected[name] - value) for name, value in parts.items())
    note = f"the first {len(few[0])} images; largest difference of the 30 average precisions {difference:.1g}"
    yield "  the plain loop", f"{looped / len(few[0]) * 1000:.0f} ms an image", note
    yield "  with METEOR", *timed(lambda: densecap_scores(predictions, references))
    end_programs()
    with open(folder / "records.jsonl", "w", encoding="utf-8") as file:
        for n, truth in references.items():
            for k, (box, text) in enumerate(zip(truth.boxes.tolist(), truth.captions, strict=True)):
                region = {"id": f"{n}-{k}", "image": f"{n}.jpg", "image_hw": [1000, 1000], "box": np.clip(box, 0, 1000)}
                region["box"] = region["box"].tolist()
                file.write(json.dumps(region | {"captions": [text], "split": "test"}) + "\n")
    said = [
        {"image_id": n, "box": box, "caption": text, "score": score}
        for n, found in predictions.items()
        for box, text, score in zip(found.boxes.tolist(), found.captions, found.scores.tolist(), strict=True)
    ]
    (folder / "said.json").write_text(json.dumps(said))
    yield from command("  the command", folder, "densecap-vg1.2-detected")


def timed(work) -> tuple[str, str]:
    """Wall and CPU seconds of a call in this process; its Java programs' CPU is not counted."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return (
        f"{time.perf_counter() - wall:.1f} s",
        f"{time.process_time() - cpu:.1f} CPU s of Python, load {os.getloadavg()[0]:.1f}",
    )


def command(what: str, folder: Path, task: str) -> Rows:
    """`eval.run --predictions` in a process of its own."""
    import psutil

    arguments = ["--predictions", folder / "said.json", "--data", folder / "records.jsonl", "--out", folder / "out"]
    start = time.perf_counter()
    run = psutil.Popen(
        [sys.executable, "-m", "eval.run", "--task", task, *map(str, arguments)], stdout=subprocess.DEVNULL
    )
    most, seconds = 0, {}
    while run.poll() is None:
        held = 0
        for process in [run, *run.children(recursive=True)]:
            try:
                held += process.memory_info().rss
                seconds[process.pid] = sum(process.cpu_times()[:2])
            except psutil.Error:
                continue  # it has just ended
        most = max(most, held)
        time.sleep(0.1)
    if run.returncode:
        raise RuntimeError(f"eval.run ended with code {run.returncode}")
    scores = json.loads((folder / "out/scores.json").read_text())
    assert scores["intervals"], "the command computes intervals"
    wall, load = time.perf_counter() - start, os.getloadavg()[0]
    yield what, f"{wall:.1f} s", f"{sum(seconds.values()):.0f} CPU s, {most / 1e9:.2f} GB at most, load {load:.1f}"


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m bench.scores", description=__doc__.splitlines()[0])
    parser.add_argument("--captions", nargs="*", type=int, default=[5000, 230_000], help="how many; nothing: none")
    parser.add_argument("--images", nargs="*", type=int, default=[5000], help="of dense captions; nothing: none")
    parser.add_argument("--folder", type=Path, help="where to write for the time being (default: the system's place)")
    return run_command("bench.scores", run, parser.parse_args(argv))


def run(args: argparse.Namespace) -> None:
    for section, numbers in ((captions, args.captions), (dense_captions, args.images)):
        print(f"{section.__name__}: {section.__doc__}")
        for number in numbers:
            with tempfile.TemporaryDirectory(dir=args.folder) as folder:
                for what, measured, more in section(Path(folder), number):
                    print(f"  {what:<44} {measured:>18}   {more}".rstrip(), flush=True)


if __name__ == "__main__":
    sys.exit(main())
