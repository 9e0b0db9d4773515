"""Run folders, checkpoints and exact resume. Everything is written beside its place and then renamed into it.

runs/NAME/
  config.yaml                      every setting of the run
  log.jsonl  tensorboard/          see log.py
  checkpoints/step-00000300/
    model/                         what from_pretrained reads: the weights as trained, config, processor
    state/                         optimizer, random generators of every process, averaged weights
    loop.json                      step, position in the data, best score; its presence says: complete
  last.json                        {"checkpoint": "checkpoints/step-00000300", "step": 300}
  best/                            like model/, from the best evaluation (averaged weights where they are on)
"""

import json
import os
import random
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from transformers.utils import logging as transformers_logging

from dynrefer.data.records import RegionRecords
from dynrefer.files import write_json
from train.launch import zero_stage
from train.optim import WeightAverage

LOOP_FILE = "loop.json"
# what an exact resume must find unchanged; the rest (length of the run, logging, evaluation, workers) may change
FIXED_SETTINGS = (
    ("seed",),
    ("model",),
    ("losses",),
    ("optim",),
    ("data", "train"),
    ("data", "batch_size"),
    ("data", "shuffle"),
    ("data", "max_regions_per_image"),
    ("data", "mix"),
    ("data", "streams"),
    ("data", "buffer"),
    ("loop", "accumulation"),
    ("loop", "precision"),
    ("loop", "ema"),
)


@dataclass
class Progress:
    """Where the loop stands, between two optimizer steps."""

    step: int = 0  # optimizer steps done
    epoch: int = 0
    next: int = 0  # the step of that epoch that comes next
    seconds: float = 0.0  # spent in training steps, evaluation and saving not counted
    best: float | None = None  # best evaluation score so far
    best_step: int | None = None


def complete_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run folder, oldest first."""
    return sorted(path.parent for path in folder.glob(f"checkpoints/step-*/{LOOP_FILE}"))


def checkpoint_to_resume(folder: Path, resume: bool | str, overwrite: bool) -> Path | None:
    """The checkpoint that `loop.resume` asks for, or None for a new run. Reads only.

    Raises ValueError when the run folder holds something and neither resume nor overwrite is set, and when there is
    nothing to resume.
    """
    if resume in (False, "", "false"):
        if folder.exists() and any(folder.iterdir()) and not overwrite:
            raise ValueError(
                f"run folder {str(folder)!r} exists already; continue it with loop.resume=true, choose another "
                "name=..., or replace it with loop.overwrite=true"
            )
        return None
    if overwrite:
        raise ValueError("loop.resume and loop.overwrite are both set; keep one of them")
    place = folder if resume in (True, "auto", "true") else Path(resume)
    if (place / LOOP_FILE).is_file():
        return place
    found = complete_checkpoints(place)
    if found:
        return found[-1]
    if resume == "auto":
        return None
    raise ValueError(
        f"loop.resume={resume}: no complete checkpoint (checkpoints/step-*/{LOOP_FILE}) in {str(place)!r}; "
        "loop.resume=auto starts a new run where there is none"
    )


def open_run_folder(folder: Path, overwrite: bool) -> None:
    """Makes the folder ready for writing: removes the old run when asked to, and what a killed run left half-done."""
    if overwrite and folder.exists():
        if any(folder.iterdir()) and not (folder / "config.yaml").is_file():
            raise ValueError(f"loop.overwrite: {str(folder)!r} is no run folder (no config.yaml); remove it by hand")
        shutil.rmtree(folder)
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    for target in [folder / "best", *(folder / "checkpoints").glob("step-*")]:
        _finish_replacement(target)
    for old in (folder / "checkpoints").glob(".step-*.old"):
        _finish_replacement(old.with_name(old.name.removeprefix(".").removesuffix(".old")))
    for leftover in [*folder.glob(".*.tmp"), *(folder / "checkpoints").glob(".*.tmp")]:
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def check_settings(checkpoint: Path, settings: dict) -> None:
    """ValueError where a setting that an exact resume needs differs from the checkpoint's."""
    saved = json.loads((checkpoint / LOOP_FILE).read_text(encoding="utf-8"))["settings"]
    for path in FIXED_SETTINGS:
        before, now = saved, settings
        for key in path:
            # what an older version did not know had the value that is the default now
            before, now = (before or {}).get(key, (now or {}).get(key)), (now or {}).get(key)
        if before != json.loads(json.dumps(now)):
            raise ValueError(
                f"loop.resume: {'.'.join(path)} was {before!r} in {str(checkpoint)!r} and is {now!r} now; resume with "
                f"the old settings, or start a new run from these weights with init={checkpoint / 'model'}"
            )


