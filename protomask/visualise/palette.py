"""One colour per method, the same in every figure, told apart by colour-blind readers.

The first eight are those of Okabe and Ito, "Color Universal Design" (2008); with more methods than that no set of
colours is told apart by everyone, so that names always stand beside them. The annotation is white with a dark rim: it
is no method, and must not be taken for one.
"""

from __future__ import annotations

import zlib

ORANGE, SKY, GREEN, YELLOW = "#E69F00", "#56B4E9", "#009E73", "#F0E442"
BLUE, VERMILION, PURPLE, GREY = "#0072B2", "#D55E00", "#CC79A7", "#8C8C8C"
WHITE, INK, FAINT = "#FFFFFF", "#1A1A1A", "#5A5A5A"

METHOD_COLOURS = {
    "mdm": VERMILION,
    "mdm-fast": "#F0A07C",
    "mdm-best": "#8F3A00",
    "mdm-paper": YELLOW,
    "upsampling": SKY,
    "upsampling-centred": BLUE,
    "single-mask": GREEN,
    "neuromask": PURPLE,
    "extremal": "#7A4FA3",
    "explainer": ORANGE,
    "occlusion": "#7F7A2B",
    "rise": "#B5A82E",
    "saliency": "#F4B6D2",
    "smoothgrad": "#A63A6F",
    "integrated-gradients": "#6B2C2C",
    "gradcam": "#2F4B7C",
    "prp": "#00C2B2",
    "random": GREY,
    "centre": "#B8B8B8",
    "annotation": WHITE,
}

_OTHERS = (PURPLE, ORANGE, YELLOW, GREEN, BLUE, SKY)


def method_colour(method: str) -> str:
    """The colour ``#rrggbb`` of a method's name; names without a colour of their own get one by their checksum."""
    # A checksum, unlike the order of arrival, gives a name the same colour in every figure and every run.
    return METHOD_COLOURS.get(method) or _OTHERS[zlib.crc32(method.encode()) % len(_OTHERS)]


def rgb(colour: str) -> tuple[int, int, int]:
    """``#rrggbb`` -> (red, green, blue), each 0 .. 255."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
