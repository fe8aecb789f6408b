"""The report in a real browser, headless: nothing on the console, nothing asked of the network, and there at once.

Skipped where there is no browser, unless ``PROTOMASK_BROWSER=required`` is set: then there must be one.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from protomask.commands.publish import report_from

from .results_tools import METHODS, make_results

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def find_browser(path: str | None, asked: str) -> str | None:
    """The first browser on the search path; without one None, or an error where it is asked to be there."""
    if asked not in ("", "required"):
        raise ValueError(f"PROTOMASK_BROWSER: expected required, or nothing, got {asked!r}")
    found = next((found for name in NAMES if (found := shutil.which(name, path=path))), None)
    if found is None and asked:
        raise RuntimeError(f"PROTOMASK_BROWSER=required: expected one of {', '.join(NAMES)} on the PATH, got none")
    return found


BROWSER = find_browser(None, os.environ.get("PROTOMASK_BROWSER", ""))
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on the PATH")
NASTY = "</script><img src=http://127.0.0.1:9/x onerror=console.error(1)>\n&\"'"
MANY = (*METHODS[:3], *(f"method-{k}" for k in range(10)), *METHODS[3:])
# What the page says of itself once it is there; put into a copy, since the page's own policy forbids other scripts.
PROBE = """<script>addEventListener("load", () => setTimeout(() => {
const timing = performance.getEntriesByType("navigation")[0];
document.title = JSON.stringify({load: timing.loadEventEnd, asked: performance.getEntriesByType("resource")
  .map((e) => e.name).filter((n) => !n.startsWith("data:")),
  broken: [...document.images].filter((i) => !i.complete || !i.naturalWidth).length, images: document.images.length,
  wide: document.documentElement.scrollWidth - innerWidth, sort: SORT});
}, 100));</script>"""
SORT = """(() => { const table = document.querySelector("table.sortable"); const column = 1;
const read = () => [...table.tBodies[0].rows].map((r) => Number(r.cells[column].textContent));
const click = () => table.tHead.rows[0].cells[column].querySelector("button").click();
click(); const up = read(); click(); return [up, read()]; })()"""


def browse(page: Path, home: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Open a page; standard error holds what the console said."""
    command = [
        str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
        "--enable-logging=stderr", f"--user-data-dir={home}", "--host-resolver-rules=MAP * ~NOTFOUND",
        *options, page.as_uri(),
    ]  # fmt: skip
    environment = {**os.environ, "HOME": str(home), "DBUS_SESSION_BUS_ADDRESS": "disabled:"}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env=environment)


def console(run: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in run.stderr.splitlines() if "CONSOLE" in line]


def probed(page: Path, copy: Path) -> Path:
    """A copy without the policy and with the probe."""
    html = re.sub(r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>", "", page.read_text(encoding="utf-8"))
    copy.write_text(html.replace("</body>", PROBE.replace("SORT", SORT) + "</body>"), encoding="utf-8")
    return copy


def said(run: subprocess.CompletedProcess[str]) -> dict[str, object]:
    import html
    import json

    title = re.search(r"<title>(.*?)</title>", run.stdout, re.S)
    assert title is not None
    told: dict[str, object] = json.loads(html.unescape(title[1]))
    return told


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report_from(
        make_results(tmp_path_factory.mktemp("small"), 12, METHODS, metrics=("energy", "iou-best", "deletion"))
    )


def test_a_browser_that_is_required_must_be_there(tmp_path: Path) -> None:
    assert find_browser(str(tmp_path), "") is None
    with pytest.raises(RuntimeError, match="PROTOMASK_BROWSER=required: expected one of chromium"):
        find_browser(str(tmp_path), "required")
    with pytest.raises(ValueError, match="expected required, or nothing, got 'no'"):
        find_browser(None, "no")
    assert find_browser(None, "required") == BROWSER


def test_the_console_is_heard(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text("<script>console.error('loud')</script><img src='http://127.0.0.1:9/x'>")
    assert any("loud" in line for line in console(browse(tmp_path / "a.html", tmp_path, "--dump-dom")))


def test_the_page_opens_in_silence(page: Path, tmp_path: Path) -> None:
    run = browse(page, tmp_path, "--dump-dom")
    assert console(run) == []
    assert "<title>a model on some data</title>" in run.stdout
    assert run.stdout.count("<button") > 4  # the script ran, so that its digest is right and no policy stopped it


def test_nothing_is_asked_of_the_network_and_all_pictures_are_there(page: Path, tmp_path: Path) -> None:
    told = said(browse(probed(page, tmp_path / "copy.html"), tmp_path, "--dump-dom", "--virtual-time-budget=3000"))
    assert told["asked"] == []
    assert told["images"] == (6 + 6 + 12) * 7
    assert told["broken"] == 0
    assert told["wide"] <= 0  # wide tables scroll in themselves
    up, down = told["sort"]  # type: ignore[misc]
    assert up == sorted(up)
    assert down == up[::-1]
    assert len(up) == 7


def test_a_narrow_screen_is_not_overrun(page: Path, tmp_path: Path) -> None:
    told = said(
        browse(
            probed(page, tmp_path / "copy.html"),
            tmp_path,
            "--dump-dom",
            "--virtual-time-budget=3000",
            "--window-size=500,900",
        )
    )
    assert told["wide"] <= 0


def test_odd_names_stay_text(tmp_path: Path) -> None:
    made = report_from(make_results(tmp_path / "results", 4, METHODS[:3], name=NASTY, metrics=("energy", "deletion")))
    run = browse(made, tmp_path, "--dump-dom")
    assert console(run) == []
    assert "onerror=console.error(1)&gt;" in run.stdout
    told = said(browse(probed(made, tmp_path / "copy.html"), tmp_path, "--dump-dom", "--virtual-time-budget=3000"))
    assert told["asked"] == []
    assert told["broken"] == 0


def test_light_and_dark(page: Path, tmp_path: Path) -> None:
    means = []
    for name, options in (
        ("light", ["--blink-settings=preferredColorScheme=1"]),
        ("dark", ["--blink-settings=preferredColorScheme=0"]),
    ):
        file = tmp_path / f"{name}.png"
        browse(page, tmp_path, f"--screenshot={file}", "--window-size=1000,700", *options)
        means.append(float(np.asarray(Image.open(file).convert("L")).mean()))
    assert means[0] > 200
    assert means[1] < 70


def test_it_prints(page: Path, tmp_path: Path) -> None:
    file = tmp_path / "page.pdf"
    browse(page, tmp_path, f"--print-to-pdf={file}", "--no-pdf-header-footer")
    pdf = file.read_bytes()
    assert pdf.startswith(b"%PDF-")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 20


@pytest.mark.skipif("PROTOMASK_SLOW" not in os.environ, reason="takes two minutes; set PROTOMASK_SLOW to run it")
def test_a_run_of_200_pairs_opens_in_two_seconds(tmp_path: Path) -> None:
    made = report_from(make_results(tmp_path / "results", 200, MANY, size=224, chunk=16))
    assert made.stat().st_size < 20e6
    told = said(browse(probed(made, tmp_path / "copy.html"), tmp_path, "--dump-dom", "--virtual-time-budget=9000"))
    assert told["load"] < 2000  # type: ignore[operator]
    assert told["images"] == (6 + 6 + 200) * 17
