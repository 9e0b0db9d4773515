"""The quickstart from drawn scenes to the page, with few scenes and steps: what it must leave behind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dynrefer.config import load_config
from train.run import RunConfig

REPOSITORY = Path(__file__).resolve().parents[1]
RUN = "quickstart-test"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where `make quickstart-steps` ran, the commands of the Makefile with numbers that take seconds."""
    folder = tmp_path_factory.mktemp("quickstart")
    for name in ("Makefile", "configs", "data_prep", "dynrefer", "eval", "train"):
        (folder / name).symlink_to(REPOSITORY / name)
    command = [
        "make",
        "quickstart-steps",
        f"PY={sys.executable}",
        f"NAME={RUN}",
        "WORLD=data/world",
        "SCENES=--train 24 --val 4 --test 4",
        "SETTINGS=loop.steps=3 data.num_workers=0 optim.warmup_steps=1",
        "VIEWS=--limit 8 --settings fixed:0,0 fixed:0,0.4 phash",
    ]
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return folder


@pytest.mark.slow
def test_quickstart_leaves_a_model_scores_views_and_a_page(folder):
    run = folder / "runs" / RUN
    assert {"config.yaml", "log.jsonl", "best", "checkpoints", "predictions", "report.html"} <= {
        path.name for path in run.iterdir()
    }
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log if "loss" in row] == [1, 2, 3]
    assert (run / "best" / "model.safetensors").is_file()

    scores = json.loads((run / "predictions" / "world" / "scores.json").read_text())
    assert {"CIDEr", "METEOR", "tag mAP", "attribute mAP", "category accuracy"} <= set(scores["scores"])
    assert len(scores["baselines"]) == 3 and all("CIDEr" in row for row in scores["baselines"].values())

    views = json.loads((run / "predictions" / "world-views" / "views.json").read_text())
    assert list(views["scores"]) == ["fixed:0,0", "fixed:0,0.4", "phash"] and views["regions"] == 8


@pytest.mark.slow
def test_the_page_stands_alone_and_has_every_section(folder):
    page = (folder / "runs" / RUN / "report.html").read_text(encoding="utf-8")
    for heading in ("Scores", "Training", "Which view serves which task", "Samples", "Best regions", "Worst regions"):
        assert f"<h2>{heading}</h2>" in page
    assert "http://" not in page and "https://" not in page and 'src="data:image/jpeg;base64,' in page


def test_the_quickstart_trains_every_task_and_all_parts_from_scratch():
    cfg = load_config(RunConfig, REPOSITORY / "configs" / "quickstart.yaml", [])
    assert set(cfg.losses) == {"captions", "tags", "region_text", "attributes", "categories", "view_text"}
    assert all(weight > 0 for weight in cfg.losses.values())
    for part in ("vision", "language", "text"):
        assert "name" not in cfg.model[part], "a hub id would need the network"
    assert not cfg.model.get("mirror"), "mirroring would make left and right untrue"
