"""Figures from tables: SVG and PNG, for print and for colour-blind readers, the same bytes from the same records.

matplotlib is imported when a figure is first asked for, never by a training run.
"""

from propulsion.harness.figures.kinds import KINDS, FigureFile, draw_all
from propulsion.harness.figures.parallel import cores, draw_suites

__all__ = ["KINDS", "FigureFile", "cores", "draw_all", "draw_suites"]
