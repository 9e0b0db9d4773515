"""Several processes that run one command: who they are, and the word they have with each other now and then.

torch is imported where there is something to say: commands that need no model start without it.
"""

import datetime
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

# one process may work or score long after the others are done; a process that died is noticed at once
PATIENCE = datetime.timedelta(days=2)


def is_main() -> bool:
    """Whether this is the process that prints and writes: rank 0, or one alone."""
    return "torch" not in sys.modules or Processes.here()[0] == 0


@contextmanager
def launched() -> Iterator[None]:
    """Within it the processes that `torchrun` or `accelerate launch` started know of each other; "cuda" is this one's
    GPU, and the CPU's cores are shared evenly. Changes nothing for one process, or where they know already."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    if dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    else:  # launchers set OMP_NUM_THREADS=1, whatever the number of cores
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", processes))))
    dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def worker_pool(workers: int, start: str | None = None) -> Iterator[ProcessPoolExecutor]:
    """Processes that do this one's work. Ctrl-C, which reaches all of them, ends the waiting work and is told by this
    process alone. Work is submitted within `interrupts_held`. start: "spawn", "fork"; the system's own when None."""
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context(start), initializer=_ignore_interrupts)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Within it Ctrl-C waits: processes that start here begin without it, and ignore it when they come to work."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class Processes:
    """All processes of this run, or the only one. They talk over the CPU, whatever carries gradients.

    Every process makes one and calls the same methods in the same order.
    """

    def __init__(self):
        import torch.distributed

        self._dist = torch.distributed
        self.rank, self.world_size = self.here()
        self._group = self._dist.new_group(backend="gloo", timeout=PATIENCE) if self.world_size > 1 else None

    @staticmethod
    def here() -> tuple[int, int]:
        """(rank, number of processes), (0, 1) where there is no process group."""
        import torch.distributed as dist

        found = dist.is_available() and dist.is_initialized()
        return (dist.get_rank(), dist.get_world_size()) if found else (0, 1)

    def from_main(self, call: Callable[[], Any]) -> Any:
        """call() of the main process, on every process; its ValueError or OSError is everybody's."""
        if self._group is None:
            return call()
        said: list[Any] = [None, None]
        if self.rank == 0:
            try:
                said[0] = call()
            except (ValueError, OSError) as error:
                said[1] = error
        self._dist.broadcast_object_list(said, src=0, group=self._group)
        if said[1] is not None:
            raise said[1]
        return said[0]

    def wait(self, meanwhile: Callable[[], None] | None = None) -> None:
        """Until every process is here; `meanwhile` is called once a second. RuntimeError when one has died."""
        if self._group is None:
            return
        barrier = self._dist.barrier(group=self._group, async_op=True)
        while meanwhile is not None and not barrier.is_completed():
            meanwhile()
            time.sleep(1)
        barrier.wait()


def gather_rows(rows: "Tensor", fill: int = 0) -> "tuple[Tensor, int]":
    """All processes' rows below each other, in rank order, and the offset of this process's own.

    rows: (N, T), N and T may differ between processes; T is padded with `fill`. Returns (sum N, max T), no gradient.
    """
    import torch
    import torch.distributed as dist

    rank, world_size = Processes.here()
    if world_size == 1:
        return rows, 0
    shape = torch.tensor(rows.shape, device=rows.device)
    shapes = [torch.empty_like(shape) for _ in range(world_size)]
    dist.all_gather(shapes, shape)
    most_rows, most_columns = (max(int(s[i]) for s in shapes) for i in (0, 1))
    padded = rows.new_full((most_rows, most_columns), fill)
    padded[: rows.shape[0], : rows.shape[1]] = rows
    gathered = [torch.empty_like(padded) for _ in shapes]
    dist.all_gather(gathered, padded)
    parts = [part[: int(s[0])] for part, s in zip(gathered, shapes, strict=True)]
    return torch.cat(parts), sum(len(part) for part in parts[:rank])
