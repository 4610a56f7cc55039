"""The backends: a table of them (`rows`), what is asked for of one (`targets`), and the process that runs it
(`client`)."""

from kdbench.backends.rows import BACKENDS, Backend
from kdbench.backends.targets import Target, own_options, pick_backend, pick_backends

__all__ = ["BACKENDS", "Backend", "Target", "own_options", "pick_backend", "pick_backends"]
