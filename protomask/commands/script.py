"""Running somebody's script unedited: as ``python SCRIPT`` would, with the CPU for CUDA and whole-module pickles."""

from __future__ import annotations

import inspect
import pickle
import runpy
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from protomask.errors import CheckpointError, InputError, expected
from protomask.patching import Replacements

# What torch.cuda's functions answer where there is no CUDA device; the others keep their own way of saying so.
_ANSWERS: dict[str, object] = {
    "is_available": False,
    "device_count": 0,
    "current_device": 0,
    "get_device_name": "cpu",
    "is_bf16_supported": False,
    **dict.fromkeys(("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved"), 0),
    **dict.fromkeys(("set_device", "synchronize", "empty_cache", "ipc_collect", "init", "manual_seed")),
    **dict.fromkeys(("manual_seed_all", "reset_peak_memory_stats", "reset_max_memory_allocated", "seed", "seed_all")),
}
_TENSORS = ("FloatTensor", "DoubleTensor", "HalfTensor", "LongTensor", "IntTensor", "ByteTensor", "BoolTensor")


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

    With ``to_cpu``, what names no CPU location is loaded to the CPU.
    """

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(original)

        def load(*args: Any, **kwargs: Any) -> Any:
            given = signature.bind(*args, **kwargs).arguments
            if to_cpu and (given.get("map_location") is None or _on_cuda(given["map_location"])):
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
        replacements.set(torch.cuda, "device", _no_device)
        for name in _TENSORS:
            replacements.set(torch.cuda, name, getattr(torch, name))
        with _OnCPU():
            yield
    finally:
        replacements.undo()


class _OnCPU(TorchFunctionMode):
    """Every call of a torch function or tensor method, with CUDA devices turned into the CPU."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (Tensor.cuda, Tensor.pin_memory):
            return args[0]
        if func is torch.device:  # a name as yet; torch's own code asks by it for torch.cuda's functions
            return func(*args, **kwargs)
        if func is Tensor.to:
            args = (args[0], *("cpu" if _is_device_index(value) else value for value in args[1:]))
        return func(*map(_to_cpu, args), **{name: _to_cpu(value) for name, value in kwargs.items()})


def _to_cpu(value: Any) -> Any:
    if isinstance(value, str) and value.startswith("torch.cuda."):
        return value.replace("torch.cuda.", "torch.")
    return "cpu" if _on_cuda(value) else value


def _on_cuda(value: Any) -> bool:
    if isinstance(value, torch.device):
        return value.type == "cuda"
    return isinstance(value, str) and (value == "cuda" or value.startswith("cuda:"))


def _is_device_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _answering(answer: object) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return lambda original: lambda *args, **kwargs: answer


def _no_device(device: object = None) -> nullcontext[None]:
    return nullcontext()


def _named(signature: inspect.Signature, args: tuple[Any, ...]) -> dict[str, Any]:
    """Positional arguments after the first, by name."""
    return dict(list(signature.bind_partial(*args).arguments.items())[1:])
