"""Where benchmarks leave their figures, and on what machine they were taken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

from n2sr_deploy.doctor import report
from n2sr_deploy.version import VERSION

FOLDER = Path(__file__).with_name("results")
_TOPICS = (
    "n2sr",
    "numpy",
    "onnxruntime",
    "torch",
    "kernels",
    "backend OpenVINO",
    "processor",
    "GPU",
    "training on",
)


def keep(name: str, figures: Any) -> Path:
    """Write figures and the machine's description to results/NAME.json."""
    return _write(name, {"machine": machine(), "figures": figures})


def keep_part(name: str, part: str, figures: Any, *, is_whole: bool = True) -> Path:
    """Write one part of results/NAME.json, with where, when and of what it was measured.

    The other parts, of other runs, stay; so does the part itself until a new one is whole.
    """
    path = FOLDER / f"{name}.json"
    parts = json.loads(path.read_text()) if path.exists() else {}
    unfinished = f"{part}, unfinished"
    parts.pop(unfinished, None)
    measured = {"commit": commit(), "date": date.today().isoformat(), "machine": machine()}
    parts[part if is_whole else unfinished] = {**measured, "figures": figures}
    return _write(name, parts)


@cache
def machine() -> dict[str, str]:
    """What the figures of this run are taken on."""
    return {topic: finding for topic, finding in report() if topic in _TOPICS}


@cache
def commit() -> str:
    """Which n2sr runs: the commit, and a plus where files other than results differ from it."""
    name = _git("rev-parse", "--short", "HEAD")
    differs = _git(
        "status", "--porcelain", "--untracked-files=no", "--", ":/", f":(exclude){FOLDER}"
    )
    return name + "+" * bool(differs) if name else VERSION


def _git(*arguments: str) -> str:
    """What it says; nothing where there is no git, or no repository."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=FOLDER.parent, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return ""
    return done.stdout.strip()


def kept_rows(name: str) -> list[dict[str, Any]]:
    """The rows of a table that grows row by row, each with its machine."""
    path = FOLDER / f"{name}.json"
    if not path.exists():
        return []
    kept = json.loads(path.read_text())
    return [{**row, "machine": kept["machines"][row["machine"]]} for row in kept["figures"]]


def begin_as_deployed() -> None:
    """Begin the program anew with OpenMP's threads asleep between frames.

    So they are in a process that only denoises; one that makes its own network has PyTorch in it,
    with which they spin.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        asleep = {**os.environ, "OMP_WAIT_POLICY": "passive"}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], asleep)


def keep_rows(name: str, rows: list[dict[str, Any]]) -> Path:
    """Write rows that may come from several machines, each machine told once."""
    machines: list[dict[str, str]] = []
    for row in rows:
        if row["machine"] not in machines:
            machines.append(row["machine"])
    figures = [{**row, "machine": machines.index(row["machine"])} for row in rows]
    return _write(name, {"machines": machines, "figures": figures})


def _write(name: str, content: dict[str, Any]) -> Path:
    path = FOLDER / f"{name}.json"
    FOLDER.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path
