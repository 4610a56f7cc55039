"""A run in one file: packed where it was made, measured on a machine that needs neither torch nor the data."""

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdbench import __version__, archive
from kdbench.data.pack import load_pack
from kdbench.data.sizes import Sweep
from kdbench.errors import UserError
from kdbench.onnxfile import external_data, holds_compiled_parts
from kdbench.pipeline.measuring import Report, measured
from kdbench.pipeline.rungs import last_measured, measured_subjects, results_in, run_subjects
from kdbench.progress import Progress, unsaid
from kdbench.records import (
    Artifact,
    Bench,
    PackedFile,
    PackedRun,
    Recipe,
    ResultFile,
    from_json,
    parse,
    placeless,
    slug,
)
from kdbench.records.turns import SpiralRecord
from kdbench.store import (
    RETURNED,
    RunFolder,
    output_file,
    save_returned,
    sha256,
    sha256_of_file,
    sidecar,
    write_archive,
)
from kdbench.store import publish as publish_results

SUFFIX = ".kdbench.zip"
MANIFEST = "pack.json"
MOST_MANIFEST_BYTES = 2**24


@dataclass(frozen=True)
class Packed:
    """A packed run, and what is in it."""

    path: Path
    size_bytes: int
    run: PackedRun
    rungs: tuple[str, ...]
    samples: int | None
    """For evaluation; None where the run has none, so that its rungs are timed on generated inputs."""


def pack(
    run: str | Path,
    out: str | Path | None = None,
    *,
    plan: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = unsaid,
) -> Packed:
    """Writes a run folder's rungs, their samples and the plan of their benchmark as one file (default
    `NAME.kdbench.zip`).

    The plan is the recipe's section `bench` with the fields of `plan` laid over it. Of a folder that was measured, the
    rungs are those that its results are of. Packing one run again gives equal bytes.

    Raises UserError for a folder without rungs, and where a rung's file is not the one that its record describes.
    """
    folder = RunFolder(Path(run))
    measured_before = _earlier(folder, say)
    subjects = measured_subjects(folder, measured_before, say) if measured_before else run_subjects(folder)
    recipe, spiral = (measured_before.recipe, measured_before.spiral) if measured_before else (None, None)
    name = measured_before.name if measured_before else slug(folder.path.resolve().name)
    chosen = (recipe.bench if recipe else Bench()).model_dump(mode="json") | dict(plan or {})
    members: dict[str, bytes | Path] = {}
    for subject in subjects:
        model = subject.model
        members[sidecar(model).name] = placeless(Artifact, subject.artifact).to_json().encode()
        members |= {model.name: model} | {location: model.parent / location for location in external_data(model)}
    samples = _samples(folder)
    if samples is not None:
        members[folder.pack.name] = folder.pack
    else:
        say(f"no {folder.pack.name} in {folder.path}: the rungs will be timed on generated inputs, without accuracy")
    chosen_plan = parse(Bench, chosen, "plan")
    for foreign in _foreign(chosen_plan.backends, chosen_plan.options):
        say(f"the plan {foreign}: whoever measures it has to give that again, as a packed run may be anybody's")
    record = PackedRun(
        kdbench=__version__,
        name=name,
        plan=chosen_plan,
        baseline=measured_before.baseline if measured_before else subjects[0].artifact.rung,
        recipe=placeless(Recipe, recipe) if recipe else None,
        spiral=placeless(SpiralRecord, spiral) if spiral else None,
        files=tuple(_described(name, members[name]) for name in sorted(members)),
    )
    path = output_file(out or f"{name}{SUFFIX}", *(source for source in members.values() if isinstance(source, Path)))
    write_archive(path, {MANIFEST: record.to_json().encode(), **dict(sorted(members.items()))})
    return Packed(path, path.stat().st_size, record, tuple(s.artifact.rung for s in subjects), samples)


def is_packed(path: str | Path) -> bool:
    """Whether a file is to be opened as a packed run."""
    return Path(path).suffix == ".zip"


@contextmanager
def unpacked(path: Path) -> Iterator[tuple[PackedRun, RunFolder]]:
    """A packed run in a scratch folder, every file of it the one that was packed.

    Raises UserError for a file that is none, is cut off, was edited, or comes from a newer kdbench.
    """
    record = _manifest(path)
    for file in record.files:
        if Path(file.name).suffix.lower() == ".safetensors":
            raise UserError(f"{path}: holds weights, '{file.name}', which are code's: not made by kdbench")
    with tempfile.TemporaryDirectory(prefix="kdbench-") as scratch:
        archive.unpack(path, {file.name: (file.sha256, file.size_bytes) for file in record.files}, Path(scratch))
        yield record, RunFolder(Path(scratch))


