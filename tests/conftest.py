from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from protomask.data import Dataset

torch.set_num_threads(1)  # small tensors: a second thread costs more than it brings


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """A shell's background jobs ignore Ctrl-C and hand that down; the tests of interrupts need Python's own handler."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real birds and weights; a user's machine does not have it."""
    default = Path(__file__).parents[1] / ".." / "shared" / "data"
    folder = Path(os.environ.get("PROTOMASK_DATA", default)).resolve()
    if not (folder / "cub20").is_dir():
        pytest.skip(f"no real data at {folder}: set PROTOMASK_DATA")
    return folder


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[Dataset], Dataset]:
    """Makes `evaluate` open this data set, whatever the options say."""
    from protomask.commands import evaluate

    def put(data: Dataset) -> Dataset:
        monkeypatch.setattr(evaluate, "dataset_for", lambda args, loaded: data)
        return data

    return put
