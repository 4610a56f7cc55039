"""What is known of an ONNX file beyond the file: what it was made from, and where it was measured."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kdbench import __version__
from kdbench.benchmark.cells import Subject
from kdbench.errors import UserError, pick
from kdbench.onnxfile import known_artifact
from kdbench.pipeline.rungs import ORDER, ladder_of, of_spiral, run_subjects, rungs_of, timed
from kdbench.progress import unsaid
from kdbench.records import Artifact, Embedded, Origin, Recipe, placeless
from kdbench.report.card import Seen
from kdbench.report.judged import judged
from kdbench.report.table import ladder
from kdbench.steps.card import SAME, is_of_parent, known_facts
from kdbench.store import RESULTS_FILE, RunFolder, find_results, load_result, sha256, sidecar


@dataclass(frozen=True)
class Known:
    """An artifact, its file, and what is known of both."""

    subject: Subject
    folder: RunFolder | None
    """Where it has its record."""
    lineage: tuple[Artifact, ...]
    """What it was made from, its parent first, as far as records tell."""
    seen: tuple[Seen, ...]
    """Where it was measured, in the order in which results were given."""
    facts: Embedded

    @property
    def made_in_s(self) -> float | None:
        """What making the artifact took, where its folder or its record tells."""
        artifact = self.subject.artifact
        return (self.folder.duration_s(artifact.rung) if self.folder else None) or artifact.made_in_s

    def carded(self, artifact: Artifact) -> "Known":
        """The same of the file into which the facts were written."""
        lineage, before = self.lineage, self.subject.artifact
        if before.step != "card":
            lineage = (before.model_copy(update={"made_in_s": self.made_in_s}), *lineage)
        seen = tuple(replace(one, how=one.how or "card") for one in self.seen)
        return replace(self, subject=replace(self.subject, artifact=artifact), folder=None, lineage=lineage, seen=seen)

    @property
    def for_bundle(self) -> Embedded:
        """The facts of a file that is made of the artifact by another step than a card's."""
        artifact = self.subject.artifact
        if artifact.step != "card":
            return self.facts
        own = Origin(rung=artifact.rung, step=artifact.step, sha256=artifact.sha256)
        return self.facts.model_copy(update={"lineage": (own, *self.facts.lineage)})


def subject_of(source: Path, rung: str | None, say: Callable[[str], None] = unsaid) -> Subject:
    """An ONNX file, or a rung of a run folder: the last of its ladder, or of its spiral, where none is named."""
    if not source.is_dir():
        if rung is not None:
            raise UserError(f"--rung: {source} is a file, --rung chooses in a run folder: leave it out")
        return Subject(known_artifact(source), source)
    folder = RunFolder(source)
    if rung is not None:  # of a folder whose other rungs may not fit together
        pick(rungs_of(folder), rung, "rung")
        return run_subjects(folder, lambda one: one.rung == rung)[0]
    ladder = ladder_of(folder, say)
    lighter = [subject for subject in ladder if subject.artifact.rung in ORDER[ORDER.index("student") + 1 :]]
    turns = [subject for subject in ladder if of_spiral(subject.artifact.rung)]
    known = [subject for subject in ladder if subject.artifact.rung in ORDER]
    return (lighter or turns or known or ladder)[-1]


