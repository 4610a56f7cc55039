"""Flat progress bars with time left; silent where standard error is no terminal, and in all but the main process."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[str, float, float], None]
"""`progress(label, done, total)`: called as often as the work likes; a label is shown as one bar."""


def silent(label: str, done: float, total: float) -> None:
    """Shows nothing: the default of every function that reports progress."""


def unsaid(sentence: str) -> None:
    """Keeps a remark to itself: the default of every function that has some."""


def launched() -> bool:
    """Whether torchrun, or a launcher that speaks as it does, started this process as one of a training."""
    return {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()


def is_main() -> bool:
    """Whether this process is the one that writes files, prints and shows progress: the only one, or the first."""
    return not launched() or os.environ["RANK"] == "0"


@contextmanager
def bars() -> Iterator[Progress]:
    """Bars on standard error, one a label, each with the time left."""
    from rich.console import Console
    from rich.progress import BarColumn, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    if not console.is_terminal or not is_main():
        yield silent
        return
    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(bar_width=30),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    tasks: dict[str, TaskID] = {}
    with Bars(*columns, console=console) as shown:

        def update(label: str, done: float, total: float) -> None:
            if label not in tasks:
                tasks[label] = shown.add_task(label, total=total)
            shown.update(tasks[label], completed=min(done, total), total=total)

        yield update
