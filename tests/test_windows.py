"""What Windows does otherwise, where that can be feigned elsewhere."""

from __future__ import annotations

import errno
import os
import re
import runpy
import signal
import subprocess
import sys
import threading
import time
import tomllib
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import click.core
import numpy as np
import pytest
from click.testing import CliRunner

from n2sr_deploy import __main__ as program
from n2sr_deploy import doctor, files, signals, write_frame
from n2sr_deploy.batch import local
from n2sr_deploy.batch.manifest import Manifest
from n2sr_deploy.batch.work import Task
from n2sr_deploy.cli import main
from n2sr_deploy.errors import OutputError, SettingError
from n2sr_deploy.frame import Frame
from n2sr_deploy.learning import LearnOptions
from n2sr_deploy.stream import StreamRunner, training_process
from n2sr_deploy.stream.addresses import Address
from n2sr_deploy.stream.denoising import LiveDenoiser
from n2sr_deploy.stream.learning import LiveLearner
from n2sr_deploy.stream.pace import Pace
from n2sr_deploy.stream.training_process import TrainingFailedError, TrainingProcess
from n2sr_deploy.stream.viewer import server
from tests.conftest import REPOSITORY
from tests.fake_stream import FakeSink, FakeSource, live_frame

TASK = Task(name="a", noisy="a", output="a", std=None, options={}, overwrite=False)
FEW_LETTERS = {"PYTHONUTF8": "0", "PYTHONIOENCODING": "cp437:strict"}


@pytest.fixture
def as_windows(monkeypatch):
    """Where n2sr asks which system this is."""

    def begin():
        monkeypatch.setattr(sys, "platform", "win32")

    return begin


@pytest.fixture
def kept_open(monkeypatch):
    """Open files cannot be removed."""
    unlink = Path.unlink

    def refusing(path, missing_ok=False):
        opened = [os.path.realpath(entry) for entry in Path("/proc/self/fd").iterdir()]
        if str(path.resolve()) in opened:
            raise PermissionError(errno.EACCES, "another process uses it")
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", refusing)


def test_names_that_the_console_cannot_encode_are_escaped(tmp_path):
    """The file had been written, and then a traceback said otherwise."""
    done = subprocess.run(
        [sys.executable, "-m", "n2sr_deploy", "simulate", "-o", "→.tif", "--size", "64", "64"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(REPOSITORY), **FEW_LETTERS},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("\\u2192.tif: 64 x 64 phantom")


def test_what_a_training_says_beside_a_stream_can_be_encoded(tmp_path, monkeypatch):
    """One in a temporary folder of ``C:\\Users\\Łukasz`` ended amid what it had learned."""
    for name, value in FEW_LETTERS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(training_process, "_NICENESS", 0)
    waits = "from n2sr_deploy.lifeline import wait_until_told; wait_until_told(); "
    program = waits + "import sys; sys.exit('Error: ' + sys.argv[-1])"
    monkeypatch.setattr(training_process, "_PROGRAM", program)
    training = TrainingProcess(LearnOptions(), None, "Ł→")
    with pytest.raises(TrainingFailedError, match="Ł→"):
        training.learn(Frame(pixels=np.eye(64, dtype=np.float32)))
    monkeypatch.setattr(training_process, "_PROGRAM", "import sys; sys.exit('Error: Ł→')")
    with pytest.raises(SettingError, match="Ł→"):
        LiveLearner(LiveDenoiser(None, ""), LearnOptions(preset="fast"))


def test_a_training_beside_a_stream_has_the_lower_priority_of_windows(monkeypatch):
    monkeypatch.setattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0x200, raising=False)
    monkeypatch.setattr(subprocess, "BELOW_NORMAL_PRIORITY_CLASS", 0x4000, raising=False)
    monkeypatch.delattr(os, "setpriority")
    begun = {}
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **given: begun.update(given))
    monkeypatch.setattr(TrainingProcess, "close", lambda self: self._folder.cleanup())
    TrainingProcess(LearnOptions(), None, None).close()
    assert begun["creationflags"] == 0x4200


_READS_STDIN = """
import os
from n2sr_deploy.batch import worker
from n2sr_deploy.batch.work import Outcome
worker.work = lambda *_: Outcome(error=f"read {os.read(0, 1)!r}")
worker.main()
"""


def test_a_workers_pipe_is_no_standard_input(monkeypatch):
    """Libraries ask for its kind as they are loaded, and waited for the next task to do so."""
    popen, command = subprocess.Popen, [sys.executable, "-c", _READS_STDIN, "1"]
    monkeypatch.setattr(subprocess, "Popen", lambda _, **how: popen(command, **how))
    with closing(local._Worker(1)) as worker:
        stuck = threading.Timer(60, worker.kill)
        stuck.start()
        assert worker.do(TASK, lambda _: None).error == "read b''"
        stuck.cancel()


def test_a_worker_whose_pipe_breaks_fails_its_file_only(monkeypatch):
    """Windows calls that an invalid argument, which ended the whole batch."""

    class Broken:
        def write(self, _=""):
            raise OSError(errno.EINVAL, "Invalid argument")

        close = write

    worker = local._Worker(1)
    worker.close()
    monkeypatch.setattr(worker._process, "stdin", Broken())
    assert "was killed by signal 9" in worker.do(TASK, lambda _: None).error
    worker.close()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="it tells which files are open")
