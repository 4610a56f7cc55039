"""Distil, slim and quantize classifiers, and prove on every backend what each step gains and costs."""

__version__ = "0.1.0"
