"""`make demo` runs from end to end; here with fewer steps."""

from __future__ import annotations

import importlib.util
import re

from n2sr_deploy import ExportedModel, read_frame
from n2sr_deploy.learning import LearnOptions
from tests.conftest import REPOSITORY


def test_the_demo_learns_denoises_and_compares(tmp_path, capsys):
    path = REPOSITORY / "examples" / "demo.py"
    spec = importlib.util.spec_from_file_location("demo", path)
    assert spec is not None
    assert spec.loader is not None
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    demo.main(tmp_path, LearnOptions(preset="fast", pattern="row", steps=60, device="cpu"))
    printed = capsys.readouterr().out
    closer = re.search(r"denoised ([\d.]+), ([\d.]+) times closer", printed)
    assert closer, printed
    assert float(closer[2]) > 1.2
    assert ExportedModel.open(tmp_path / "sample.onnx").metadata.pattern.name == "row"
    denoised = read_frame(tmp_path / "denoised.tif")
    assert denoised.shape == (512, 512)
    assert denoised.unit == "Å"
    assert (tmp_path / "demo.png").stat().st_size > 50_000
