"""Interpreters of other environments, under which a worker may run."""

import functools
import json
import os
import shutil
import subprocess
from pathlib import Path

OLDEST = (3, 10)
"""The Python that a worker needs."""

NEEDED = ("numpy", "onnxruntime")

PROBE = (
    "import importlib.util, json, sys; "
    f"print(json.dumps([list(sys.version_info[:2]), [n for n in {NEEDED} if importlib.util.find_spec(n) is None]]))"
)

PATIENCE_S = 30.0


def clean_environment() -> dict[str, str]:
    """The environment variables without those that would show another interpreter the packages of this one."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}


@functools.cache
def why_unusable(python: str) -> str | None:
    """Why a worker can't run under the interpreter (a path, or a name on PATH), or None where it can.

    The reason holds no path: it stands in results.
    """
    if Path(python).is_dir():
        return "a folder, not an interpreter: name the one in it, such as bin/python"
    if shutil.which(python) is None:
        return "not an executable file" if Path(python).exists() else "no such interpreter"
    try:
        said = subprocess.run(
            [python, "-c", PROBE],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=clean_environment(),
            timeout=PATIENCE_S,
            check=True,
        ).stdout
        version, missing = json.loads(said)
    except (OSError, subprocess.SubprocessError, ValueError, TypeError):
        return "not a Python interpreter, or one that doesn't start"
    if tuple(version) < OLDEST:
        return f"Python {version[0]}.{version[1]}: a worker needs {OLDEST[0]}.{OLDEST[1]} or newer"
    if missing:
        return f"no {' and no '.join(missing)} in that environment: install it there"
    return None
