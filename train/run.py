"""Trains a model: `accelerate launch -m train.run --config configs/NAME.yaml [section.key=value ...]`.

Also `python -m train.run ...` (one process) and, on CPU, `torchrun --nproc_per_node 2 -m train.run ...`. `main` is the
whole run from top to bottom: build, loop, evaluate, save.

A step holds whole examples up to data.batch_size regions, dealt out to the processes and their passes. The model
returns sums, one a task; the loop divides them by the counts of the whole step, so that neither the number of processes
nor that of passes changes the loss or the gradient:

    loss = sum over tasks of weight * (sum over the step's regions or tokens) / (their number)
"""

import argparse
import contextlib
import math
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from dynrefer.config import load_config, save_config, settings_help, to_dict
from dynrefer.data.loader import Loader
from dynrefer.data.mixture import data_features, open_training, training_loader
from dynrefer.data.record_files import open_records
from dynrefer.errors import Parser, run_command, suggestion
from dynrefer.models import FAMILIES, adapt
from train import checkpoint, launch
from train.evaluate import evaluate
from train.lock import held
from train.log import RunLog
from train.optim import WeightAverage, build_optimizer, set_lr
from train.samples import sample_pictures
from train.settings import MOST_SEEDS, RunConfig


@dataclass(frozen=True)
class RunResult:
    folder: Path
    step: int
    best: float | None
    stopped_by: int | None = None  # the signal that ended the run early


class NonFiniteLoss(RuntimeError):
    """A loss or gradient is NaN or infinite; the run stops before the weights take it in or anything is saved."""


