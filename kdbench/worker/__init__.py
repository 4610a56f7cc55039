"""Started by path, imported by nobody: see `__main__`."""
