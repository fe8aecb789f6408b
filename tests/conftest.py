from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # small tensors: a second thread costs more than it brings


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real birds and weights; a user's machine does not have it."""
    default = Path(__file__).parents[1] / ".." / "shared" / "data"
    folder = Path(os.environ.get("PROTOMASK_DATA", default)).resolve()
    if not (folder / "cub20").is_dir():
        pytest.skip(f"no real data at {folder}: set PROTOMASK_DATA")
    return folder