def look_up(
    subject: Subject, results: Sequence[Path] = (), license: str | None = None, *, say: Callable[[str], None]
) -> Known:
    """What the folder of the artifact and the given result files and folders tell of it.

    Raises UserError where results were given, and none of them is of this artifact.
    """
    model, artifact = subject.model, subject.artifact
    folder = RunFolder(model.parent) if sidecar(model).is_file() else None
    told = known_facts(model, artifact)
    beside = list(timed(folder).values()) if folder else []
    alike = _alike(artifact, beside, told)
    proven = artifact.step != "card" or is_of_parent(model, artifact)
    own = folder.path / RESULTS_FILE if folder else None
    seen: list[Seen] = []
    found_here = _seen(own, alike, say) if own and own.is_file() else None
    if found_here:
        seen.append(found_here)
    elif own and own.is_file():
        say(f"no figures of {own} in the card: it is of another {artifact.rung}")
    given = [file for path in results for file in find_results(path)]
    found = [one for file in given for one in [_seen(file, alike, None)] if one]
    if given and not found:
        raise UserError(
            f"--results: nothing in {', '.join(map(str, results))} is of this file (sha256 {artifact.sha256[:12]}…): "
            "'kdbench bench' measures it"
        )
    for one in found:
        if all(one.ladder.result.raw.sha256 != other.ladder.result.raw.sha256 for other in seen):
            seen.append(one)
    seen = [replace(one, proven=proven or not one.how) for one in seen]
    records = [*beside, *(other for one in seen for other in one.ladder.result.artifacts)]
    lineage = _ancestors(artifact, {record.sha256: record for record in reversed(records)})
    recipe = next((one.ladder.result.recipe for one in seen if one.ladder.result.recipe), None)
    return Known(subject, folder, lineage, tuple(seen), _facts(artifact, told, lineage, seen, recipe, license))


def _seen(path: Path, alike: Mapping[str, str], say: Callable[[str], None] | None) -> Seen | None:
    """The file's measurement of one of the artifacts that are alike, the likest first; None where it has none.

    A damaged file is an error, or is said where `say` is given.
    """
    try:
        result, arrays = load_result(path)
    except UserError as error:
        if say is None:
            raise
        say(f"no figures in the card: {error}")
        return None
    rungs = {artifact.sha256: artifact.rung for artifact in result.artifacts}
    for sha, how in alike.items():
        if sha in rungs:
            return Seen(ladder(result, arrays), rungs[sha], tuple(judged(result, arrays, rungs[sha])), how)
    return None


def _alike(artifact: Artifact, beside: Iterable[Artifact], told: Embedded | None) -> dict[str, str]:
    """The hashes of the artifact and of those that answer as it does, each with what it is to the artifact."""
    found = {artifact.sha256: ""}
    steps = {one.sha256: one.step for one in told.lineage} if told else {}
    steps |= {one.sha256: one.step for one in beside}
    parents = {one.sha256: one.parent_sha256 for one in beside}
    chain = [one.sha256 for one in told.lineage] if told else []
    step, parent = artifact.step, artifact.parent_sha256
    while step in SAME and parent and parent not in found:
        found[parent] = step
        later = chain[chain.index(parent) + 1 :] if parent in chain else []
        step, parent = steps.get(parent), parents.get(parent) or next(iter(later), None)
    return found


def _ancestors(artifact: Artifact, known: Mapping[str, Artifact]) -> tuple[Artifact, ...]:
    found: list[Artifact] = []
    while (parent := known.get(artifact.parent_sha256 or "")) and parent not in found:
        found.append(parent)
        artifact = parent
    return tuple(found)


def _facts(
    artifact: Artifact,
    told: Embedded | None,
    lineage: Sequence[Artifact],
    seen: Sequence[Seen],
    recipe: Recipe | None,
    license: str | None,
) -> Embedded:
    """What stands in the file: what it says already, and what is known beyond that."""
    metrics = [one for place in seen for one in place.metrics]
    records = tuple(Origin(rung=one.rung, step=one.step, sha256=one.sha256) for one in lineage)
    path = max(told.lineage if told else (), records, key=len)
    if artifact.step != "card":  # else the new file takes its place
        path = (Origin(rung=artifact.rung, step=artifact.step, sha256=artifact.sha256), *path)
    named = (
        {"recipe": recipe.name, "recipe_sha256": sha256(placeless(Recipe, recipe).to_json().encode())}
        if recipe
        else {"recipe": told and told.recipe, "recipe_sha256": told and told.recipe_sha256}
    )
    return Embedded(
        version=__version__,
        task=artifact.task,
        classes=artifact.classes,
        preprocessing=artifact.preprocessing,
        probabilities=told.probabilities if told else None,
        lineage=path,
        metrics=tuple(metrics) or (told.metrics if told else ()),
        license=license or (told.license if told else None),
        **named,
    )
