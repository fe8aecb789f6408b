"""A Ray cluster gives the results of one process, also when a worker dies. Skipped where Ray is not installed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from protomask.cli import main
from tests.toys import BlockScenes

ROOT = Path(__file__).parents[1]
MODEL = "tests.toys:block_model"
HAVE = importlib.util.find_spec("ray") is not None


@pytest.mark.skipif(HAVE, reason="Ray is installed")
def test_without_ray_the_engine_tells_how_to_install_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cv2.imwrite(str(tmp_path / "0.png"), BlockScenes()[0].image)
    options = ["--engine", "ray", "--quiet", "--out", str(tmp_path / "out")]
    assert main(["locate", MODEL, str(tmp_path / "0.png"), *options]) == 2
    assert "in the clone: `pip install '.[ray]'`" in capsys.readouterr().err


@pytest.mark.skipif(not HAVE, reason="Ray is not installed: pip install '.[ray]'")
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the workers in /proc")
def test_a_cluster_that_loses_a_worker_gives_the_results_of_one_process(tmp_path: Path) -> None:
    for index in range(12):
        cv2.imwrite(str(tmp_path / f"{index:02d}.png"), BlockScenes()[index].image[..., ::-1])
    command = ["locate", MODEL, str(tmp_path), "--targets", "all", "--set", "steps=20", "--beside", "centre"]
    command += ["--panels", "0", "--threads", "1", "--quiet", "--out", "{out}"]
    code = "from protomask.jobs import cutting; cutting.IMAGES_PER_CHUNK = 1; import runpy, sys; "
    code += "sys.argv[1:1] = ['--kills', '1']; runpy.run_module('tests.raykill', run_name='__main__')"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", code, *command], capture_output=True, text=True, cwd=ROOT, env=env, check=False
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    told = json.loads(ended.stdout)
    assert told["killed"] == 1
    assert told["wrong"] == []
    assert told["files"] > 24
