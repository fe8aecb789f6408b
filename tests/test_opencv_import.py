"""Albumentations brings the headless OpenCV beside the full one; both must be there, at one version, and importable."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import numpy as np


def test_both_import_and_work() -> None:
    import albumentations as A
    import cv2

    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    assert np.array_equal(A.HorizontalFlip(p=1)(image=image)["image"], cv2.flip(image, 1))


def test_both_opencv_packages_have_one_version() -> None:
    assert version("opencv-python") == version("opencv-python-headless")


def test_the_installed_module_is_of_that_version() -> None:
    import cv2

    assert version("opencv-python").startswith(cv2.__version__)


def test_our_import_of_albumentations_asks_no_server() -> None:
    code = (
        "import socket\n"
        "def refuse(*_, **__): raise AssertionError('network')\n"
        "socket.socket.connect = refuse; socket.getaddrinfo = refuse\n"
        "import protomask.data.transforms"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
