"""Figures from tables: SVG and PNG, for print and for colour-blind readers, the same bytes from the same records.

matplotlib is imported when a figure is first asked for, never by a training run.
"""

from propulsion.harness.figures.kinds import KINDS, FigureFile, draw_all

__all__ = ["KINDS", "FigureFile", "draw_all"]
