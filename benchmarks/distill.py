"""What training and distillation cost, on random 32×32 colour images.

    python benchmarks/distill.py speed      ResNet-20: images a second against a plain textbook loop
    python benchmarks/distill.py teacher    ResNet-56 teaches ResNet-20: an epoch with kept answers, and with given ones
    python benchmarks/distill.py memory     peak memory by epochs and by the size of the kept answers

Each prints a Markdown table. The ways take turns in one process, so that what else the machine does strikes all of
them; ratios are those of rounds, with a t-interval. Two to five minutes each on two cores; `--threads N` sets how many.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded, as kdbench does

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from kdbench.data import preprocess
from kdbench.data.dataset import Dataset
from kdbench.losses.weighted import terms
from kdbench.machine import describe
from kdbench.models import build
from kdbench.records import Augment, Loss, Preprocessing, Training
from kdbench.stats import speedup
from kdbench.training.loop import Course, fit
from kdbench.training.teaching import Faculty, Shelf, Teaching
from kdbench.training.weights import Trained

THREADS = 2
BATCH = 128
BATCHES = 4
"""In a round, of each."""
ROUNDS = 12
OPTIONS = {"depth": 20}
TEACHER = {"depth": 56}
SAMPLES, MANY = 1024, 20_000
"""Of the measurement of memory: samples and classes, so that the answers to a view take 41 MB."""
SHAPE = (3, 32, 32)
CLASSES = 10


def images() -> Dataset:
    generator = np.random.default_rng(0)
    x = generator.integers(0, 256, (BATCH * BATCHES, *SHAPE), dtype=np.uint8)
    y = generator.integers(0, CLASSES, len(x))
    names = tuple(str(number) for number in range(CLASSES))
    preprocessing = Preprocessing(scale=1 / 255, mean=(0.5,) * 3, std=(0.25,) * 3)
    return Dataset(x, y, x[:1], y[:1], names, preprocessing)


def textbook(dataset: Dataset) -> Callable[[], float]:
    """The loop of every tutorial, in float32: images a second of one epoch."""
    torch.set_num_threads(THREADS)
    model = build("resnet", OPTIONS, SHAPE, CLASSES)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    x = (torch.from_numpy(dataset.x_train).float() / 255 - 0.5) / 0.25
    assert dataset.y_train is not None
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x, torch.from_numpy(dataset.y_train)), batch_size=BATCH, shuffle=True
    )

    def epoch() -> float:
        torch.set_num_threads(THREADS)
        start = time.perf_counter()
        model.train()
        for images, labels in loader:
            optimizer.zero_grad()
            functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
        return len(x) / (time.perf_counter() - start)

    return epoch


def started(dataset: Dataset) -> Trained:
    return Trained(
        model="resnet",
        options=OPTIONS,
        input_shape=SHAPE,
        classes=dataset.classes,
        preprocessing=dataset.preprocessing,
        fingerprint="",
        epoch=0,
    )


def ours(
    dataset: Dataset, precision: str, folder: Path, faculty: Faculty | None = None, epochs: int = 1
) -> Callable[[], float]:
    """kdbench's loop, with its preprocessing, checks and determinism: images a second as its metrics say.

    With a `faculty` it distils by KD, else it learns from the labels alone.
    """
    training = Training(epochs=epochs, learning_rate=0.01, batch_size=BATCH, precision=precision)
    losses = {"cross_entropy": Loss()} | ({"kd": Loss()} if faculty else {})

    def epoch() -> float:
        checkpoint, lines = folder / "checkpoint.safetensors", folder / "metrics.jsonl"
        checkpoint.unlink(missing_ok=True)
        loss = terms(losses, 4.0, folder, epochs)
        model = build("resnet", OPTIONS, SHAPE, CLASSES)
        course = Course(dataset, training, loss, faculty, threads=THREADS)
        fit(model, course, started(dataset), checkpoint, lines=lines)
        return float(json.loads(lines.read_text().splitlines()[-1])["samples_per_s"])

    return epoch


def teachers(dataset: Dataset, shelf: Shelf | None) -> Faculty:
    torch.manual_seed(0)
    model = build("resnet", TEACHER, SHAPE, CLASSES)
    return Faculty([Teaching(model, dataset.preprocessing)], dataset.preprocessing, CLASSES, shelf)


def forward(dataset: Dataset) -> Callable[[], float]:
    """The teacher's answers to the whole epoch, and nothing else: images a second."""
    faculty = teachers(dataset, None)
    faculty.prepare(torch.device("cpu"), "fp32")

    def epoch() -> float:
        torch.set_num_threads(THREADS)
        start = time.perf_counter()
        for first in range(0, len(dataset.x_train), BATCH):
            samples = dataset.x_train[first : first + BATCH]
            x = torch.from_numpy(preprocess.apply(samples, dataset.preprocessing))
            with torch.no_grad():
                faculty.say(samples, x, np.arange(first, first + len(samples)))
        return len(dataset.x_train) / (time.perf_counter() - start)

    return epoch


