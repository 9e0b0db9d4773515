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
    settings = [f"PY={sys.executable}", *(f"{key}={value}" for key, value in few.items())]

    def make(*what):
        done = subprocess.run(["make", *what, *settings], cwd=tmp_path, capture_output=True, text=True, timeout=3600)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    printed = make("regionspot-steps")
    assert "mean IoU of masks" in printed
    assert "22 names, 6 of them held out" in printed
    assert "| chance | 0.045 | 0.045 | 0.167 |" in printed
    assert "| spot | " in printed and "| CLIP on crops | " in printed
    compared = make("spot-ablation", "ABLATIONS=unchanged token-mlp depth-1")
    assert all(f"| {row} | " in compared for row in ("unchanged", "token-mlp", "depth-1", "CLIP on crops"))
    assert "train.run" not in make("spot-ablation", "ABLATIONS=unchanged token-mlp depth-1")  # what is there is kept
