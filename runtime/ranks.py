"""One process or many: the ranks that torchrun starts.

`torchrun --nproc-per-node 8 run.py ...` starts a copy of run.py for every GPU, a *rank* each, on
one machine or several. All of this is torch.distributed; without torchrun it does nothing. Small
values are exchanged on the CPU (gloo), gradients by DistributedDataParallel. The caller decides
which rank does what.
"""

import contextlib
import os
import sys
import time

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from runtime import signals

store = None  # the dictionary that all ranks share
turns = 0  # how often `in_turn` was used


def begin(device: str) -> str:
    """Join the other ranks that torchrun started, if any; returns the device of this one.

    The device is chosen before anything touches a GPU: else all ranks would open the first one.
    """
    if "WORLD_SIZE" not in os.environ:
        return device
    if device == "cuda":
        device, GPUs = f"cuda:{os.environ['LOCAL_RANK']}", torch.cuda.device_count()
        if int(os.environ["LOCAL_RANK"]) >= GPUs:
            raise ValueError(f"there is no {device}; use torchrun --nproc-per-node {GPUs} or less")
        torch.cuda.set_device(device)
    global store
    backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
    store, rank, size = next(dist.rendezvous("env://"))
    if os.environ.get("GROUP_WORLD_SIZE") == "1":
        # torchrun's store outlives its restarts, with the addresses of ranks that were lost
        # (PyTorch issue 135712). On several machines the count of restarts differs, so there it
        # stays.
        store = dist.PrefixStore(os.environ["TORCHELASTIC_RESTART_COUNT"], store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    if rank > 0:
        sys.stdout = open(os.devnull, "w")  # one rank speaks for all
    return device


def end() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def restarted() -> bool:
    """Whether torchrun started these ranks again after one was lost."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def launch() -> str:
    """A text that tells one start of torchrun from another; "" without torchrun. Its restarts have
    the same.

    It is the id of the rendezvous, or torchrun's process where the user has named none.
    """
    name = os.environ.get("TORCHELASTIC_RUN_ID", "")
    return f"process {os.getppid()}" if name == "none" else name


def parallel(model: torch.nn.Module, device: str) -> torch.nn.Module:
    """The model with gradients averaged over the ranks; for a single process, the model itself."""
    if size() == 1:
        return model
    return DistributedDataParallel(
        model,
        [device] if device.startswith("cuda") else None,
        forward_sync_buffers=False,  # `share_buffers` does it once per epoch
        gradient_as_bucket_view=True,  # no second copy of the gradients
    )


def wait() -> None:
    """Wait until every rank is here: then all can read what the first one wrote."""
    if size() > 1:
        dist.barrier()


def total(*tensors: torch.Tensor) -> torch.Tensor:
    """Replace CPU tensors by their sums over the ranks; returns the first."""
    if size() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)
    return tensors[0]


def gather(items: list) -> list:
    """Every rank's items, rank by rank."""
    if size() == 1:
        return items
    of_each_rank = [None] * size()
    dist.all_gather_object(of_each_rank, items)
    return [item for part in of_each_rank for item in part]


def any_rank(*flags: bool) -> list[bool]:
    """Which flags are set on any rank. All ranks ask together, so they all do what follows."""
    return [count > 0 for count in total(torch.tensor(flags, dtype=torch.int32)).tolist()]


@contextlib.contextmanager
def in_turn():
    """The first rank goes ahead of the others, which then find what it drew or downloaded.

    It may take any time, while a barrier would give up after half an hour.
    """
    global turns
    turns += 1
    while rank() > 0 and not store.check([f"turn {turns}"]):
        signals.stop_if_asked("while waiting for the first rank")
        time.sleep(0.1)
    yield
    if rank() == 0 and store:
        store.set(f"turn {turns}", "")


def share_buffers(*modules: torch.nn.Module) -> None:
    """Give all ranks the running statistics of the first: in training each has its own."""
    if size() == 1:
        return
    for module in modules:
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)
