"""The functions of an exported benchmark that lmms-eval calls, by the names in its YAML files.

`python -m eval.export --format lmms-eval` copies this file into a benchmark's folder, where EXPORT lies beside it.
lmms-eval executes it once for each `!function`, so whatever is kept is kept in `eval.harness.exported`.
"""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

FOLDER = Path(__file__).resolve().parent
sys.path.append(json.loads((FOLDER / "export.json").read_text(encoding="utf-8"))["checkout"])

from eval.harness.exported import exported, score_answers  # noqa: E402


def doc_to_visual(doc: dict) -> list[Image.Image]:
    """The image, with a line around the region where it is shown so."""
    return [Image.fromarray(exported(FOLDER).picture(doc["region_id"]))]


def process_results(doc: dict, results: Sequence[str]) -> dict:
    """The answer, under the name of every score, and once more where `--log_samples` and `eval.run` look for it."""
    answer = {"region_id": doc["region_id"], "prediction": results[0]}
    return answer | dict.fromkeys(exported(FOLDER).scores, list(answer.values()))


def __getattr__(score: str) -> Callable[[Sequence], float]:
    """`!function utils.CIDEr`: (answers of all regions) -> that score of them."""
    if score.startswith("__"):
        raise AttributeError(score)

    def aggregate(answers: Sequence[Sequence[str]]) -> float:
        try:
            return score_answers(FOLDER, tuple(map(tuple, answers)))[score]
        except (ValueError, RuntimeError, OSError, ImportError) as error:  # raised, it would cost the answers
            print(f"{FOLDER.name}: no {score}: {error}; python -m eval.run --predictions SAMPLES", file=sys.stderr)
            return float("nan")

    return aggregate
