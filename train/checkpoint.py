"""Run folders, checkpoints and exact resume. Everything is written beside its place and then renamed into it.

runs/NAME/
  config.yaml                      every setting of the run
  log.jsonl  tensorboard/          see log.py
  checkpoints/step-00000300/
    model/                         what from_pretrained reads: the weights as trained, config, processor
    state/                         optimizer, random generators of every process, averaged weights
    loop.json                      step, position in the data, best score, hashes of all files (see whole.py)
  checkpoints/aside-step-00000300/ later than the checkpoint that a run went on from: damaged, or passed over
  last.json                        {"checkpoint": "checkpoints/step-00000300", "step": 300}
  best/                            like model/, from the best evaluation (averaged weights where they are on)
  lock                             while a process trains there, see lock.py
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

from dynrefer.data.content import content_of
from dynrefer.data.records import RegionRecords
from dynrefer.files import naming, write_json
from dynrefer.models.folder_check import read_state
from train import lock
from train.launch import zero_stage
from train.optim import WeightAverage
from train.whole import LOOP_FILE, faults, read_loop, write_loop

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
    evaluated: int | None = None  # step of the last evaluation
    worse: int = 0  # evaluations since the best one
    metric: str | None = None  # the score that `best` is of


def complete_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run folder, oldest first."""
    return sorted(path.parent for path in folder.glob(f"checkpoints/step-*/{LOOP_FILE}"))


def checkpoint_to_resume(folder: Path, resume: bool | str, overwrite: bool) -> tuple[Path | None, list[str]]:
    """The checkpoint that `loop.resume` asks for, or None for a new run, and lines to tell. Changes nothing but what a
    kill between two renames left.

    The newest whole one of a run: all its files are compared with their hashes. Raises ValueError when the run folder
    holds something and neither resume nor overwrite is set, when there is nothing to resume, and when no checkpoint is
    whole; it names the damaged files.
    """
    if resume in (False, "", "false"):
        if lock.entries(folder) and not overwrite:
            raise ValueError(
                f"run folder {str(folder)!r} exists already; continue it with loop.resume=true, choose another "
                "name=..., or replace it with loop.overwrite=true"
            )
        return None, []
    if overwrite:
        raise ValueError("loop.resume and loop.overwrite are both set; keep one of them")
    place = folder if resume in (True, "auto", "true") else Path(resume)
    if (place / LOOP_FILE).is_file():
        if found := faults(place):
            raise ValueError(
                f"loop.resume: checkpoint {str(place)!r} is damaged ({_some(found)}); copy it again, or name its run's "
                "folder: the newest whole checkpoint there is taken"
            )
        return place, []
    for old in place.glob("checkpoints/.step-*.old"):
        target = old.with_name(old.name.removeprefix(".").removesuffix(".old"))
        if not target.exists():  # killed between the two renames
            os.replace(old, target)
    damaged = []
    for found in sorted((path for path in place.glob("checkpoints/step-*") if path.is_dir()), reverse=True):
        if not (bad := faults(found)):
            said = [f"{what}; going on from {found}" for what in damaged]
            return found, said
        damaged.append(f"checkpoint {found} is damaged: {_some(bad)}")
    if damaged:
        raise ValueError(
            f"loop.resume={resume}: no whole checkpoint in {str(place)!r}: {'; '.join(damaged)}; copy these files "
            "again, or start anew with another name=... or with loop.overwrite=true"
        )
    if resume == "auto":
        return None, []
    raise ValueError(
        f"loop.resume={resume}: no complete checkpoint (checkpoints/step-*/{LOOP_FILE}) in {str(place)!r}; "
        "loop.resume=auto starts a new run where there is none"
    )


def _some(found: list[str]) -> str:
    return ", ".join(found[:5]) + (f" and {len(found) - 5} more files" if len(found) > 5 else "")


def open_run_folder(folder: Path, overwrite: bool, resume_from: Path | None = None) -> list[str]:
    """Makes the folder ready for writing: removes the old run when asked to, and what a killed run left half-done.

    Checkpoints of later steps than the one to go on from are put aside, where no other start takes them for its own.
    Returns lines to tell.
    """
    if overwrite and (old := lock.entries(folder)):
        if not (folder / "config.yaml").is_file():
            raise ValueError(f"loop.overwrite: {str(folder)!r} is no run folder (no config.yaml); remove it by hand")
        for path in sorted(old, key=lambda path: path.name == "config.yaml"):  # the last: a kill leaves a run folder
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    for target in [folder / "best", *(folder / "checkpoints").glob("step-*")]:
        _finish_replacement(target)
    for old in (folder / "checkpoints").glob(".step-*.old"):
        _finish_replacement(old.with_name(old.name.removeprefix(".").removesuffix(".old")))
    for leftover in [*folder.glob(".*.tmp"), *(folder / "checkpoints").glob(".*.tmp")]:
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    said = []
    if resume_from is not None and resume_from.resolve().parent == (folder / "checkpoints").resolve():
        for later in sorted((folder / "checkpoints").glob("step-*")):
            if later.name > resume_from.name:
                replace_folder(later, aside := later.with_name(f"aside-{later.name}"))
                said.append(f"{later} is kept as {aside.name}; remove it when you do not need it")
    return said


