"""What `--require` makes of missing tools: failures, where tests would be skipped in silence."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY

LIBRARY = """
import pytest

{}pytest.importorskip("no_such_library")


def test_it():
    pytest.importorskip("no_such_library")
"""
STANDARD = """
import sys

import pytest


def test_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)
    pytest.importorskip("resource")
"""
COMPILER = "def test_it(nvcc):\n    assert nvcc\n"


def outcome(tmp_path, test, *options, path=None):
    """Of one test, run as those here are: what pytest says last."""
    (tmp_path / "test_one.py").write_text(test)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "-c", os.devnull]
    command += ["--rootdir", tmp_path, *options, tmp_path / "test_one.py"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    if path is not None:
        environment["PATH"] = str(path)
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize("where", ["in the test", "in the file"])
def test_a_missing_library_fails_where_the_extras_are_required(tmp_path, where):
    test = LIBRARY.format("# " if where == "in the test" else "")
    assert "1 skipped" in outcome(tmp_path, test)
    told = outcome(tmp_path, test, "--require", "extras")
    assert "No module named 'no_such_library'" in told
    assert "skipped" not in told


def test_what_python_lacks_on_a_system_is_skipped_all_the_same(tmp_path):
    assert "1 skipped" in outcome(tmp_path, STANDARD, "--require", "extras")


def test_a_missing_compiler_fails_where_it_is_required(tmp_path):
    assert "1 skipped" in outcome(tmp_path, COMPILER, path=tmp_path)
    told = outcome(tmp_path, COMPILER, "--require", "nvcc", path=tmp_path)
    assert "--require nvcc, but there is no nvcc on the PATH" in told
    assert "1 skipped" not in told


@pytest.mark.parametrize("option", ["--require=gpu", "--require-gpu"])
def test_a_missing_gpu_fails_where_it_is_required(tmp_path, option):
    test = "import pytest\n\n\n@pytest.mark.gpu\ndef test_it():\n    pass\n"
    hide = (
        "import sys\nfrom types import SimpleNamespace\n"
        "cuda = SimpleNamespace(is_available=lambda: False)\n"
        "sys.modules['torch'] = SimpleNamespace(cuda=cuda)\n"
    )
    hidden = ["-o", "markers=gpu: of one"]
    assert "1 skipped" in outcome(tmp_path, hide + test, *hidden)
    assert "--require gpu, but PyTorch sees no" in outcome(tmp_path, hide + test, *hidden, option)


def test_a_tool_that_is_not_known_is_refused(tmp_path):
    assert "invalid choice: 'nvc'" in outcome(tmp_path, COMPILER, "--require", "nvc")