def main(cfg: RunConfig, build: Callable | None = None, load: Callable | None = None) -> RunResult:
    """One run. build(cfg.model, train_records) -> (model, processor) makes a new model, load(path) -> model with
    `.processor` reads a saved one; both default to dynrefer's.

    Raises ValueError for settings that do not fit the data, the model or the run folder, NonFiniteLoss.
    """
    if cfg.loop.precision == "auto":
        precision = "bf16" if launch.computes_bf16(cfg.loop.cpu) else "fp32"
        cfg = replace(cfg, loop=replace(cfg.loop, precision=precision))
    accelerator = launch.start(
        precision=cfg.loop.precision,
        deepspeed=cfg.loop.deepspeed,
        clip=cfg.loop.clip,
        batch_size=max(1, cfg.data.batch_size // cfg.loop.accumulation),
        processes=cfg.loop.processes,
        num_threads=cfg.loop.num_threads,
        cpu=cfg.loop.cpu,
    )
    try:
        with held(Path(cfg.output) / cfg.name, accelerator):
            return train(cfg, accelerator, build or new_model, load or saved_model)
    finally:
        launch.finish(accelerator)


def train(cfg: RunConfig, accelerator: Accelerator, build: Callable, load: Callable) -> RunResult:
    folder, settings = Path(cfg.output) / cfg.name, to_dict(cfg)
    if cfg.loop.ema and launch.zero_stage(accelerator) == 3:
        raise ValueError("loop.ema does not work with ZeRO-3, which splits the weights; use ZeRO-2 or loop.ema=0")
    resume_from, said = launch.on_main(
        accelerator, lambda: checkpoint.checkpoint_to_resume(folder, cfg.loop.resume, cfg.loop.overwrite)
    )
    if resume_from is not None:
        checkpoint.check_settings(resume_from, settings)
    accelerator.wait_for_everyone()  # everybody has looked at the folder before it changes

    # data and model
    train_records = open_training(cfg.data.train)
    val_records = open_records(cfg.data.val) if cfg.data.val else None
    content = launch.on_main(accelerator, lambda: checkpoint.check_records(resume_from, train_records))
    set_seed(cfg.seed)
    if resume_from is not None or cfg.init is not None:
        model = load(str(resume_from / "model") if resume_from is not None else cfg.init)
        processor = model.processor
        if resume_from is None and cfg.model:
            adapt(model, cfg.model)
    else:
        model, processor = build(cfg.model, train_records)
        model.processor = processor
    model.lay_out()
    if resume_from is None:
        checkpoint.note_run(model, settings, train_records)
    model.tasks = tasks = tasks_to_train(cfg.losses, model.tasks)
    if cfg.loop.eval_every:  # what would stop the first evaluation stops the start
        cfg.eval.check_programs(model)
        model.check_options(cfg.eval.options_of(model))
    if cfg.loop.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    features = data_features(train_records)
    for store in filter(None, features):
        store.check_made_with(model)
    loader = training_loader(
        train_records,
        processor,
        model.Options(),
        cfg.data,
        features=features,
        seed=cfg.seed,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        accumulation=cfg.loop.accumulation,
        joint=model.joint,
        stand_in=launch.zero_stage(accelerator) > 0,  # see StandIn
    )
    total_steps = cfg.loop.steps or steps_of(loader, cfg.loop.epochs)

    # optimizer and processes
    if launch.zero_stage(accelerator):
        launch.prepare_for_deepspeed(model, cfg.loop.precision)
    optimizer = build_optimizer(model, cfg.optim)
    if cfg.loop.compile:
        model.compile()
    model.train()
    model, optimizer = accelerator.prepare(model, optimizer)
    plain_model = accelerator.unwrap_model(model)
    average = WeightAverage(plain_model, cfg.loop.ema) if cfg.loop.ema else None
    set_seed(cfg.seed + 1 + accelerator.process_index)  # weights are alike in all processes, dropout is not

    # the run folder, and where an earlier run stopped
    progress = checkpoint.Progress()
    if resume_from is not None:
        progress, more = checkpoint.load_checkpoint(resume_from, accelerator, model, optimizer, average)
        said += more
    said += launch.on_main(accelerator, lambda: checkpoint.open_run_folder(folder, cfg.loop.overwrite, resume_from))
    if accelerator.is_main_process:
        save_config(cfg, folder / "config.yaml")
    accelerator.wait_for_everyone()
    log = RunLog(
        folder,
        cfg.log,
        total_steps=total_steps,
        start_step=progress.step,
        settings=settings,
        main=accelerator.is_main_process,
    )

    trainable_only = cfg.loop.save == "trainable"

    def save() -> None:
        refresh(plain_model)
        checkpoint.save_checkpoint(
            folder,
            accelerator,
            model,
            processor,
            optimizer,
            average,
            progress,
            settings,
            keep=cfg.loop.keep_last,
            trainable_only=trainable_only,
            records=content,
        )

    def evaluate_and_keep_best() -> None:
        with as_kept(average, plain_model):
            scores = evaluate(plain_model, val_records, cfg.eval, cfg.data, cfg.losses, accelerator)
            plain_model.train()
            log.evaluation(progress.step, scores)
            progress.evaluated = progress.step
            decides = cfg.eval.decides(plain_model)
            score = scores[decides]
            if progress.metric not in (None, decides):
                log.say(f"eval.metric was {progress.metric} and is {decides}: best/ is chosen anew")
                progress.best, progress.worse = None, 0
            progress.metric = decides
            better = progress.best is None or cfg.eval.is_better(decides, score, progress.best)
            progress.worse = 0 if better else progress.worse + 1
            if better:
                progress.best, progress.best_step = score, progress.step
                checkpoint.save_best(folder, accelerator, model, processor, progress, trainable_only)

    def show_samples() -> None:
        with as_kept(average, plain_model):
            shown = sample_pictures(plain_model, val_records, cfg.log.samples, cfg.eval, cfg.data, accelerator)
            plain_model.train()
        log.pictures(progress.step, shown)

    def tired() -> bool:
        return 0 < cfg.eval.patience <= progress.worse

    log.say(describe(cfg, folder, plain_model, loader, total_steps, accelerator))
    if cfg.loop.precision == "bf16" and not launch.computes_bf16(cfg.loop.cpu):
        log.say(
            "loop.precision bf16: this device only imitates bf16, which may take ten times as long; auto takes fp32"
        )
    for line in said:
        log.say(line)
    if accelerator.num_processes > 1 or cfg.loop.accumulation > 1:
        for what in plain_model.depends_on_split():
            log.say(f"losses depend on the number of processes and accumulated batches: {what}")
    last_step = min(total_steps, cfg.loop.stop_at or total_steps)
    limit_seconds = 60 * cfg.loop.minutes if cfg.loop.minutes else math.inf
    saved_step = progress.step if resume_from is not None else None
    out_of_time = False
    with contextlib.closing(log), launch.StopSignal() as stop_signal:
        due = cfg.loop.eval_every and progress.step and progress.step % cfg.loop.eval_every == 0
        if due and progress.evaluated != progress.step:
            evaluate_and_keep_best()  # the signal that stopped the run came before it
        steps = stream(loader, progress)
        while progress.step < last_step and not (out_of_time or tired() or stop_signal.received):
            started = time.perf_counter()
            step, epoch = progress.step + 1, progress.epoch
            window = next(steps)  # this process's batches, one a pass; as many in every process
            lr = set_lr(optimizer, cfg.optim, progress.step, total_steps)

            # what the sums of this step are divided by: counts over all processes and all passes
            own = [sum(batch.counts().get(task, 0.0) for batch in window) for task in tasks]
            num_own = sum(len(batch) for batch in window)
            *counts, num_regions = launch.sum_over_processes(accelerator, [*own, num_own])
            if not any(counts):
                raise ValueError(
                    f"step {step}: none of its {num_regions:.0f} regions has a target for {', '.join(tasks)}; choose "
                    "other tasks in `losses:` or a larger data.batch_size"
                )
            scale = {task: cfg.losses[task] / max(count, 1.0) for task, count in zip(tasks, counts, strict=True)}

            launch.before_step(plain_model, window)
            parts = []  # (passes, tasks): the sums of this process's batches
            for number, batch in enumerate(window):
                accelerator.sync_gradients = last = number == len(window) - 1
                with contextlib.nullcontext() if last else accelerator.no_sync(model):
                    sums = launch.sums_of(model, batch.to(accelerator.device))
                    loss = sum(scale[task] * sums[task] for task in tasks)
                    parts.append(torch.stack([sums[task].detach().float() for task in tasks]))
                    if last:
                        parts = torch.stack(parts).cpu().double()
                        totals = check_finite(accelerator, parts, window, step)
                    # DDP and DeepSpeed average over processes; times their number that is the sum again
                    accelerator.backward(loss * accelerator.num_processes)
            grad_norm = clip_gradients(accelerator, model, cfg.loop.clip)
            if not math.isfinite(grad_norm):
                fault = f"step {step}: the gradient's norm is {grad_norm}"
                raise NonFiniteLoss(describe_regions(accelerator, fault, window))
            optimizer.step()
            optimizer.zero_grad()
            if average is not None:
                average.update(plain_model, step)

            # tell, and agree on whether to stop
            losses = {task: totals[i] / counts[i] for i, task in enumerate(tasks) if counts[i]}
            seconds = time.perf_counter() - started
            progress.step, progress.seconds = step, progress.seconds + seconds
            log.step(
                {
                    "step": step,
                    "epoch": epoch,
                    "loss": sum(cfg.losses[task] * value for task, value in losses.items()),
                    **{f"loss/{task}": value for task, value in losses.items()},
                    "lr": lr,
                    "grad_norm": grad_norm,
                    "regions_per_second": num_regions / seconds,
                    "seconds": progress.seconds,
                }
            )
            out_of_time = stop_signal.agree(accelerator, late=progress.seconds >= limit_seconds)
            if stop_signal.received:
                break
            if cfg.loop.eval_every and step % cfg.loop.eval_every == 0:
                evaluate_and_keep_best()
            if cfg.log.samples_every and step % cfg.log.samples_every == 0:
                show_samples()
            if cfg.loop.save_every and step % cfg.loop.save_every == 0:
                save()
                saved_step = step

        finished = progress.step == total_steps or out_of_time or tired()
        if finished and cfg.loop.eval_every and progress.evaluated != progress.step:
            evaluate_and_keep_best()
        if saved_step != progress.step:
            save()
        if finished and progress.best is None:  # never evaluated: the last weights are the best we know
            with as_kept(average, plain_model):
                checkpoint.save_best(folder, accelerator, model, processor, progress, trainable_only)
        why = f"signal {stop_signal.received}" if stop_signal.received else "the end" if finished else "a pause"
        if tired():
            why = f"{progress.worse} evaluations without a better {progress.metric} than {progress.best:.4f}, the end"
        minutes = progress.seconds / 60
        log.say(f"{folder}: {why} after step {progress.step} of {total_steps}, {minutes:.1f} minutes of training steps")
    return RunResult(folder, progress.step, progress.best, stop_signal.received)


def stream(loader: Loader, progress: checkpoint.Progress) -> Iterator[list]:
    """Steps for ever, from where `progress` stands, which moves on with every step."""
    while True:
        last = loader.num_steps(progress.epoch) - 1
        for batches in loader.epoch(progress.epoch, start_step=progress.next):
            done = progress.next == last
            progress.epoch, progress.next = (progress.epoch + 1, 0) if done else (progress.epoch, progress.next + 1)
            yield batches


def steps_of(loader: Loader, epochs: float) -> int:
    """Steps of so many epochs, of which each may have another number; at least one."""
    whole = int(epochs)
    steps = sum(loader.num_steps(epoch) for epoch in range(whole))
    if epochs > whole:
        steps += round((epochs - whole) * loader.num_steps(whole))
    return max(1, steps)


def tasks_to_train(weights: dict[str, float], known: Sequence[str]) -> list[str]:
    """The tasks with a weight above 0, in the model's order. ValueError for a task that the model does not have."""
    for task in weights:
        if task not in known:
            raise ValueError(
                f"losses: this model has no task {task!r}.{suggestion(task, known)} Its tasks: {', '.join(known)}."
            )
    return [task for task in known if weights.get(task, 0.0) > 0]


def check_finite(accelerator: Accelerator, parts: torch.Tensor, window: list, step: int) -> list[float]:
    """Sums over batches and processes, (tasks,). NonFiniteLoss on every process where one of `parts` (accumulation,
    tasks) of any process is NaN or infinite."""
    bad = [number for number, part in enumerate(parts) if not part.isfinite().all()]
    *totals, num_bad = launch.sum_over_processes(accelerator, [*parts.sum(0).tolist(), len(bad)])
    if num_bad:
        raise NonFiniteLoss(
            describe_regions(accelerator, f"step {step}: the loss is not finite", [window[number] for number in bad])
        )
    return totals


def describe_regions(accelerator: Accelerator, fault: str, batches: list) -> str:
    """Every process calls it with its own batches; returns the whole message."""
    ids = launch.gather_lists(accelerator, [region_id for batch in batches for region_id in batch.ids])
    return (
        f"{fault}; nothing was saved over. It came from these {len(ids)} regions: {', '.join(ids)}. Look at them with "
        "`python -m data_prep.check FILE`, or lower optim.lr or loop.clip"
    )


def clip_gradients(accelerator: Accelerator, model, clip: float) -> float:
    """The gradient's global norm before clipping to `clip` (0: not clipped)."""
    if launch.zero_stage(accelerator):  # DeepSpeed has clipped in its own step
        return float(model.get_global_grad_norm())
    return float(accelerator.clip_grad_norm_(model.parameters(), clip or math.inf))


@contextlib.contextmanager
def as_kept(average: WeightAverage | None, model) -> Iterator[None]:
    """Inside, the model has the weights that are evaluated and go to best/, with what it keeps ready for inference."""
    with contextlib.nullcontext() if average is None else average.applied(model):
        refresh(model)
        yield


def refresh(model) -> None:
    """What the model keeps ready for inference (embedded word lists) is brought up to its present weights."""
    model.eval()
    model.before_eval()
    model.train()


def set_seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % MOST_SEEDS)  # that of the last process may have passed the end
    torch.manual_seed(seed)


