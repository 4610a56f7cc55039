"""`kdbench backends`."""

import textwrap

import click

WIDTH, INDENT = 100, 16


@click.command(short_help="List the backends, and why one is unavailable.")
@click.option("--python", metavar="PYTHON", help="Ask about another environment's interpreter.")
def backends(python: str | None) -> None:
    """List the backends: what each could run on here, or why it can't, and what makes it available.

    Also said: providers without a row of their own, and onnxruntime wheels that overwrite each other.

    \b
    kdbench backends
    kdbench backends --python envs/gpu/bin/python
    """
    from kdbench.backends import BACKENDS, pick_backend
    from kdbench.backends.available import devices, lacks_device, on_this_system, survey, why_unavailable
    from kdbench.backends.client import WorkerError
    from kdbench.errors import UserError

    try:
        installed = survey(python)
    except WorkerError as error:
        raise UserError(f"{python or 'onnxruntime'}: {error}") from None
    click.echo(", ".join(f"{name} {version}" for name, version in installed.versions.items()))
    if installed.rivals:
        _echo("", f"! {installed.rivals}")
    for row in BACKENDS.values():
        if row.hidden or (python and row.runs == "weights"):
            continue
        target = pick_backend(f"{row.name}@{python}" if python else row.name)
        reason = why_unavailable(target)
        _echo(row.name, f"not available: {reason}" if reason else f"available: {', '.join(devices(target))}")
        _echo("", f"{row.summary} ({row.provider}); precision: {', '.join(row.precisions)}")
        if reason and not lacks_device(target) and on_this_system(row):
            apart = f", in an environment of its own; then --backend {row.name}@PATH/python" if row.rival else ""
            _echo("", f"{row.install}{apart}")
    for provider, device in installed.unlisted:
        _echo("also found", f"{provider} on {device}: it has no row here; try --backend {provider}")


def _echo(head: str, text: str) -> None:
    """One paragraph, its first line led by `head`."""
    click.echo(
        textwrap.fill(
            text,
            WIDTH,
            initial_indent=f"{head:<{INDENT}}",
            subsequent_indent=" " * INDENT,
            break_long_words=False,
            break_on_hyphens=False,
        )
    )