def save_checkpoint(
    folder: Path,
    accelerator: Accelerator,
    model,
    processor,
    optimizer,
    average: WeightAverage | None,
    progress: Progress,
    settings: dict,
    keep: int,
    trainable_only: bool = False,
) -> Path:
    """Writes checkpoints/step-N, whole or not at all, and removes all but the newest `keep` (0 keeps all).

    model, optimizer: as `prepare` returned them; trainable_only: its model/ leaves out frozen parts, see
    dynrefer/models/base_parts.py. Every process calls it.
    """
    target = folder / "checkpoints" / f"step-{progress.step:08d}"
    temporary = target.with_name(f".{target.name}.tmp")
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
        (temporary / "state").mkdir(parents=True)
    accelerator.wait_for_everyone()

    weights = _whole_state_dict(accelerator, model)
    torch.save(random_state(), temporary / "state" / f"random-{accelerator.process_index}.pt")
    if zero_stage(accelerator):
        model.save_checkpoint(str(temporary / "state"), tag="engine", exclude_frozen_parameters=True)
    if accelerator.is_main_process:
        _write_model(accelerator.unwrap_model(model), weights, processor, temporary / "model", progress, trainable_only)
        if not zero_stage(accelerator):
            torch.save(optimizer.state_dict(), temporary / "state" / "optimizer.pt")
        if average is not None:
            torch.save(average.state_dict(), temporary / "state" / "average.pt")
        loop = asdict(progress) | {
            "processes": accelerator.num_processes,
            "zero_stage": zero_stage(accelerator),
            "settings": settings,
        }
        write_json(temporary / LOOP_FILE, loop)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        replace_folder(temporary, target)
        write_json(folder / "last.json", {"checkpoint": f"checkpoints/{target.name}", "step": progress.step})
        for old in complete_checkpoints(folder)[:-keep] if keep else []:
            doomed = old.with_name(f".{old.name}.tmp")  # a kill in the middle must not leave half a checkpoint in place
            os.replace(old, doomed)
            shutil.rmtree(doomed)
    accelerator.wait_for_everyone()
    return target


def load_checkpoint(
    checkpoint: Path, accelerator: Accelerator, model, optimizer, average: WeightAverage | None
) -> Progress:
    """Puts optimizer, averaged weights and random generators back. Every process calls it, after `prepare`.

    The weights come with `checkpoint/model`, from which the model was loaded before (DeepSpeed also reads its own).
    Raises ValueError where DeepSpeed's stage or number of processes differ from the checkpoint's.
    """
    saved = json.loads((checkpoint / LOOP_FILE).read_text(encoding="utf-8"))
    stage = zero_stage(accelerator)
    if saved["zero_stage"] != stage:
        raise ValueError(
            f"{str(checkpoint)!r} was written with ZeRO stage {saved['zero_stage']} (0: no DeepSpeed) and this run "
            f"uses {stage}; resume with the same, or start a new run with init={checkpoint / 'model'}"
        )
    if stage and saved["processes"] != accelerator.num_processes:
        raise ValueError(
            f"{str(checkpoint)!r} was written by {saved['processes']} DeepSpeed processes and this run has "
            f"{accelerator.num_processes}; DeepSpeed's optimizer state needs the same number"
        )
    if stage:
        path, _ = model.load_checkpoint(str(checkpoint / "state"), tag="engine", load_module_strict=False)
        assert path is not None, f"DeepSpeed read nothing from {checkpoint / 'state'}"
    else:
        state = torch.load(checkpoint / "state" / "optimizer.pt", map_location="cpu", weights_only=True)
        optimizer.load_state_dict(state)
    if average is not None:
        average.load_state_dict(torch.load(checkpoint / "state" / "average.pt", map_location="cpu", weights_only=True))
    if saved["processes"] == accelerator.num_processes:
        path = checkpoint / "state" / f"random-{accelerator.process_index}.pt"
        set_random_state(torch.load(path, map_location="cpu", weights_only=True))
    if "batch" in saved:  # of version 0.3.0, whose epochs had other steps: it goes on with the next one
        saved |= {"epoch": saved["epoch"] + (saved["batch"] > 0), "next": 0}
    return Progress(**{name: saved[name] for name in asdict(Progress())})