def test_a_batch_that_begins_nothing_leaves_nothing(tmp_path, as_windows, kept_open):
    manifest = Manifest(tmp_path)
    as_windows()
    manifest.close()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_another_program_writes_is_told(tmp_path, noisy, monkeypatch):
    """Windows lets it be looked at, but not opened: a traceback."""
    write_frame(tmp_path / "noisy.tif", noisy)
    opened = Path.open

    def refusing(path, *how, **more):
        if path.name == "noisy.tif":
            raise PermissionError(errno.EACCES, "The process cannot access the file")
        return opened(path, *how, **more)

    monkeypatch.setattr(Path, "open", refusing)
    result = CliRunner().invoke(main, ["info", str(tmp_path / "noisy.tif")])
    assert result.exit_code == 2
    assert "cannot access the file; check its permissions, and whether another" in result.stderr


def test_a_folder_that_takes_no_files_is_told_before_the_work(tmp_path, monkeypatch, as_windows):
    """Windows' `os.access` says yes to every folder."""

    def refusing(*_, **__):
        raise PermissionError(errno.EACCES, "Access is denied")

    as_windows()
    files.check_output(tmp_path / "a.tif", overwrite=False)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(Path, "touch", refusing)
    with pytest.raises(OutputError, match="cannot be written to; choose another"):
        files.check_output(tmp_path / "a.tif", overwrite=False)


def test_names_with_brackets_are_no_globs(monkeypatch):
    """Of a[1].tif and a1.tif, the latter was taken for the former."""
    monkeypatch.setattr(click.core, "os", SimpleNamespace(**{**vars(os), "name": "nt"}))
    monkeypatch.setattr(click.core, "_expand_args", lambda _: pytest.fail("expanded"))
    monkeypatch.setattr(sys, "argv", ["n2sr", "--help"])
    with pytest.raises(SystemExit) as ended:
        program.main()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    assert ended.value.code == 0


def test_ctrl_break_ends_as_sigterm_does(monkeypatch):
    """Without a word, and with its temporary files left."""
    assert signal.SIGTERM in signals.ending()
    monkeypatch.setattr(signal, "SIGBREAK", signal.SIGUSR1, raising=False)
    came = []
    with signals.handled(lambda number, _: came.append(number)):
        signal.raise_signal(signal.SIGBREAK)
    assert came == [signal.SIGBREAK]
    assert signal.getsignal(signal.SIGBREAK) is signal.SIG_DFL


def test_two_viewers_have_no_port_together(as_windows):
    """SO_REUSEADDR lets them there, and a browser came to the one or the other."""
    as_windows()
    assert not runpy.run_path(server.__file__)["_Server"].allow_reuse_address


@pytest.mark.parametrize("given", [r"C:\incoming", "d:/frames/a.tif"])
def test_a_path_is_no_address_of_a_scheme_that_is_a_drive(given):
    with pytest.raises(SettingError, match=r"is no address; .* watch:folder/"):
        Address.parse(given)


@pytest.mark.parametrize("folder", [r"C:\incoming", r"\\server\share\incoming", "D:/incoming"])
def test_paths_of_windows_are_targets(folder):
    address = Address.parse(f"watch:{folder}?settle=2")
    assert (address.scheme, address.target) == ("watch", folder)


def test_frames_are_paced_by_a_clock_that_does_not_go_in_steps(monkeypatch):
    """Of 16 ms, as long as the monotonic clock of Python 3.12 stands still."""
    monkeypatch.setattr(time, "monotonic", lambda: 0.0)
    pace = Pace(Address.parse("sim:?fps=1000"))
    pace.begin()
    began = time.perf_counter()
    assert all(pace.is_due(1.0) for _ in range(21))
    assert pace._due_s - began >= 0.02


def test_openmp_loops_declare_their_index_before():
    """As MSVC wants it; without the kernels n2sr is slow."""
    for path in (REPOSITORY / "csrc").glob("*.c"):
        loops = re.findall(
            r"#pragma omp [^\n]*for\b.*?\n\s*for \((.*?);", path.read_text(), re.DOTALL
        )
        assert loops, path
        assert all(re.fullmatch(r"\w+ = 0", loop) for loop in loops), path


def test_latencies_are_measured_by_a_clock_that_does_not_go_in_steps(monkeypatch):
    """They were 0 or 16 ms with Python 3.12; its two clocks do not even begin at the same time."""
    monotonic = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() // 60 * 60 - 1000)
    source = FakeSource([live_frame(n) for n in range(3)])
    summary = StreamRunner(source, [FakeSink()], LiveDenoiser(None, ""), policy="all").run()
    assert 0 < summary["seconds"] < 60
    stages = summary["stages_ms"]
    assert {"wait", "arrival to a fake sink"} <= stages.keys()
    assert all(0 < stage["p50"] < 60_000 for stage in stages.values()), stages


def test_the_doctor_misses_no_package_that_is_not_for_windows(monkeypatch, as_windows):
    """Nobody offers bitshuffle built for it: the extra `live` could not be installed."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    assert "bitshuffle>=0.5; sys_platform != 'win32'" in project["optional-dependencies"]["live"]
    lines = ['bitshuffle>=0.5; sys_platform != "win32" and extra == "live"', 'p4p; extra == "live"']
    monkeypatch.setattr(doctor, "requires", lambda _: lines)
    assert doctor._required("live") == ["bitshuffle", "p4p"]
    as_windows()
    assert doctor._required("live") == ["p4p"]
