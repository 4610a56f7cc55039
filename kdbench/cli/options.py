"""Options that several commands share."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

FILE = click.Path(path_type=Path)


def _pairs(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"'{value}' should read NAME=VALUE", ctx, parameter)
        pairs[name.strip()] = text.strip()
    return pairs


def _values(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    from kdbench.records import toml_value

    return {name: toml_value(text) for name, text in _pairs(ctx, parameter, values).items()}


def _sizes(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, int]:
    sizes = {}
    for name, text in _pairs(ctx, parameter, values).items():
        if not text.isdecimal() or int(text) < 1:
            raise click.BadParameter(f"'{name}={text}' should be a size of 1 or more", ctx, parameter)
        sizes[name] = int(text)
    return sizes


def _sweep(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """The same, with any number of sizes; a name that is repeated has those of all its places."""
    sizes: dict[str, tuple[int, ...]] = {}
    for value in values:
        for names, texts in _pairs(ctx, parameter, (value,)).items():
            for text in texts.split(","):
                for name, size in _sizes(ctx, parameter, (f"{names}={text.strip()}",)).items():
                    sizes[name] = (*sizes.get(name, ()), size)
    return sizes


def given(name: str, value: T) -> T | None:
    """The `value` of the parameter `name`, or None where it was left out: what then holds, is for others to say."""
    source = click.get_current_context().get_parameter_source(name)
    return None if source is ParameterSource.DEFAULT else value


def _by_backend(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for name, text in _pairs(ctx, parameter, values).items():
        backend, dot, key = name.partition(".")
        if not dot or not backend or not key:
            raise click.BadParameter(f"'{name}={text}' should read BACKEND.NAME=VALUE", ctx, parameter)
        found.setdefault(backend, {})[key] = text
    return found


def backend_options(command: F) -> F:
    return click.option(
        "--option",
        "backend_options",
        multiple=True,
        callback=_by_backend,
        metavar="BACKEND.NAME=VALUE",
        help="An option of a backend, such as openvino.precision=bf16 or cuda.graph=true. May be repeated.",
    )(command)


def share(ctx: click.Context, parameter: click.Parameter, text: str) -> float:
    """The callback of an option that takes `2%` or `0.02`: 0.02."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise click.BadParameter(f"'{text}' should be a share between 0 and 1, such as 2% or 0.02", ctx, parameter)
    return value


def maybe_share(ctx: click.Context, parameter: click.Parameter, text: str | None) -> float | None:
    """The same of an option that may be left out."""
    return None if text is None else share(ctx, parameter, text)


def shares(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, float]:
    """The same of several, each with a name: `stages.0=30%`."""
    return {name: share(ctx, parameter, text) for name, text in _pairs(ctx, parameter, values).items()}


def allowed(ctx: click.Context, parameter: click.Parameter, text: str | None) -> float | None:
    """Of a change that is allowed, `5%` or `0.05`: 0.05. A plain 5 could be either."""
    if text is None:
        return None
    name, in_percent = text.strip(), text.strip().endswith("%")
    try:
        value = float(name.removesuffix("%"))
    except ValueError:
        value = -1.0
    if not in_percent and 1 <= value <= 1000:
        raise click.BadParameter(f"'{name}': write {value:g}% or {value / 100:g}", ctx, parameter)
    if not 0 <= value <= 1000:
        raise click.BadParameter(f"'{text}' should be a share, such as 5% or 0.05", ctx, parameter)
    return value / 100 if in_percent else value


_TIME = re.compile(r"(\d+(?:\.\d*)?|\.\d+) ?(s|ms|us|µs)")
_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6}


def seconds(ctx: click.Context, parameter: click.Parameter, text: str | None) -> float | None:
    """Of a time such as `10ms`."""
    if text is None:
        return None
    found = _TIME.fullmatch(text.strip())
    value = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if not 0 < value < float("inf"):
        raise click.BadParameter(f"'{text}' should be a time with its unit, such as 10ms or 0.5s", ctx, parameter)
    return value


_PRICE = re.compile(r"([^\W\d_]{0,3}|[^\w\s.,+/-]) ?(\d+(?:\.\d*)?|\.\d+) ?/ ?h(?:our)?")


def price(ctx: click.Context, parameter: click.Parameter, text: str | None) -> tuple[float, str] | None:
    """Of a price such as `0.08/h` or `$0.08/hour`: its amount an hour, and its currency."""
    if text is None:
        return None
    found = _PRICE.fullmatch(text.strip())
    amount = float(found[2]) if found else 0.0
    if found is None or not 0 < amount < float("inf"):
        raise click.BadParameter(f"'{text}' should be a price of an hour, such as 0.08/h or $0.08/h", ctx, parameter)
    return amount, found[1]


