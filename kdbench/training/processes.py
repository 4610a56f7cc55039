"""One training in several processes, started by torchrun: accelerate finds the device and starts the process group.

Without torchrun there is one process, and nothing here asks accelerate or does anything. Each process takes its part of
every batch, and the gradients are summed: the same training as by one process, but for rounding, where no layer and no
loss relates the samples of a batch to each other. Only the main process (`kdbench.progress.is_main`) writes and prints.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn

from kdbench.errors import UserError, first_line
from kdbench.progress import launched

T = TypeVar("T")

PATIENCE = timedelta(hours=2)
"""How long a process waits for the others, such as for the export by the main one."""


@contextmanager
def joined() -> Iterator[None]:
    """Joins the processes that torchrun started, waits for all of them at the end, and leaves them."""
    if not launched():
        yield
        return
    try:
        from accelerate import PartialState
    except ImportError:
        raise UserError("several processes need accelerate, which is not installed: pip install accelerate") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # threads are set by the recipe
        state = PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
    try:
        yield
        with _all_alive():
            state.wait_for_everyone()
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()
        PartialState._reset_state()


def count() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """From 0, which is the main process."""
    return distributed.get_rank() if count() > 1 else 0


def device() -> torch.device:
    """Where this process computes: its GPU if it has one."""
    if count() > 1:
        from accelerate import PartialState

        found: torch.device = PartialState().device
        return found
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def part(index: NDArray[np.int64]) -> tuple[NDArray[np.int64], float]:
    """This process's part of a batch, and its share of the whole.

    A batch of less than two samples a process is given to each of them whole: batch norm learns nothing from one.
    """
    processes = count()
    if len(index) < 2 * processes:
        return index, 1 / processes
    mine = np.array_split(index, processes)[rank()]
    return mine, len(mine) / len(index)


def means(values: Mapping[str, Tensor], share: float) -> dict[str, float]:
    """Means over the whole batch of scalars that each process has of its part; the same in all processes."""
    if count() == 1:
        return {name: value.item() for name, value in values.items()}
    stacked = torch.stack([value.detach().double() for value in values.values()]) * share
    with _all_alive():
        distributed.all_reduce(stacked)
    return dict(zip(values, stacked.tolist(), strict=True))


def sum_gradients(parameters: Sequence[nn.Parameter], share: float) -> None:
    """Makes the gradients of each process's part those of the whole batch.

    A parameter that has none in this process but one in another, as where layers are skipped at random, counts as 0.
    """
    if count() == 1:
        return
    learning = [parameter for parameter in parameters if parameter.requires_grad]
    known = [parameter.grad is not None for parameter in learning]
    gradients = [torch.zeros_like(parameter) if parameter.grad is None else parameter.grad for parameter in learning]
    # Which are known travels with them, and is read only of those that are missing here: a step waits once.
    flat = torch.cat([*(gradient.flatten() for gradient in gradients), torch.tensor(known, device=device())]) * share
    with _all_alive():
        distributed.all_reduce(flat)
    *summed, anywhere = torch.split(flat, [*(gradient.numel() for gradient in gradients), len(known)])
    for parameter, gradient, total, here, there in zip(learning, gradients, summed, known, anywhere, strict=True):
        parameter.grad = gradient.copy_(total.view_as(gradient)) if here or there else None


def share_buffers(*modules: nn.Module) -> None:
    """Gives all processes the main one's buffers, such as the statistics of batch norm, which saw its part alone."""
    _share([buffer for module in modules for buffer in module.buffers()])


def share_all(model: nn.Module) -> None:
    """Gives all processes the main one's parameters and buffers, whatever each of them has drawn."""
    _share([*model.parameters(), *model.buffers()])


def _share(tensors: Sequence[Tensor]) -> None:
    for tensor in tensors if count() > 1 else ():
        theirs = tensor.detach().contiguous()
        with _all_alive():
            distributed.broadcast(theirs, src=0)
        tensor.detach().copy_(theirs)


def of_main(value: float) -> float:
    """The main process's number."""
    if count() == 1:
        return value
    number = torch.tensor([value], dtype=torch.float64, device=device())
    with _all_alive():
        distributed.broadcast(number, src=0)
    return float(number.item())


def wait() -> None:
    """Until every process is here."""
    of_main(0.0)


def agreed(work: Callable[[], T]) -> T:
    """What `work` gives; where it raises UserError in any process, all raise that of the first one."""
    if count() == 1:
        return work()
    result: T | None = None
    message = ""
    try:
        result = work()
    except UserError as error:
        message = str(error)
    except OSError as error:
        message = f"cannot go on: {first_line(error)}"
    failed = torch.tensor([rank() if message else count()], device=device())
    with _all_alive():
        distributed.all_reduce(failed, distributed.ReduceOp.MIN)
    process = int(failed.item())
    if process < count():
        where = f"process {process} of {count()}: " if process else ""
        raise UserError(where + _said_by(process, message.encode()).decode())
    return result  # type: ignore[return-value]


def _said_by(process: int, content: bytes) -> bytes:
    """The bytes of one process, in all of them."""
    length = torch.tensor([len(content)], device=device())
    with _all_alive():
        distributed.broadcast(length, src=process)
        mine = content if rank() == process else bytes(int(length.item()))
        buffer = torch.tensor(list(mine), dtype=torch.uint8, device=device())
        distributed.broadcast(buffer, src=process)
    return bytes(buffer.tolist())


@contextmanager
def _all_alive() -> Iterator[None]:
    """Makes a lost connection to another process one line."""
    try:
        yield
    except RuntimeError:
        raise UserError("another process of this training has ended: see what it said") from None
