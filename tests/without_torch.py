"""Runs docs/run_onnx.py where PyTorch, Transformers and this package cannot be imported."""

import json
import subprocess
import sys
from pathlib import Path

import onnxruntime

SCRIPT = Path(__file__).resolve().parents[1] / "docs" / "run_onnx.py"
START = """
import runpy, sys
for name in ("torch", "torchvision", "transformers", "dynrefer"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_without_torch(folder, photo, boxes):
    """The objects that the script prints, one a box."""
    boxes = [str(part) for box in boxes for part in ("--box", *box)]
    command = [sys.executable, "-c", START, str(SCRIPT), str(folder), str(photo), *boxes]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def session(path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def scores(items):
    return {item["name"]: item["score"] for item in items}
