"""Names of the standard library, numpy and torch by what calling them does: nothing but a value, or anything.

Exact names, never whole modules: ``uuid`` has a function that runs a command, and every module holds those it imports.
"""

from __future__ import annotations

from protomask.pickles.inert import Global

_PATHS = ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
_GENERATORS = {  # whose constructors are rebuilt, since they call what they are given
    "numpy.random.bit_generator": ("__pyx_unpickle_SeedSequence", "SeedSequence"),
    "numpy.random._mt19937": ("MT19937",),
    "numpy.random._pcg64": ("PCG64", "PCG64DXSM"),
    "numpy.random._philox": ("Philox",),
    "numpy.random._sfc64": ("SFC64",),
}
# What training leaves beside the weights: configurations, dates, paths, states of generators and samplers.
_NAMES: dict[str, tuple[str, ...]] = _GENERATORS | {
    "pathlib": _PATHS,
    "pathlib._local": _PATHS,  # Python 3.13
    "datetime": ("datetime", "date", "time", "timedelta", "timezone"),
    "zoneinfo": ("ZoneInfo", "ZoneInfo._unpickle"),
    "time": ("struct_time",),
    "decimal": ("Decimal", "Context", "DecimalTuple"),
    "fractions": ("Fraction",),
    "uuid": ("UUID", "SafeUUID"),
    "collections": ("deque", "ChainMap", "UserDict", "UserList", "UserString"),
    "argparse": ("Namespace",),
    "types": ("SimpleNamespace",),
    "functools": ("partial",),
    "itertools": ("count",),
    "operator": ("itemgetter", "attrgetter"),  # made here; to call what they give is refused
    "random": ("Random",),
    "logging": ("getLogger",),
    "re": ("_compile",),
    "builtins": ("range", "complex", "int", "float", "bool", "str", "object", "slice"),
    "numpy.ma.core": ("_mareconstruct",),
    "torch.serialization": ("_get_layout",),
    "torchvision.transforms.functional": ("InterpolationMode",),
}
HARMLESS = frozenset(Global(module, name) for module, names in _NAMES.items() for name in names)

# No model has these, not even as values: whoever is handed one may call it, as numpy's constructors do.
_MODULES = frozenset(
    (
        *("os", "posix", "nt", "sys", "subprocess", "shutil", "pty", "runpy", "importlib", "ctypes", "_ctypes"),
        *("code", "codeop", "marshal", "pickle", "_pickle", "socket", "_socket", "webbrowser"),
        *("pdb", "bdb", "timeit", "trace", "profile", "cProfile"),
    )
)
_FUNCTIONS = {
    "builtins": (
        *("eval", "exec", "compile", "__import__", "open", "input", "breakpoint"),
        *("setattr", "delattr", "globals", "map", "filter"),
    ),
    "io": ("open", "open_code", "FileIO"),
    "_io": ("open", "open_code", "FileIO"),
}


def never(name: Global) -> bool:
    """Whether no model has any use for a name, whatever the pickle does with it."""
    top, outer = name.module.partition(".")[0], name.name.partition(".")[0]
    return top in _MODULES or outer in _FUNCTIONS.get(name.module, ())