def cpus(ctx: click.Context, parameter: click.Parameter, text: str | None) -> tuple[int, ...]:
    """Of `0-3,6`: 0, 1, 2, 3, 6."""
    found: list[int] = []
    for part in text.split(",") if text is not None else ():
        ends = part.strip().split("-")
        if len(ends) > 2 or not all(end.isdecimal() and len(end) < 6 for end in ends) or int(ends[0]) > int(ends[-1]):
            raise click.BadParameter(f"'{text}' should be numbers of CPUs, such as 0-3,6", ctx, parameter)
        found += range(int(ends[0]), int(ends[-1]) + 1)
    return tuple(dict.fromkeys(found))


def maybe_cpus(ctx: click.Context, parameter: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    """The same, None where it was left out."""
    return None if text is None else cpus(ctx, parameter, text)


def overrides(command: F) -> F:
    return click.option(
        "--set",
        "overrides",
        multiple=True,
        callback=_pairs,
        metavar="FIELD=VALUE",
        help="Override a field of the recipe, such as distill.temperature=2. May be repeated.",
    )(command)


def dims(command: F) -> F:
    return click.option(
        "--dim",
        "dims",
        multiple=True,
        callback=_sizes,
        metavar="NAME=SIZE",
        help="Size of a symbolic dimension of generated inputs. May be repeated.",
    )(command)


def sweep(command: F) -> F:
    return click.option(
        "--dim",
        "dims",
        multiple=True,
        callback=_sweep,
        metavar="NAME=SIZE,...",
        help="Size of a symbolic dimension of generated inputs, or several that are measured one by one. May be "
        "repeated, for every combination; joined names, as in height,width=32,64, change together.",
    )(command)


def pairs(flag: str, name: str, metavar: str, text: str) -> Callable[[F], F]:
    """An option that may be repeated, each time with NAME=VALUE."""
    return click.option(flag, name, multiple=True, callback=_pairs, metavar=metavar, help=text)


def given_inputs(command: F) -> F:
    return pairs(
        "--input",
        "inputs",
        "NAME=SIZES:LOW..HIGH",
        "Sizes after the first, range of whole numbers, or both, of a generated input, such as tokens=128:0..29999. "
        "May be repeated.",
    )(command)


def named(flag: str, name: str, text: str) -> Callable[[F], F]:
    """The same with values as a recipe has them: 56, true, [16, 32]; plain text else."""
    return click.option(flag, name, multiple=True, callback=_values, metavar="NAME=VALUE", help=text)


def run_folder(command: F) -> F:
    return click.option("--out", type=FILE, help="Folder of the run.  [default: runs/NAME]")(command)


def out_file(command: F) -> F:
    return click.option("--out", type=FILE, required=True, metavar="FILE", help="The ONNX file to write.")(command)


def budgeted(command: F) -> F:
    """What the fastest int8 file is chosen and judged by."""
    added = (
        click.option(
            "--data",
            metavar="PATH",
            help="Calibrate and judge on this: arrays, images, sounds, text, a table or a pack; of several int8 files "
            "that are plausible for --for, the fastest is kept.",
        ),
        named("--data-option", "data_options", "An option of the data, such as size_px=64. May be repeated."),
        named(
            "--preprocess", "preprocess", "How the model wants its samples: scale=, mean=, std=; (x·scale−mean)/std."
        ),
        click.option(
            "--max-drop",
            type=click.FloatRange(0, 100, max_open=True),
            metavar="POINTS",
            help="Of accuracy on held-out calibration samples: as many layers stay in float as that takes.",
        ),
        click.option(
            "--samples", type=click.IntRange(min=2), metavar="N", help="To calibrate and judge on.  [default: by size]"
        ),
        click.option(
            "--bias-correction/--no-bias-correction",
            default=None,
            help="Biases make up for what int8 adds on average.  [default: where it helps to keep --max-drop]",
        ),
        click.option(
            "--equalization/--no-equalization",
            default=None,
            help="Neighbouring layers share their ranges first.  [default: likewise]",
        ),
        backend_options,
        click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Of what is timed."),
        click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Likewise."),
        click.option(
            "--budget",
            type=click.FloatRange(min=0, min_open=True),
            default=30.0,
            show_default=True,
            metavar="SECONDS",
            help="Time to find the fastest; with neither --data nor --max-drop that of the proof, 5 if left out.",
        ),
    )
    for option in reversed(added):
        command = option(command)
    return command


def out_weights(command: F) -> F:
    return click.option("--out", type=FILE, required=True, metavar="FILE", help="The .safetensors file to write.")(
        command
    )


def layers(text: str) -> Callable[[F], F]:
    """Names of parts of a network."""
    return click.option("--layer", "layers", multiple=True, metavar="LAYER", help=f"{text} May be repeated.")


def ignore(command: F) -> F:
    return click.option(
        "--ignore", multiple=True, metavar="LAYER", help="Leave this submodule as it is. May be repeated."
    )(command)


def code(command: F) -> F:
    return click.option(
        "--code", type=FILE, metavar="DIR", help="Where the module.py of a model of your own lies: it is run."
    )(command)
