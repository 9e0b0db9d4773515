"""`make regionspot`: scenes, stand-ins, features, training and the table, with numbers that take seconds."""

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_the_steps_of_make_regionspot_fit_together(tmp_path):
    for name in ("Makefile", "configs", "data_prep", "dynrefer", "eval", "train"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    few = {"SPOT_SCENES": "--train 16 --val 4 --test 12", "SINGLE_SCENES": "--train 16 --test 0"}
    few |= {"STAND_IN_SETTINGS": "steps=2 batch_size=4", "SPOT_SETTINGS": "loop.steps=2 loop.cpu=true"}
    command = ["make", "regionspot-steps", f"PY={sys.executable}", *(f"{key}={value}" for key, value in few.items())]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "mean IoU of masks" in done.stdout
    assert "22 names, 6 of them held out" in done.stdout
    assert "| chance | 0.045 | 0.045 | 0.167 |" in done.stdout
    assert "| spot | " in done.stdout and "| CLIP on crops | " in done.stdout
