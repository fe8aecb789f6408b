"""The figures, in one list: each function returns a :class:`matplotlib.figure.Figure` on white.

A method has one colour in all of them (:mod:`protomask.visualise.palette`); the annotated part is outlined in white. ::

    figure = method_panel(image, {"mdm": map_}, {"mdm": box}, annotation=part)
    save_figure(figure, "panel.png")
"""

from protomask.visualise.charts import Interval, score_figure
from protomask.visualise.contrast import Contrast, wrong_versus_right
from protomask.visualise.likeness import BankRow, Likeness, Patch, looks_like, prototype_bank
from protomask.visualise.panel import method_panel
from protomask.visualise.sheet import png_bytes, save_figure
from protomask.visualise.view import View

__all__ = [
    "BankRow",
    "Contrast",
    "Interval",
    "Likeness",
    "Patch",
    "View",
    "looks_like",
    "method_panel",
    "png_bytes",
    "prototype_bank",
    "save_figure",
    "score_figure",
    "wrong_versus_right",
]
