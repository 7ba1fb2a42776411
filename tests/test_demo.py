"""`make demo` runs from end to end; here with seconds instead of a minute of training."""

from __future__ import annotations

import re
import subprocess
import sys

from n2sr_deploy import ExportedModel, read_frame
from tests.conftest import REPOSITORY


def test_the_demo_learns_denoises_and_compares(tmp_path):
    demo = REPOSITORY / "examples" / "demo.py"
    done = subprocess.run(
        [sys.executable, demo, tmp_path, "6"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    closer = re.search(r"denoised ([\d.]+), ([\d.]+) times closer", done.stdout)
    assert closer, done.stdout
    assert float(closer[2]) > 1.2
    assert ExportedModel.open(tmp_path / "sample.onnx").metadata.pattern.name == "row"
    denoised = read_frame(tmp_path / "denoised.tif")
    assert denoised.shape == (512, 512)
    assert denoised.unit == "Å"
    assert (tmp_path / "demo.png").stat().st_size > 50_000
