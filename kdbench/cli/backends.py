"""`kdbench backends`."""

import click


@click.command(short_help="List the backends, and why one is unavailable.")
def backends() -> None:
    """List the backends: available on this machine, or why not, and the command that makes it so.

    \b
    kdbench backends
    """
    from kdbench.backends import BACKENDS
    from kdbench.backends.client import why_unavailable

    for backend in BACKENDS.values():
        if backend.hidden:
            continue
        reason = why_unavailable(backend.name)
        state = "available" if reason is None else f"not available: {reason}"
        click.echo(f"{backend.name:<10}{state}\n{'':<10}{backend.summary} ({backend.provider})")
        if backend.why_missing():
            click.echo(f"{'':<10}{backend.install}")
