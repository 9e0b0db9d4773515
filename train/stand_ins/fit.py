"""What both stand-ins' trainings share: arguments, the loop, and the folder that appears when all is done."""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dynrefer.config import settings_help
from dynrefer.errors import Parser
from dynrefer.files import atomic_path, write_json
from train.optim import build_optimizer, set_lr
from train.run import NonFiniteLoss
from train.stand_ins.settings import FitConfig

CLIP_GRADIENT = 1.0


def fit_parser(name: str, what: str, kind: type[FitConfig]) -> Parser:
    """The arguments of `python -m train.stand_ins.NAME`."""
    parser = Parser(
        prog=f"python -m train.stand_ins.{name}",
        description=f"Train a small {what} from nothing.",
        epilog=f"settings, with their types and defaults:\n{settings_help(kind)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, help="configs/NAME.yaml")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings over those of the file")
    return parser


def check_output(cfg: FitConfig) -> None:
    if Path(cfg.output).exists() and not cfg.overwrite:
        raise ValueError(f"output {cfg.output}: it exists; name another folder, or set overwrite=true")


def fit(
    model: nn.Module,
    loss_of: Callable[[np.random.Generator], Tensor],
    cfg: FitConfig,
    *,
    evaluate: Callable[[], dict[str, float]],
    save: Callable[[Path], None],
) -> dict[str, float]:
    """Trains, evaluates and writes `cfg.output`: what `save` writes, log.jsonl and scores.json. Returns the scores.

    loss_of: draws a batch with the generator and gives its loss. NonFiniteLoss ends the run with nothing written.
    """
    rng = np.random.default_rng(cfg.seed)
    optimizer = build_optimizer(model, cfg.optim)
    with atomic_path(cfg.output) as folder:
        folder.mkdir()
        model.train()
        started = time.perf_counter()
        with open(folder / "log.jsonl", "w", encoding="utf-8") as log:
            for step in range(1, cfg.steps + 1):
                lr = set_lr(optimizer, cfg.optim, step - 1, cfg.steps)
                loss = loss_of(rng)
                loss.backward()
                norm = nn.utils.clip_grad_norm_(model.parameters(), CLIP_GRADIENT)
                row = {"step": step, "loss": loss.item(), "lr": lr, "grad_norm": norm.item()}
                if not all(map(math.isfinite, row.values())):
                    raise NonFiniteLoss(f"step {step}: the loss is {row['loss']}; lower optim.lr")
                optimizer.step()
                optimizer.zero_grad()
                row["seconds"] = time.perf_counter() - started
                log.write(json.dumps(row) + "\n")
                if step % cfg.log_every == 0 or step == cfg.steps:
                    print(f"step {step}/{cfg.steps} | loss {row['loss']:.4f} | {row['seconds']:.0f} s", flush=True)
                if step == cfg.steps or (cfg.eval_every and step % cfg.eval_every == 0):
                    model.eval()
                    with torch.no_grad():
                        scores = evaluate()
                    model.train()
                    log.write(json.dumps({"step": step, **{f"eval/{name}": of for name, of in scores.items()}}) + "\n")
                    said = ", ".join(f"{name} {of:.3f}" for name, of in scores.items())
                    print(f"step {step}: {said}", flush=True)
        model.eval()
        save(folder)
        write_json(folder / "scores.json", {"scores": scores, "seconds": row["seconds"]})
    return scores