def bench_packed(
    path: Path,
    given: Mapping[str, Any],
    dims: Sweep,
    described: Mapping[str, str],
    out: Path,
    seed: int,
    publish: bool,
    progress: Progress,
    say: Callable[[str], None],
) -> Report:
    """Measures a packed run by its plan, over which the fields `given` are laid; beside the results lies one file to
    bring back."""
    with unpacked(path) as (record, folder), RunFolder(out).lock():
        _check_plan(path, record.plan, given)
        options = parse(Bench, record.plan.model_dump(mode="json") | dict(given), "bench")
        subjects = run_subjects(folder)
        if record.baseline not in (subject.artifact.rung for subject in subjects):
            raise UserError(f"{path}: its baseline '{record.baseline}' is none of its rungs: make it again")
        for subject in subjects:
            if holds_compiled_parts(subject.model):
                raise UserError(
                    f"{path}: '{subject.model.name}' was compiled elsewhere: pack what it was compiled from"
                )
        report = measured(
            subjects,
            record.baseline,
            options,
            load_pack(folder.pack) if folder.pack.is_file() else None,
            out,
            name=record.name,
            recipe=record.recipe and record.recipe.model_copy(update={"bench": options}),
            spiral=record.spiral,
            seed=seed,
            dims=dims,
            given=described,
            progress=progress,
            say=say,
        )
    machine = report.ladder.result.machine.name
    returned = save_returned(report.results, out / f"{record.name}-{machine}{RETURNED}")
    published = publish_results(report.results, say=say) if publish else None
    return replace(report, returned=returned, published=published)


def _foreign(backends: Sequence[str], options: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What a plan says that could run or write something on another machine: interpreters, and options of providers
    that may be paths."""
    found = [f"names an interpreter, --backend {name}" for name in backends if "@" in name]
    return found + [
        f"sets --option {backend}.{name}={value}"
        for backend, own in options.items()
        for name, value in own.items()
        if name != "precision" and not re.fullmatch(r"-?\d+(\.\d+)?|true|false", str(value), re.IGNORECASE)
    ]


def _check_plan(path: Path, plan: Bench, given: Mapping[str, Any]) -> None:
    """Raises UserError for what is not taken from a plan that may be a stranger's, and is not given here."""
    backends = () if "backends" in given else plan.backends
    options = {} if "options" in given else plan.options
    for foreign in _foreign(backends, options):
        raise UserError(f"{path}: its plan {foreign}: not taken from a packed run: give it, or another, yourself")


def _earlier(folder: RunFolder, say: Callable[[str], None]) -> ResultFile | None:
    """The record of the folder's own measurement, which knows the recipe; None where it is of other files."""
    measured_before = last_measured(folder)
    if measured_before is None and (path := results_in(folder)):
        say(f"{path} is of other files than those beside it: packed without its recipe and its plan")
    return measured_before


def _samples(folder: RunFolder) -> int | None:
    if not folder.pack.is_file():
        return None
    samples = load_pack(folder.pack).x_test
    return None if samples is None else len(samples)


def _described(name: str, content: bytes | Path) -> PackedFile:
    if isinstance(content, bytes):
        return PackedFile(name=name, sha256=sha256(content), size_bytes=len(content))
    return PackedFile(name=name, sha256=sha256_of_file(content), size_bytes=content.stat().st_size)


def _manifest(path: Path) -> PackedRun:
    content = archive.read(path, MANIFEST, MOST_MANIFEST_BYTES)
    if content is None:
        raise UserError(f"{path}: not a packed run, no {MANIFEST} in it: make one with 'kdbench pack RUN_DIR'")
    text = content.decode(errors="replace")
    try:
        return from_json(PackedRun, text, f"{path}: {MANIFEST}")
    except UserError:
        made_by = re.search(r'"kdbench":\s*"([0-9.]{1,20})', text)
        if made_by and _numbers(made_by[1]) > _numbers(__version__):
            raise UserError(
                f"{path}: packed by kdbench {made_by[1]}, which is newer than this one ({__version__}): install "
                f"{made_by[1]} here, or pack the run again with {__version__}"
            ) from None
        raise


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part)
