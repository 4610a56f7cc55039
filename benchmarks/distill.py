"""What training costs: images a second of ResNet-20 on 32×32 colour images, against a plain textbook loop.

    python benchmarks/distill.py [threads]

Prints a Markdown table. The ways take turns in one process, so that what else the machine does strikes all of them;
ratios are those of rounds, with a t-interval. About three minutes on two cores; the images are random.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded, as kdbench does

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from kdbench.data.dataset import Dataset
from kdbench.losses.weighted import terms
from kdbench.machine import describe
from kdbench.models import build
from kdbench.records import Loss, Preprocessing, Training
from kdbench.stats import speedup
from kdbench.training.loop import Course, fit
from kdbench.training.weights import Trained

THREADS = int(sys.argv[1]) if len(sys.argv) > 1 else 2
BATCH = 128
BATCHES = 4
"""In a round, of each."""
ROUNDS = 12
OPTIONS = {"depth": 20}
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


def ours(dataset: Dataset, precision: str, folder: Path) -> Callable[[], float]:
    """kdbench's loop, with its preprocessing, checks and determinism: images a second as its metrics say."""
    training = Training(epochs=1, learning_rate=0.01, batch_size=BATCH, precision=precision)
    started = Trained(
        model="resnet",
        options=OPTIONS,
        input_shape=SHAPE,
        classes=dataset.classes,
        preprocessing=dataset.preprocessing,
        fingerprint="",
        epoch=0,
    )

    def epoch() -> float:
        checkpoint, lines = folder / "checkpoint.safetensors", folder / "metrics.jsonl"
        checkpoint.unlink(missing_ok=True)
        loss = terms({"cross_entropy": Loss()}, 1.0, folder, 1)
        model = build("resnet", OPTIONS, SHAPE, CLASSES)
        fit(model, Course(dataset, training, loss, threads=THREADS), started, checkpoint, lines=lines)
        return float(json.loads(lines.read_text())["samples_per_s"])

    return epoch


def main() -> None:
    dataset = images()
    with tempfile.TemporaryDirectory() as scratch:
        ways = {
            "a textbook loop, fp32": textbook(dataset),
            "kdbench, fp32": ours(dataset, "fp32", Path(scratch)),
            "kdbench, bf16 and channels-last": ours(dataset, "bf16", Path(scratch)),
        }
        found: dict[str, list[float]] = {way: [] for way in ways}
        for run in range(ROUNDS + 1):
            for way, epoch in ways.items():
                rate = epoch()
                if run:  # the first warms up
                    found[way].append(rate)
                print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    machine = describe()
    print(f"ResNet-20, 32×32, batch {BATCH}, {THREADS} threads of {machine.cpu}, torch {torch.__version__}:\n")
    print("| | images/s (median) | against the textbook loop |\n|:---|---:|---:|")
    first = [1 / rate for rate in found["a textbook loop, fp32"]]
    for way, rates in found.items():
        ratio = speedup(first, [1 / rate for rate in rates])
        assert ratio is not None
        shown = f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
        print(f"| {way} | {np.median(rates):.0f} | {shown if rates is not found['a textbook loop, fp32'] else 1} |")


if __name__ == "__main__":
    main()
