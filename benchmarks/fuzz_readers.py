"""A coverage-guided run over everything that reads a file of somebody else's: ``python benchmarks/fuzz_readers.py``.

Atheris (libFuzzer for Python, ``pip install atheris``) mutates the valid files of ``tests/fuzzing.py`` and keeps those
that reach new lines of protomask; the readers run in a process of their own each. What is no error of protomask's own,
takes longer than 20 s, or more than 4 GB, is a finding: its input is written to ``OUT/READER``. Ends with one line a
reader, as JSON: executions, seconds, lines of the corpus, findings.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def child(reader: str, corpus: str, options: list[str]) -> None:
    """Fuzz one reader in this process until libFuzzer ends it."""
    import atheris

    warnings.simplefilter("ignore")
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    with atheris.instrument_imports(include=["protomask", "protopnet_ext", "PIL", "zipfile", "pickletools"]):
        from tests import fuzzing
    scratch = Path(tempfile.mkdtemp(prefix="fuzz-"))
    kind = fuzzing.formats(scratch / "made")[reader]
    for number, seed in enumerate(kind.seeds):
        (Path(corpus) / f"seed-{number}").write_bytes(seed)
    at = scratch / "at"
    at.mkdir()

    def one(content: bytes) -> None:
        with fuzzing.only_our_errors(reader):
            kind.read(content, at)

    atheris.Setup([reader, *options, f"-dict={dictionary(kind.tokens, scratch)}", corpus], one)
    atheris.Fuzz()


def dictionary(tokens: tuple[bytes, ...], folder: Path) -> Path:
    """The tokens as libFuzzer reads them."""
    path = folder / "tokens.txt"
    short = [token for token in tokens if len(token) <= 64]
    path.write_text("".join('"' + "".join(f"\\x{b:02x}" for b in token) + '"\n' for token in short))
    return path


def run(reader: str, seconds: int, out: Path) -> dict[str, object]:
    """Fuzz one reader in a process of its own: what it did."""
    corpus, found = out / reader / "corpus", out / reader / "findings"
    for folder in (corpus, found):
        folder.mkdir(parents=True, exist_ok=True)
    options = [f"-max_total_time={seconds}", "-timeout=20", "-rss_limit_mb=4096", "-print_final_stats=1"]
    options += ["-max_len=65536", "-seed=1", f"-artifact_prefix={found}/"]
    start = time.perf_counter()
    command = [sys.executable, __file__, "--child", reader, str(corpus), *options]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", cwd=ROOT)
    (out / reader / "log.txt").write_text(done.stdout + done.stderr)
    counted = re.search(r"number_of_executed_units: *(\d+)", done.stderr)
    covered = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", done.stderr)
    return {
        "reader": reader,
        "executions": int(counted[1]) if counted else None,
        "seconds": round(time.perf_counter() - start, 1),
        "cov, ft, corpus": [int(n) for n in covered[-1]] if covered else None,
        "findings": [path.name for path in found.iterdir()],
        "last words": re.findall(r"AssertionError: .*", done.stdout + done.stderr)[-1:],
    }


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        return child(sys.argv[2], sys.argv[3], sys.argv[4:])
    from tests import fuzzing

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("readers", nargs="*", help="of tests/fuzzing.py (default: all)")
    parser.add_argument("--seconds", type=int, default=60, help="for each reader (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("fuzz-out"), help="corpora, findings, logs (%(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        names = args.readers or list(fuzzing.formats(Path(made)))
    for name in names:
        print(json.dumps(run(name, args.seconds, args.out.resolve())), flush=True)


if __name__ == "__main__":
    main()
