"""What every cell answers, and what proves its claims, before anything is timed."""

from collections.abc import Sequence

from kdbench.backends import Target
from kdbench.benchmark.cells import Cell, Subject
from kdbench.data.pack import EvalPack
from kdbench.data.sizes import Sizes, written
from kdbench.evaluation import judge
from kdbench.onnxfile import graph_of
from kdbench.onnxgraph import count_macs
from kdbench.progress import Progress
from kdbench.proofs.precision import reference
from kdbench.proofs.prove import Sized, compared_inputs, prove
from kdbench.records import Evaluation
from kdbench.store import Arrays


def judged(
    subjects: Sequence[Subject],
    cells: Sequence[Cell],
    timed: Sequence[Cell],
    pack: EvalPack | None,
    progress: Progress,
) -> tuple[list[Evaluation], Arrays]:
    """Every subject's answers through each backend and thread count of which a cell can run, and their raw arrays.

    Answers are given in the plan's largest batch; each batch and size that is `timed` has a proof of its own.
    """
    batch = max(cell.batch for cell in cells)
    able: dict[tuple[str, Target, int], list[Cell]] = {}
    for cell in timed:
        if cell.error is None:
            able.setdefault((cell.subject.artifact.rung, cell.backend, cell.threads), []).append(cell)
    by_rung = {subject.artifact.rung: subject for subject in subjects}
    evaluations: list[Evaluation] = []
    arrays = Arrays()
    compared: dict[tuple[str, str], Sized] = {}
    for number, ((rung, backend, threads), own) in enumerate(able.items()):
        progress("evaluate", number, len(able))
        subject = by_rung[rung]
        record, predicted = judge(subject.artifact, subject.model, pack, batch, backend, threads)
        if pack is not None and predicted is not None:
            arrays[f"predictions.{number}"] = predicted.astype("int32")
            if pack.y_test is not None:
                arrays["labels"] = pack.y_test.astype("int32")
            record = record.model_copy(update={"raw": str(number)})
        if record.error is None:
            for cell in own:
                if (rung, written(cell.dims)) not in compared:
                    compared[rung, written(cell.dims)] = _sized(subject, pack, cell.dims)
            slots = dict.fromkeys((written(cell.dims), cell.batch) for cell in own)
            wanted = [(compared[rung, size], in_batches) for size, in_batches in slots]
            record = prove(record, backend, subject.artifact, subject.model, wanted)
        evaluations.append(record)
    progress("evaluate", len(able), len(able))
    return evaluations, arrays


def _sized(subject: Subject, pack: EvalPack | None, dims: Sizes) -> Sized:
    """What is compared of a model at one size: the larger that is, the fewer samples."""
    artifact, model = subject.artifact, subject.model
    if artifact.macs is None and dims:
        artifact = artifact.model_copy(update={"macs": count_macs(graph_of(model), dims)})
    feed = compared_inputs(artifact, pack, dims)
    return Sized(dims, feed, reference(artifact, model, feed))
