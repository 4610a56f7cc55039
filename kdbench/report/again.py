"""How to measure again what a result file says: the commands, the recipe, and the files with their hashes."""

import shlex
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise

from kdbench.backends import pick_backend
from kdbench.data.sizes import sweep_of
from kdbench.errors import UserError
from kdbench.records import Comparison, Measurement, ResultFile
from kdbench.records.writing import recipe_to_toml
from kdbench.store import load_recipe, zoo_recipes


def commands(result: ResultFile) -> list[str]:
    """That measure it again, with the files of `recipe_text` and `checksums` in the working directory."""
    if result.recipe is None:
        return [_bench(result)]
    return [f"kdbench {command(result)} {result.recipe.name if in_zoo(result) else recipe_file(result)}"]


def command(result: ResultFile) -> str:
    """`run` or `spiral`: what the rungs were made by."""
    turns = any(artifact.step == "spiral" for artifact in result.artifacts)  # of results without a journal
    return "spiral" if turns or result.spiral else "run"


def again(result: ResultFile) -> str | None:
    """The command that runs a recipe of the zoo again, if it was run as it stands there."""
    return commands(result)[0] if in_zoo(result) else None


def comparing(comparison: Comparison) -> str:
    """The command that trains the students of all methods and seeds again."""
    methods = {trial.method for trial in comparison.trials}
    seeds = {trial.seed for trial in comparison.trials if not trial.method.startswith("teacher")}
    words = ["kdbench", "distill", comparison.name if in_zoo(comparison) else recipe_file(comparison)]
    words += ["--seeds", str(len(seeds))]
    return shlex.join([*words, "--baseline"] if "alone" in methods else words)


def in_zoo(made: ResultFile | Comparison) -> bool:
    """Whether the recipe came along with kdbench, and was run as it stands there."""
    recipe = made.recipe
    return (
        recipe is not None and recipe.name in zoo_recipes() and load_recipe(recipe.name).to_json() == recipe.to_json()
    )


def recipe_file(made: ResultFile | Comparison) -> str:
    return f"{made.name}.toml"


def recipe_text(made: ResultFile | Comparison) -> str | None:
    """The recipe as TOML, where it is none of the zoo's."""
    return None if made.recipe is None or in_zoo(made) else recipe_to_toml(made.recipe)


def checksums(result: ResultFile) -> str:
    """A line for each ONNX file, as `sha256sum --check` reads it."""
    names = _files(result)
    lines = [f"{artifact.sha256}  {names[artifact.rung]}\n" for artifact in result.artifacts]
    return "".join(line.replace("\\", "\\\\") for line in lines)


def _bench(result: ResultFile) -> str:
    """`kdbench bench` of the artifacts' files, with every option that is known from the file."""
    settings = result.settings
    cells: Sequence[Measurement] = result.measurements or result.scenarios
    free = [cell for cell in result.scenarios if cell.scenario != "single_stream"]  # that one has a batch of its own
    files = _files(result)
    words = ["kdbench", "bench", *files.values()]
    if result.baseline in files:
        words += ["--baseline", files[result.baseline]]
    for option, values in (
        ("--backend", [cell.backend for cell in cells]),
        ("--batch", [cell.batch for cell in free or cells]),
        ("--threads", [cell.threads for cell in cells]),
        ("--scenario", [cell.scenario for cell in result.scenarios]),
        ("--sessions", [cell.sessions for cell in free]),
        ("--bound", [f"{cell.bound_s:g}s" for cell in result.scenarios if cell.bound_s is not None]),
    ):
        words += [word for value in dict.fromkeys(values) for word in (option, str(value))]
    for names, sizes in (sweep_of(cell.dims for cell in cells) or {}).items():
        words += ["--dim", f"{names}={','.join(map(str, sizes))}"]
    words += [word for given in _options(cells) for word in ("--option", given)]
    ranges = {spec.name: spec.integers for artifact in result.artifacts for spec in artifact.inputs if spec.integers}
    words += [word for name, (low, high) in ranges.items() for word in ("--input", f"{name}={low}..{high}")]
    words += ["--budget", f"{settings.budget_s:g}"]
    if settings.precision is not None:
        words += ["--precision", f"{100 * settings.precision:g}%"]
    if settings.affinity:
        words += ["--affinity", _ranges(settings.affinity)]
    if settings.price_per_h is not None:
        words += ["--price", f"{settings.currency}{settings.price_per_h:g}/h"]
    if settings.reference is not None:
        words += ["--reference", settings.reference.label]
    if result.inputs == "data":
        words += ["--pack", "pack.npz"]
    return shlex.join(words)


def _files(result: ResultFile) -> dict[str, str]:
    """Of each rung; of files of one name, which came from several folders, that of the rung."""
    names = [artifact.file for artifact in result.artifacts]
    return {a.rung: a.file if names.count(a.file) == 1 else f"{a.rung}.onnx" for a in result.artifacts}


def _options(cells: Sequence[Measurement]) -> list[str]:
    """What was passed on to providers beside what their backends ask for themselves, as `BACKEND.NAME=VALUE`."""
    found: dict[str, None] = {}
    for cell in cells:
        name = cell.backend.partition("@")[0]
        with suppress(UserError):  # a backend that this kdbench doesn't know
            usual = pick_backend(name).options(cell.threads)
            others = {option: value for option, value in cell.provider_options.items() if usual.get(option) != value}
            found |= {f"{name.partition(':')[0]}.{option}={value}": None for option, value in others.items()}
    return list(found)


def _ranges(numbers: Sequence[int]) -> str:
    """`0-3,6`."""
    ordered = sorted(set(numbers))
    starts = [ordered[0], *(after for before, after in pairwise(ordered) if after != before + 1)]
    ends = [*(before for before, after in pairwise(ordered) if after != before + 1), ordered[-1]]
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))
