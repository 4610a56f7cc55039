"""`python -m kdbench`, and the script `kdbench`."""

import os


def main() -> None:
    """The command line; Ctrl-C before it has loaded ends it as quietly as later."""
    try:
        from kdbench.cli import main as command_line
    except KeyboardInterrupt:
        os._exit(130)
    command_line()


if __name__ == "__main__":
    main()
