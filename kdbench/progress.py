"""Progress with time left: flat bars, or a plain line now and then where standard error is no terminal.

All but the main process are silent.
"""

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

Progress = Callable[[str, float, float], None]
"""`progress(label, done, total)`: called as often as the work likes; a label is shown as one bar."""

QUIET_S = 30.0
"""Between two plain lines, and before the first: what is short stays silent."""


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


def duration(value: float) -> str:
    """Seconds of work, roughly: `12 s`, `4 min`, `2.5 h`."""
    if value < 99.5:
        return f"{max(1, math.ceil(value))} s"
    return f"{value / 60:.0f} min" if value < 99.5 * 60 else f"{value / 3600:.2g} h"


def lines(say: Callable[[str], None], now: Callable[[], float] = time.monotonic) -> Progress:
    """Says `student: 40 %, 3 min left` of what is under way, at most every QUIET_S seconds for all labels together."""
    said_s = now()
    begun: dict[str, tuple[float, float]] = {}
    """By label: when, and with how much done, which is more than nothing where work goes on."""
    latest: dict[str, float] = {}

    def update(label: str, done: float, total: float) -> None:
        nonlocal said_s
        here_s = now()
        if done < latest.get(label, math.inf):  # new, or another training of that label
            begun[label] = here_s, done
        latest[label] = done
        if here_s - said_s < QUIET_S or done >= total:
            return
        said_s = here_s
        start_s, first = begun[label]
        left_s = (here_s - start_s) * (total - done) / (done - first) if done > first else None
        say(f"{label}: {100 * done / total:.0f} %" + ("" if left_s is None else f", {duration(left_s)} left"))

    return update


@contextmanager
def bars() -> Iterator[Progress]:
    """Bars on standard error, one a label, each with the time left; plain lines where it is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    if not console.is_terminal or not is_main():
        yield lines(partial(console.print, markup=False, highlight=False, soft_wrap=True)) if is_main() else silent
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
    latest: dict[str, float] = {}
    with Bars(*columns, console=console) as shown:

        def update(label: str, done: float, total: float) -> None:
            if label not in tasks:
                tasks[label] = shown.add_task(label, total=total)
            elif done < latest[label]:  # another piece of work of that label: its time is its own
                shown.reset(tasks[label])
            latest[label] = done
            shown.update(tasks[label], completed=min(done, total), total=total)

        yield update