def describe(cfg: RunConfig, folder: Path, model, loader: Loader, total_steps: int, accelerator) -> str:
    def size(parameter) -> int:  # ZeRO-3 keeps only a part of each here
        return getattr(parameter, "ds_numel", parameter.numel())

    all_size = sum(size(parameter) for parameter in model.parameters())
    trained = sum(size(parameter) for parameter in model.parameters() if parameter.requires_grad)
    kind = str(accelerator.distributed_type).split(".")[-1]
    return (
        f"{folder}: {trained / 1e6:.2f} of {all_size / 1e6:.2f} M parameters trained, {loader.num_regions} regions an "
        f"epoch, at most {cfg.data.batch_size} a step, {loader.num_steps(0)} steps in the first epoch, {total_steps} "
        f"steps, {accelerator.num_processes} process{'es' if accelerator.num_processes > 1 else ''} ({kind}) on "
        f"{accelerator.device.type}, {cfg.loop.precision}"
    )


def new_model(section: dict, train_records):
    from dynrefer import models

    return models.build(section, train_records)


def saved_model(path: str):
    """In float32; a checkpoint as it was, and it will be removed some day: nothing may refer to it."""
    import dynrefer

    if not (Path(path).parent / checkpoint.LOOP_FILE).is_file():
        return dynrefer.load(path, device="cpu", dtype=torch.float32)
    model = dynrefer.load(path, device="cpu")
    model.loaded_from = None
    return model


def parse(argv: Sequence[str] | None = None) -> RunConfig:
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = Parser(
        prog="python -m train.run",
        description="Train a model.",
        epilog=settings_text() if {"-h", "--help"} & {*argv} else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, help="configs/NAME.yaml")
    parser.add_argument("settings", nargs="*", metavar="section.key=value", help="settings over those of the file")
    arguments = parser.parse_args(argv)
    return load_config(RunConfig, arguments.config, arguments.settings)


def settings_text() -> str:
    """Every setting of a run, with those of each family's models."""
    families = "\n\n".join(
        f"settings of model: in the family {name}:\n\n{row.settings_text()}" for name, row in FAMILIES.items()
    )
    return f"settings, with their types and defaults:\n{settings_help(RunConfig)}\n\n{families}"


def command(argv: Sequence[str] | None = None, **parts: Callable) -> int:
    """The exit status: 0, 2 after an error that the message explains, 128 + the signal that ended the run early."""

    def run(argv: Sequence[str] | None) -> int:
        result = main(parse(argv), **parts)
        return 128 + result.stopped_by if result.stopped_by else 0

    return run_command("train.run", run, argv)


if __name__ == "__main__":
    sys.exit(command())