def save_best(
    folder: Path, accelerator: Accelerator, model, processor, progress: Progress, trainable_only: bool = False
) -> None:
    """Writes or replaces best/, as `save_checkpoint` its model/. Every process calls it."""
    weights = _whole_state_dict(accelerator, model)
    if accelerator.is_main_process:
        temporary = folder / ".best.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        _write_model(accelerator.unwrap_model(model), weights, processor, temporary, progress, trainable_only)
        replace_folder(temporary, folder / "best")
    accelerator.wait_for_everyone()


def random_state() -> dict:
    """This process's random generators as plain values and tensors."""
    version, numbers, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    state = {
        "python": [version, list(numbers), gauss],
        "numpy": [name, keys.tolist(), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_random_state(state: dict) -> None:
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    if "mps" in state and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"])


def replace_folder(temporary: Path, target: Path) -> None:
    """Puts a complete folder in the place of another. A kill between the two renames is mended at the next start."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.replace(target, old)
    os.replace(temporary, target)
    shutil.rmtree(old, ignore_errors=True)


def _finish_replacement(target: Path) -> None:
    old = target.with_name(f".{target.name}.old")
    if not old.exists():
        return
    if target.exists():
        shutil.rmtree(old)
    else:
        os.replace(old, target)


def _whole_state_dict(accelerator: Accelerator, model) -> dict | None:
    """Under DeepSpeed the whole weights (on the main process) in their own shapes, else None: the model has them."""
    if not zero_stage(accelerator):
        return None
    plain_model = accelerator.unwrap_model(model)
    weights = accelerator.get_state_dict(model) if zero_stage(accelerator) == 3 else plain_model.state_dict()
    for name, parameter in plain_model.named_parameters():
        if weights is not None and getattr(parameter, "was_scalar", False):
            weights[name] = weights[name].reshape(())
    return weights


def note_run(model, settings: dict, records: RegionRecords) -> None:
    """Adds this run to what the model's config tells of its training, for the model card."""
    if not hasattr(model, "config"):
        return
    sources = [
        {"source": source, "licence": licence, "regions": count}
        for (source, licence), count in records.licences().most_common()
    ]
    run = {
        "run": settings["name"],
        "init": settings["init"],
        "steps": 0,
        "batch_size": settings["data"]["batch_size"],
        "tasks": {task: weight for task, weight in settings["losses"].items() if weight > 0},
        "seed": settings["seed"],
        "regions": len(records),
        "sources": sources,
    }
    model.config.training = [*(model.config.training or []), run]


def _write_model(
    model, weights: dict | None, processor, folder: Path, progress: Progress, trainable_only: bool
) -> None:
    transformers_logging.disable_progress_bar()  # its bar for a single file would tear the run's own
    if getattr(getattr(model, "config", None), "training", None):
        model.config.training[-1]["steps"] = progress.step
    options = {} if weights is None else {"state_dict": weights}
    if trainable_only:
        options["save_trainable_only"] = True
    model.save_pretrained(folder, **options)
    processor.save_pretrained(folder)
