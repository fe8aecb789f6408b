"""Localisers: (model, images, targets) -> maps. All share one call and one registry."""

from protomask.localisers.base import (
    LOCALISERS,
    Localiser,
    Maps,
    Registered,
    Request,
    image_passes_of,
    make_localiser,
    register,
    settings_of,
)
from protomask.localisers.controls import Annotation, Centre, Random
from protomask.localisers.extremal import Extremal
from protomask.localisers.functions import FunctionLocaliser, register_localiser
from protomask.localisers.gradcam import GradCAM
from protomask.localisers.gradients import IntegratedGradients, Saliency, SmoothGrad
from protomask.localisers.mdm import MDM, SingleMask
from protomask.localisers.mdm_paper import MDMPaper
from protomask.localisers.neuromask import NeuroMask
from protomask.localisers.occlusion import Occlusion
from protomask.localisers.plugins import load_entry_points, load_plugin
from protomask.localisers.prp import PRP
from protomask.localisers.rise import RISE
from protomask.localisers.stored import Stored, register_stored
from protomask.localisers.upsampling import Upsampling, UpsamplingCentred

__all__ = [
    "LOCALISERS",
    "MDM",
    "PRP",
    "RISE",
    "Annotation",
    "Centre",
    "Extremal",
    "FunctionLocaliser",
    "GradCAM",
    "IntegratedGradients",
    "Localiser",
    "MDMPaper",
    "Maps",
    "NeuroMask",
    "Occlusion",
    "Random",
    "Registered",
    "Request",
    "Saliency",
    "SingleMask",
    "SmoothGrad",
    "Stored",
    "Upsampling",
    "UpsamplingCentred",
    "image_passes_of",
    "load_entry_points",
    "load_plugin",
    "make_localiser",
    "register",
    "register_localiser",
    "register_stored",
    "settings_of",
]
