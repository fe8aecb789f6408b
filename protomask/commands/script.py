"""Running somebody's script unedited: as ``python SCRIPT`` would, with the CPU for CUDA and whole-module pickles."""

from __future__ import annotations

import inspect
import pickle
import runpy
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from protomask.errors import CheckpointError, InputError, expected
from protomask.patching import Replacements

# What torch.cuda's functions answer where there is no CUDA device; the others keep their own way of saying so.
_ANSWERS: dict[str, object] = {
    "is_available": False,
    "device_count": 0,
    "current_device": 0,
    "get_device_name": "cpu",
    "is_bf16_supported": False,
    "memory_summary": "",
    **dict.fromkeys(("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved"), 0),
    **dict.fromkeys(("set_device", "synchronize", "empty_cache", "ipc_collect", "init", "manual_seed")),
    **dict.fromkeys(("manual_seed_all", "reset_peak_memory_stats", "reset_max_memory_allocated", "seed", "seed_all")),
}
_KINDS = ("Float", "Double", "Half", "Long", "Int", "Short", "Char", "Byte", "Bool")


class UntrustedError(CheckpointError, pickle.UnpicklingError):
    """A script loads a file that can run code, and the user has not said that it may."""


def run_script(script: str, arguments: Sequence[str], *, as_module: bool = False) -> None:
    """Run a script, or with ``as_module`` a module as ``python -m`` does; ``sys.argv`` and ``sys.path`` come back.

    Raises:
        InputError: there is no such script.
        SystemExit, and whatever else the script raises.
    """
    if not as_module and not Path(script).is_file():
        raise InputError(expected("SCRIPT", "a Python file, or -m MODULE", repr(script)))
    first = Path.cwd() if as_module else Path(script).resolve().parent
    before = sys.argv, sys.path[:]
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(first))
    try:
        if as_module:
            runpy.run_module(script, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(script, run_name="__main__")
    finally:
        sys.argv, sys.path[:] = before


@contextmanager
def loading(*, trust: bool, to_cpu: bool) -> Iterator[None]:
    """Inside, ``torch.load`` without ``weights_only`` takes whole modules with ``trust``, else says how to allow it.

    With ``to_cpu`` everything is loaded to the CPU, unless another device than CUDA is named.
    """

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(original)

        def load(*args: Any, **kwargs: Any) -> Any:
            given = signature.bind(*args, **kwargs).arguments
            if to_cpu and not _names_other_device(given.get("map_location")):
                args, kwargs = args[:1], {**_named(signature, args), **kwargs, "map_location": "cpu"}
            if trust and given.get("weights_only") is None:
                kwargs["weights_only"] = False
            try:
                return original(*args, **kwargs)
            except pickle.UnpicklingError as error:
                if trust or given.get("weights_only") is not None:
                    raise
                wanted = "weights only, or --trust for a file whose code you are willing to run"
                came = f"{given.get('f')!s}, which holds more than weights"
                raise UntrustedError(expected("torch.load", wanted, came)) from error

        return load

    replacements = Replacements()
    try:
        replacements.wrap(torch, "load", make)
        yield
    finally:
        replacements.undo()


@contextmanager
def without_cuda() -> Iterator[None]:
    """Inside, code that asks for CUDA gets the CPU: ``.cuda()``, ``.to("cuda")``, ``device="cuda"``, ``torch.cuda.*``.

    ``DataParallel`` then finds no device and passes through to its module. Numbers are those of the CPU.
    """
    replacements = Replacements()
    try:
        for name, answer in _ANSWERS.items():
            if hasattr(torch.cuda, name):
                replacements.wrap(torch.cuda, name, _answering(answer))
        replacements.set(torch.cuda, "device", _NoDevice)
        replacements.set(torch, "Generator", _Generator)
        replacements.wrap(torch, "set_default_device", _setting_cpu)
        for name in (f"{kind}Tensor" for kind in _KINDS):
            replacements.set(torch.cuda, name, getattr(torch, name))
        with _OnCPU():
            yield
    finally:
        replacements.undo()


class _OnCPU(TorchFunctionMode):
    """Every call of a torch function or tensor method, with CUDA devices turned into the CPU.

    What would be a copy on CUDA is a copy here: a script that then writes over the original expects the copy to stay.
    The copy of a copy is the copy itself, as on CUDA, and a module's parameters stay what they are.
    """

    def __init__(self) -> None:
        super().__init__()
        self._there = WeakTensorKeyDictionary()  # tensors that are on CUDA, as far as the script knows

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.pin_memory:
            return args[0]
        if func is torch.device:  # a name as yet; torch's own code asks by it for torch.cuda's functions
            return func(*args, **kwargs)
        if func is Tensor.cuda:
            return self._moved(args[0], args[0])
        if func is Tensor.to:
            args = (args[0], *map(_index_to_cuda, args[1:]))
        if "device" in kwargs:
            kwargs = {**kwargs, "device": _index_to_cuda(kwargs["device"])}
        moves = any(_is_cuda(value) for value in (*args, *kwargs.values()))
        came = func(*map(_to_cpu, args), **{name: _to_cpu(value) for name, value in kwargs.items()})
        return self._moved(came, args[0] if args else None) if moves and isinstance(came, Tensor) else came

    def _moved(self, came: Tensor, original: object) -> Tensor:
        """What a move to CUDA gives: not the original itself, unless it is there already or is a parameter."""
        if came is original and came not in self._there and not isinstance(came, nn.Parameter):
            came = came.clone()
        self._there[came] = True
        return came


class _NoDevice:
    """``torch.cuda.device`` where there is none: a class, since torch asks of things whether they are of it."""

    def __init__(self, device: object = None) -> None: ...

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...


class _OfGenerators(type):
    """``torch.Generator``, whose instances do not pass through torch functions: on the CPU whatever is asked for."""

    def __call__(cls, device: Any = "cpu") -> torch.Generator:
        return torch._C.Generator(device=_to_cpu(_index_to_cuda(device)))

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, torch._C.Generator)


class _Generator(metaclass=_OfGenerators):
    """Stands in for ``torch.Generator``."""


def _setting_cpu(original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda device: original(_to_cpu(_index_to_cuda(device)))


def _to_cpu(value: Any) -> Any:
    if isinstance(value, str) and value.startswith("torch.cuda."):
        return value.replace("torch.cuda.", "torch.")
    return "cpu" if _on_cuda(value) else value


def _is_cuda(value: Any) -> bool:
    return _on_cuda(value) or (isinstance(value, str) and value.startswith("torch.cuda."))


def _names_other_device(location: object) -> bool:
    """Whether ``torch.load`` is told a device, and not CUDA; tables and functions of locations mostly name CUDA."""
    return isinstance(location, (str, torch.device)) and not _on_cuda(location)


def _on_cuda(value: Any) -> bool:
    if isinstance(value, torch.device):
        return value.type == "cuda"
    return isinstance(value, str) and (value == "cuda" or value.startswith("cuda:"))


def _index_to_cuda(value: Any) -> Any:
    """An integer where a device stands is a CUDA device."""
    return "cuda" if isinstance(value, int) and not isinstance(value, bool) else value


def _answering(answer: object) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return lambda original: lambda *args, **kwargs: answer


def _named(signature: inspect.Signature, args: tuple[Any, ...]) -> dict[str, Any]:
    """Positional arguments after the first, by name."""
    return dict(list(signature.bind_partial(*args).arguments.items())[1:])