def in_turns(ways: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Seconds an image of each way in each round; the first round warms up."""
    found: dict[str, list[float]] = {way: [] for way in ways}
    for run in range(ROUNDS + 1):
        for way, epoch in ways.items():
            rate = epoch()
            if run:
                found[way].append(1 / rate)
            print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return found


def shown(slow: Sequence[float], fast: Sequence[float]) -> str:
    ratio = speedup(slow, fast)
    assert ratio is not None
    return f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"


def about(what: str) -> None:
    print(f"{what}, 32×32, batch {BATCH}, {THREADS} threads of {describe().cpu}, torch {torch.__version__}:\n")


def speed() -> None:
    dataset = images()
    plain = "a textbook loop, fp32"
    with tempfile.TemporaryDirectory() as scratch:
        found = in_turns(
            {
                plain: textbook(dataset),
                "kdbench, fp32": ours(dataset, "fp32", Path(scratch)),
                "kdbench, bf16 and channels-last": ours(dataset, "bf16", Path(scratch)),
            }
        )
    about("ResNet-20")
    print("| | images/s (median) | against the textbook loop |\n|:---|---:|---:|")
    for way, seconds in found.items():
        print(f"| {way} | {1 / np.median(seconds):.0f} | {1 if way == plain else shown(found[plain], seconds)} |")


def teacher() -> None:
    """An epoch of distillation against the same epoch of plain training, alone and with the teacher's answers."""
    dataset = images()
    with tempfile.TemporaryDirectory() as scratch:
        shelf = Shelf(lambda name: Path(scratch, name), {})
        found = in_turns(
            {
                "alone": ours(dataset, "fp32", Path(scratch)),
                "kept": ours(dataset, "fp32", Path(scratch), teachers(dataset, shelf)),
                "given": ours(dataset, "fp32", Path(scratch), teachers(dataset, None)),
                "forward": forward(dataset),
            }
        )
    both = [alone + forward for alone, forward in zip(found["alone"], found["forward"], strict=True)]
    about("ResNet-56 teaches ResNet-20")
    print("| an epoch | images/s (median) | takes, as a ratio |\n|:---|---:|---:|")
    print(f"| of the student alone | {1 / np.median(found['alone']):.0f} | 1 |")
    print(f"| of the teacher's answers alone | {1 / np.median(found['forward']):.0f} | |")
    print(
        f"| with kept answers | {1 / np.median(found['kept']):.0f} | {shown(found['kept'], found['alone'])} of alone |"
    )
    print(
        f"| with given answers | {1 / np.median(found['given']):.0f} | "
        f"{shown(found['given'], both)} of alone and answers together |"
    )


def memory() -> None:
    """Peak memory of whole processes: of their own pages, and of all, mapped files among them."""
    print(f"An MLP of {MANY} classes by kept answers to {SAMPLES} samples:\n")
    print("| epochs | views | kept answers | own peak | with mapped files |\n|---:|---:|---:|---:|---:|")
    for epochs, views in ((4, 1), (4, 4), (16, 4)):
        arguments = [sys.executable, __file__, "one", str(epochs), str(views)]
        done = subprocess.run(arguments, stdout=subprocess.PIPE, text=True, check=True)
        own, whole = (f"{int(kilobytes) / 1e3:.0f} MB" for kilobytes in done.stdout.split())
        print(f"| {epochs} | {views} | {SAMPLES * MANY * 2 * views / 1e6:.0f} MB | {own} | {whole} |")


def one(epochs: int, views: int) -> None:
    """Trains with kept answers, and prints the peaks of this process's memory in kB."""
    generator = np.random.default_rng(0)
    x = generator.integers(0, 256, (SAMPLES, 1, 8, 8), dtype=np.uint8)
    dataset = Dataset(x, None, x[:1], None, tuple(map(str, range(MANY))), Preprocessing(scale=1 / 255))
    training = Training(epochs=epochs, learning_rate=0.01, batch_size=16)
    model = build("mlp", {"widths": [16]}, (1, 8, 8), MANY)
    own, over = [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.005):
            own[0] = max(own[0], int(status()["RssAnon"]))

    with tempfile.TemporaryDirectory() as scratch:
        shelf = Shelf(lambda name: Path(scratch, name), {})
        teaching = Teaching(lambda x: torch.zeros(len(x), MANY), dataset.preprocessing)
        faculty = Faculty([teaching], dataset.preprocessing, MANY, shelf)
        loss = terms({"kd": Loss()}, 4.0, Path(), epochs)
        course = Course(dataset, training, loss, faculty, Augment(flip=True, views=views))
        watcher = threading.Thread(target=watch)
        watcher.start()
        fit(model, course, started(dataset), Path(scratch, "checkpoint.safetensors"))
        over.set()
        watcher.join()
    print(own[0], status()["VmHWM"])


def status() -> dict[str, str]:
    """This process's memory in kB, as Linux has it."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {fields[0].removesuffix(":"): fields[1] for fields in lines if len(fields) > 1}


def main() -> None:
    global THREADS
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "teacher", "memory", "one"])
    parser.add_argument("numbers", type=int, nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=THREADS)
    options = parser.parse_args()
    THREADS = options.threads
    {"speed": speed, "teacher": teacher, "memory": memory, "one": one}[options.what](*options.numbers)


if __name__ == "__main__":
    main()
