"""protomask: where prototype networks really look.

``locate`` finds each prototype's region in an image, by MDM or any other registered method; the metrics score the maps,
``protomask.visualise`` draws them. Adapters for model families live in extensions such as ``protopnet_ext``.
"""

from protomask.checkpoint import load_checkpoint
from protomask.errors import CheckpointError, DataError, InputError, ModelError, ProtomaskError, ResourceError
from protomask.evaluation import evaluate
from protomask.localisers import (
    LOCALISERS,
    MDM,
    Maps,
    Request,
    SingleMask,
    Upsampling,
    UpsamplingCentred,
    register,
    register_localiser,
)
from protomask.locating import locate
from protomask.model import Contract, Family, PrototypeModel, contract, wrap
from protomask.records import Localisation, Targets

__version__ = "0.1.0"

__all__ = [
    "LOCALISERS",
    "MDM",
    "CheckpointError",
    "Contract",
    "DataError",
    "Family",
    "InputError",
    "Localisation",
    "Maps",
    "ModelError",
    "ProtomaskError",
    "PrototypeModel",
    "Request",
    "ResourceError",
    "SingleMask",
    "Targets",
    "Upsampling",
    "UpsamplingCentred",
    "contract",
    "evaluate",
    "load_checkpoint",
    "locate",
    "register",
    "register_localiser",
    "wrap",
]