def check_settings(checkpoint: Path, settings: dict) -> None:
    """ValueError where a setting that an exact resume needs differs from the checkpoint's."""
    saved = read_loop(checkpoint)["settings"]
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


def check_records(checkpoint: Path | None, records) -> list[dict]:
    """What the records of data.train hold, as loop.json keeps it. ValueError where a checkpoint was made of others."""
    now = content_of(records)
    before = read_loop(checkpoint).get("records") if checkpoint is not None else None
    for old, new in zip(before or now, now, strict=False):
        if old["hash"] != new["hash"]:
            raise ValueError(
                f"loop.resume: the records {new['path']} have changed since {str(checkpoint)!r} was saved ("
                f"{old['regions']} regions then, {new['regions']} now; hash {old['hash'][:8]} then, {new['hash'][:8]} "
                f"now); put the old ones back, or start a new run from these weights with init={checkpoint / 'model'}"
            )
    return now


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
    records: list[dict] | None = None,
) -> Path:
    """Writes checkpoints/step-N, whole or not at all, and removes all but the newest `keep` (0 keeps all).

    model, optimizer: as `prepare` returned them; trainable_only: its model/ leaves out frozen parts, see
    dynrefer/models/base_parts.py; records: what `check_records` gave. Every process calls it.
    """
    target = folder / "checkpoints" / f"step-{progress.step:08d}"
    temporary = target.with_name(f".{target.name}.tmp")
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
        (temporary / "state").mkdir(parents=True)
    accelerator.wait_for_everyone()

    try:
        with naming(target, temporary):
            weights = _whole_state_dict(accelerator, model)
            _save_state(random_state(), temporary / "state" / f"random-{accelerator.process_index}.pt")
            if zero_stage(accelerator):
                model.save_checkpoint(str(temporary / "state"), tag="engine", exclude_frozen_parameters=True)
            if accelerator.is_main_process:
                plain_model = accelerator.unwrap_model(model)
                _write_model(plain_model, weights, processor, temporary / "model", progress, trainable_only)
                if not zero_stage(accelerator):
                    _save_state(optimizer.state_dict(), temporary / "state" / "optimizer.pt")
                if average is not None:
                    _save_state(average.state_dict(), temporary / "state" / "average.pt")
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                state = {"processes": accelerator.num_processes, "zero_stage": zero_stage(accelerator)}
                write_loop(temporary, asdict(progress) | state | {"settings": settings, "records": records})
                replace_folder(temporary, target)
    except BaseException:
        if accelerator.is_main_process:  # a full disk has room again for the user
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    if accelerator.is_main_process:
        write_json(folder / "last.json", {"checkpoint": f"checkpoints/{target.name}", "step": progress.step})
        for old in complete_checkpoints(folder)[:-keep] if keep else []:
            doomed = old.with_name(f".{old.name}.tmp")  # a kill in the middle must not leave half a checkpoint in place
            os.replace(old, doomed)
            shutil.rmtree(doomed)
    accelerator.wait_for_everyone()
    return target


def _save_state(state: dict, path: Path) -> None:
    with open(path, "wb") as file:  # not torch's own, whose error does not say that the disk is full
        torch.save(state, file)


def load_checkpoint(
    checkpoint: Path, accelerator: Accelerator, model, optimizer, average: WeightAverage | None
) -> tuple[Progress, list[str]]:
    """Puts optimizer, averaged weights and random generators back. Returns where the run stood, and lines to tell.

    Every process calls it, after `prepare`. The weights come with `checkpoint/model`, from which the model was loaded
    before (DeepSpeed also reads its own).
    Raises ValueError where DeepSpeed's stage or number of processes differ from the checkpoint's.
    """
    saved, said = read_loop(checkpoint), []
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
        optimizer.load_state_dict(read_state(checkpoint / "state" / "optimizer.pt"))
    if average is not None:
        average.load_state_dict(read_state(checkpoint / "state" / "average.pt"))
    if saved["processes"] == accelerator.num_processes:
        path = checkpoint / "state" / f"random-{accelerator.process_index}.pt"
        all_back = set_random_state(read_state(path))
        why = "" if all_back else "other GPUs than this machine's"
    else:
        why = f"{saved['processes']} process{'es' if saved['processes'] > 1 else ''}, now {accelerator.num_processes}"
    if why:
        said.append(
            f"{checkpoint} was saved by {why}: the same data go on, but what the model draws at random (dropout) "
            "is not what the former run would have drawn, and sums are rounded otherwise"
        )
    if "batch" in saved:  # of version 0.3.0, whose epochs had other steps: it goes on with the next one
        saved |= {"epoch": saved["epoch"] + (saved["batch"] > 0), "next": 0}
        said.append(
            f"{checkpoint} is of version 0.3.0, whose epochs had other steps: it goes on at the beginning of epoch "
            f"{saved['epoch']} (counted from 0)"
        )
    saved = {"evaluated": saved["step"], "worse": 0, "metric": None} | saved  # what earlier versions did not write
    return Progress(**{name: saved[name] for name in asdict(Progress())}), said


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


def set_random_state(state: dict) -> bool:
    """Whether all of it could be put back: GPUs of another number keep their own."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    same_gpus = len(state.get("cuda", ())) == num_gpus
    if num_gpus and same_gpus:
        torch.cuda.set_rng_state_all(state["cuda"])
    if "mps" in state and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"])
    return same_gpus


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
