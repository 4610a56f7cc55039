"""Every plot of a report, as SVG and PNG for files, and as an SVG element for a page: one plot a file."""

from kdbench.report.plots.every import of_ladder, plots_of
from kdbench.report.plots.hovering import hover_svg
from kdbench.report.plots.plot import Plot
from kdbench.report.plots.rendering import KINDS, png, remove_other_plots, save_plots, svg

__all__ = ["KINDS", "Plot", "hover_svg", "of_ladder", "plots_of", "png", "remove_other_plots", "save_plots", "svg"]
