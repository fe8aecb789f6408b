"""Localisers: (model, images, targets) -> maps. All share one call and one registry."""

from protomask.localisers.base import (
    LOCALISERS,
    Localiser,
    Maps,
    Registered,
    Request,
    make_localiser,
    register,
    settings_of,
)
from protomask.localisers.controls import Annotation, Centre, Random
from protomask.localisers.mdm import MDM, SingleMask
from protomask.localisers.upsampling import Upsampling, UpsamplingCentred

__all__ = [
    "LOCALISERS",
    "MDM",
    "Annotation",
    "Centre",
    "Localiser",
    "Maps",
    "Random",
    "Registered",
    "Request",
    "SingleMask",
    "Upsampling",
    "UpsamplingCentred",
    "make_localiser",
    "register",
    "settings_of",
]
