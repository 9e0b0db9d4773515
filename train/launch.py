"""Starting Accelerate on what the launcher gave us: one process, DDP, ZeRO-2 or ZeRO-3, on GPU or CPU.

Accelerate gets several CPU cases silently wrong (two DeepSpeed processes that each believe they are alone, one process
where two were asked for), so `start` sets what it needs and then checks the world it got.
"""

import datetime
import json
import os
import platform
import signal
import socket
import threading
from collections.abc import Callable

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DeepSpeedPlugin,
    DistributedDataParallelKwargs,
    DistributedType,
    InitProcessGroupKwargs,
    broadcast_object_list,
    gather_object,
)
from transformers.integrations import unset_hf_deepspeed_config

from dynrefer.data.loader import StandIn
from dynrefer.files import read_text
from dynrefer.models.family import lay_row_by_row


def computes_bf16(cpu: bool = False) -> bool:
    """Whether the device of a run has instructions for bf16. Others imitate them, far slower than they compute fp32."""
    if torch.cuda.is_available() and not cpu:
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if _is_mps(cpu):
        return True
    if platform.machine() in ("x86_64", "AMD64"):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def start(
    *,
    precision: str = "fp32",
    deepspeed: str | None = None,
    clip: float = 0.0,
    batch_size: int = 1,
    processes: int | None = None,
    num_threads: int = 0,
    cpu: bool = False,
) -> Accelerator:
    """The Accelerator of this run.

    deepspeed: a DeepSpeed JSON (ZeRO stage 2 or 3), or None: the one that `accelerate launch` names, if any.
    clip: global gradient norm, which DeepSpeed applies itself. batch_size: regions of one forward, over all processes.
    processes: how many processes the user means to have, or None. num_threads: see LoopConfig.

    Raises ValueError where the number of processes or the kind of distribution is not the one asked for.
    """
    deepspeed = deepspeed or _deepspeed_of_launcher()
    on_cpu = cpu or not torch.cuda.is_available()
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if processes is not None and processes != world_size:
        raise ValueError(
            f"loop.processes is {processes} but {world_size} were started; on CPU use `torchrun --nproc_per_node "
            f"{processes} -m train.run ...` (`accelerate launch` starts one there), on GPU `accelerate launch "
            f"--num_processes {processes} -m train.run ...`"
        )

    plugin, handlers = None, [DistributedDataParallelKwargs(find_unused_parameters=True)]
    if deepspeed:
        plugin = DeepSpeedPlugin(hf_ds_config=_deepspeed_settings(deepspeed, precision, clip, batch_size, world_size))
        os.environ.pop("ACCELERATE_USE_CPU", None)  # it would turn DeepSpeed into plain DDP without a word
        if on_cpu:
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        if "RANK" not in os.environ:  # plain `python -m train.run`: DeepSpeed wants a process group even for one
            port = str(_free_port())
            os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    if deepspeed or world_size > 1:
        # evaluation and saving on one rank may take longer than the usual limit of 10 or 30 minutes
        backend = "gloo" if on_cpu else None
        handlers.append(InitProcessGroupKwargs(backend=backend, timeout=datetime.timedelta(hours=6)))

    accelerator = Accelerator(
        mixed_precision="bf16" if precision == "bf16" else "no",
        cpu=on_cpu and not deepspeed and not _is_mps(cpu),
        gradient_accumulation_steps=1,  # the loop divides by the counts of the whole window; nothing else may divide
        deepspeed_plugin=plugin,
        kwargs_handlers=handlers,
        step_scheduler_with_optimizer=False,
    )
    if deepspeed:
        # else Transformers would split a ZeRO-3 model's weights while it builds them, where a part of a model that has
        # its own initialization finds empty tensors; they are split when the whole model is prepared
        unset_hf_deepspeed_config()
    _check_world(accelerator, world_size, deepspeed)
    if accelerator.device.type == "cpu":
        local = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
        # `accelerate launch` sets OMP_NUM_THREADS=1 by itself, so the environment says nothing about the user's wish
        torch.set_num_threads(num_threads or max(1, _cores() // local))
        # backward, the CPU's flash attention is far slower than the plain product on short rows (a third of the step in
        # the quickstart); the switch is named after CUDA but holds for the CPU
        torch.backends.cuda.enable_flash_sdp(False)
    return accelerator


def finish(accelerator: Accelerator) -> None:
    """Leaves the process group, without which DeepSpeed runs now and then crash at exit after all work is done, and
    forgets Accelerate's state, so that another run may follow in this process."""
    accelerator.free_memory()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    AcceleratorState._reset_state(reset_partial_state=True)


class StopSignal:
    """Within it, SIGTERM and SIGINT only leave a note, which `agree` turns into `received`, the signal's number, on all
    processes at the same step. A second Ctrl-C interrupts at once."""

    def __init__(self):
        self.received: int | None = None
        self._noted: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():  # Python takes signals nowhere else
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def agree(self, accelerator: Accelerator, late: bool) -> bool:
        """Every process calls it: a signal that one received counts for all, and so does one clock that says `late`,
        which is returned."""
        noted = self._noted
        signalled, late = sum_over_processes(accelerator, [float(noted is not None), float(late)])
        if signalled:
            self.received = noted or signal.SIGTERM
        return late > 0

    def _note(self, number: int, frame) -> None:
        if number == signal.SIGINT and self._noted == signal.SIGINT:
            raise KeyboardInterrupt
        self._noted = number


def prepare_for_deepspeed(model: torch.nn.Module, precision: str) -> None:
    """DeepSpeed (0.19) broadcasts parameters as bytes: one of shape () becomes (1,), marked for `checkpoint` to save it
    as it was, and convolutions in channels-last layout are laid row by row. Call it before the optimizer is built.

    ValueError for batch normalization in bf16: DeepSpeed rounds its weights but not its statistics, and PyTorch has no
    kernel for the two together.
    """
    normalized = next((n for n, m in model.named_modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)), "")
    if normalized and precision == "bf16":
        raise ValueError(
            f"loop.precision bf16 under DeepSpeed: {normalized} is a batch normalization, which DeepSpeed cannot run "
            "in bf16; set loop.precision=fp32, or train without DeepSpeed"
        )
    lay_row_by_row(model)
    for parameter in model.parameters():
        if parameter.ndim == 0:
            parameter.was_scalar = True
            parameter.data = parameter.data.view(1)


def zero_stage(accelerator: Accelerator) -> int:
    """2 or 3 under DeepSpeed, else 0."""
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        return 0
    return accelerator.state.deepspeed_plugin.zero_stage


def call_as_forward(accelerator: Accelerator, model: torch.nn.Module, call: Callable):
    """call(), under ZeRO-3 in the place of the model's forward: only there are the weights of its top level, which no
    module of their own holds, brought together. `model` is the unwrapped one."""
    if zero_stage(accelerator) != 3:
        return call()
    before = model.__dict__.get("forward")
    model.forward = call
    try:
        return model()
    finally:
        del model.forward
        if before is not None:
            model.forward = before


def before_step(model, window: list) -> None:
    """The model's `before_step`, with what a stand-in shows in its place."""
    model.before_step([batch.shown if isinstance(batch, StandIn) else batch for batch in window])


def sums_of(model, batch) -> dict[str, torch.Tensor]:
    """The model's sums of a batch; those of a stand-in count nothing and still touch every weight."""
    if not isinstance(batch, StandIn):
        return model(batch)
    return {task: 0 * total for task, total in model(batch.shown).items()}


def sum_over_processes(accelerator: Accelerator, values: list[float]) -> list[float]:
    """Element-wise sums over all processes, in float64; every process passes a list of the same length."""
    if accelerator.num_processes == 1:
        return list(values)
    total = torch.tensor(values, dtype=torch.float64, device=accelerator.device)
    torch.distributed.all_reduce(total)
    return total.tolist()


def on_main(accelerator: Accelerator, call: Callable):
    """call() of the main process, on every process; its ValueError or OSError is everybody's."""
    if accelerator.num_processes == 1:
        return call()
    value = error = None
    if accelerator.is_main_process:
        try:
            value = call()
        except (ValueError, OSError) as mistake:
            error = mistake
    value, error = broadcast_object_list([value, error], from_process=0)
    if error is not None:
        raise error
    return value


def gather_lists(accelerator: Accelerator, items: list) -> list:
    """Every process's list, in the order of ranks, on every process."""
    return list(items) if accelerator.num_processes == 1 else gather_object(items)


def _deepspeed_of_launcher() -> str | None:
    """The DeepSpeed JSON in the environment that `accelerate launch --config_file` sets."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() != "true":
        return None
    path = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
    if not path or path == "none":
        raise ValueError(
            "accelerate asks for DeepSpeed without `deepspeed_config_file`; start from configs/accelerate/zero2.yaml "
            "or set loop.deepspeed=configs/accelerate/ds_zero2.json"
        )
    return path


def _deepspeed_settings(path: str, precision: str, clip: float, batch_size: int, world_size: int) -> dict:
    """The JSON's settings with those that the loop decides filled in; a JSON that sets them too is an error."""
    try:
        settings = json.loads(read_text(path))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"loop.deepspeed: cannot read {path!r} as JSON: {error}") from error
    stage = settings.get("zero_optimization", {}).get("stage")
    if stage not in (2, 3):
        raise ValueError(f"{path}: zero_optimization.stage is {stage!r}; this loop runs stages 2 and 3")
    ours = {
        "gradient_accumulation_steps": 1,
        "train_micro_batch_size_per_gpu": batch_size // world_size,
        "train_batch_size": batch_size // world_size * world_size,
        "gradient_clipping": clip,
        "bf16": {"enabled": precision == "bf16"},
        "zero_allow_untested_optimizer": True,
    }
    for key in ours:
        if key in settings:
            raise ValueError(f"{path}: {key!r} is set by the run's own settings (loop, data); remove it from the JSON")
    for key in ("optimizer", "scheduler"):
        if key in settings:
            raise ValueError(f"{path}: {key!r} is not used here; set `optim:` in the run's YAML")
    if stage == 3:
        settings["zero_optimization"].setdefault("stage3_gather_16bit_weights_on_model_save", True)
    return settings | ours


def _check_world(accelerator: Accelerator, world_size: int, deepspeed: str | None) -> None:
    got = accelerator.distributed_type
    if accelerator.num_processes != world_size:
        raise ValueError(f"{world_size} processes were started but Accelerate sees {accelerator.num_processes} ({got})")
    if deepspeed and got != DistributedType.DEEPSPEED:
        raise ValueError(f"DeepSpeed was asked for ({deepspeed}) but Accelerate runs {got}")
    if world_size > 1 and got == DistributedType.NO:
        raise ValueError(f"{world_size} processes were started but their gradients would not be averaged ({got})")
    if got == DistributedType.FSDP:
        raise ValueError("this loop does not run FSDP; use configs/accelerate/ddp.yaml, zero2.yaml or zero3.yaml")


def _is_mps(cpu: bool) -> bool:
    return not cpu and torch.backends.mps.is_available()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]
