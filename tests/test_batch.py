"""Many files: what is done is not done again, what fails stops nothing, kills leave no trace."""

from __future__ import annotations

import errno
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from n2sr_deploy import formats, read_frame, write_frame
from n2sr_deploy.batch import BatchOptions, local, run_batch
from n2sr_deploy.batch import work as work_module
from n2sr_deploy.batch.manifest import NAME, Entry, Manifest
from n2sr_deploy.batch.plan import planned
from n2sr_deploy.batch.work import Outcome
from n2sr_deploy.cli import main
from n2sr_deploy.cores import threads_each
from n2sr_deploy.denoise_options import DenoiseOptions
from n2sr_deploy.errors import (
    FileFormatError,
    InputFileError,
    MissingExtraError,
    NotChosenError,
    OutOfMemoryError,
    OutputError,
    SettingError,
)
from n2sr_deploy.files import temporary_of
from n2sr_deploy.formats import open_frames, write_frames
from n2sr_deploy.formats.base import Axis

psutil = pytest.importorskip("psutil")
OUTCOMES = "done", "started"
SCRIPT = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from n2sr_deploy.cli import main; main()"
)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run `n2sr batch` in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, code=0):
        result = CliRunner().invoke(main, ["batch", *(str(a) for a in arguments)])
        assert result.exit_code == code, result.output
        return result

    return run


def make(folder, names, noisy):
    rng = np.random.default_rng(0)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.poisson(noisy.pixels * 400).astype(np.uint16)
        write_frame(folder / name, replace(noisy, pixels=pixels))


@pytest.fixture
def raw(tmp_path, noisy):
    """A folder of three frames, one of them in a folder of its own."""
    make(tmp_path / "raw", ["a.tif", "b.mrc", "deep/c.tif"], noisy)
    return tmp_path / "raw"


def results(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != NAME
    }


def entries(folder):
    return [json.loads(line) for line in (folder / NAME).read_text().splitlines()]


def test_a_folder_and_what_a_second_run_finds_done(run, raw, tmp_path, model_path):
    before = results(raw)
    first = run("raw", "-o", "out", "-m", model_path, "--recursive", "--std")
    assert "3 denoised" in first.stdout
    assert "3 of 3 files" in first.stderr
    made = results(tmp_path / "out")
    assert sorted(made) == [
        *("a.std.tif", "a.tif", "b.mrc", "b.std.mrc", "deep/c.std.tif", "deep/c.tif")
    ]
    assert read_frame("out/b.mrc").pixel_size == pytest.approx((0.02, 0.03))
    second = run("raw", "-o", "out", "-m", model_path, "--recursive", "--std")
    assert "3 done before" in second.stdout
    assert results(tmp_path / "out") == made
    assert results(raw) == before
    told = [(entry["output"], entry["outcome"]) for entry in entries(tmp_path / "out")]
    assert sorted(told) == [(n, o) for n in ("a.tif", "b.mrc", "deep/c.tif") for o in OUTCOMES]


def test_a_result_is_that_of_denoise(run, raw, model_path):
    run("raw", "-o", "out", "-m", model_path, "--seed", 3)
    arguments = ["denoise", "raw/a.tif", "-m", str(model_path), "-o", "one.tif", "--seed", "3"]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    assert np.array_equal(read_frame("out/a.tif").pixels, read_frame("one.tif").pixels)


def test_each_file_learns_its_own_network_without_a_model(run, raw, tmp_path):
    run("raw/*.tif", "-o", "out", "--steps", 2, "--device", "cpu", "--dtype", "same")
    frame = read_frame("out/a.tif")
    assert frame.pixels.dtype == np.uint16
    assert frame.metadata["n2sr"]["learned_from_frame"] == 0
    assert sorted(results(tmp_path / "out")) == ["a.tif"]


def test_stacks_are_done_as_stacks(run, noisy, tmp_path, model_path):
    (tmp_path / "raw").mkdir()
    axis = Axis(name="time", size=2, scale=0.1, unit="s")
    write_frames("raw/s.tif", [noisy, replace(noisy, pixels=noisy.pixels * 2)], (axis,))
    run("raw", "-o", "out", "-m", model_path)
    with open_frames("out/s.tif") as opened:
        assert opened.axes == (axis,)


def test_one_file_that_fails_stops_no_other(run, raw, tmp_path, model_path):
    (raw / "aa.tif").write_bytes((raw / "a.tif").read_bytes()[:3000])
    np.save(raw / "constant.npy", np.ones((64, 64)))
    result = run("raw", "-o", "out", "-m", model_path, code=1)
    assert "2 denoised" in result.stdout
    assert "2 failed" in result.stdout
    assert "raw/constant.npy: frame is constant" in result.stdout
    assert result.stdout.count("raw/aa.tif") == 1
    attempts = {e["output"]: e["attempts"] for e in entries(tmp_path / "out")}
    assert attempts["aa.tif"] == attempts["constant.npy"] == 1  # they will stay as they are
    assert sorted(results(tmp_path / "out")) == ["a.tif", "b.mrc"]


def test_other_settings_are_told_and_done_only_with_overwrite(run, raw, tmp_path, model_path):
    run("raw", "-o", "out", "-m", model_path)
    made = results(tmp_path / "out")
    result = run("raw", "-o", "out", "-m", model_path, "--seed", 1)
    assert "2 left: of other settings" in result.stdout
    assert "--overwrite does them again" in result.stdout
    assert results(tmp_path / "out") == made
    run("raw", "-o", "out", "-m", model_path, "--seed", 1, "--overwrite")
    assert results(tmp_path / "out")["a.tif"] != made["a.tif"]
    run("raw", "-o", "out", "-m", model_path, "--overwrite")
    assert results(tmp_path / "out") == made


def test_another_input_of_the_same_name_is_told(run, raw, noisy, model_path):
    run("raw", "-o", "out", "-m", model_path)
    write_frame(raw / "a.tif", replace(noisy, pixels=noisy.pixels * 2), overwrite=True)
    result = run("raw", "-o", "out", "-m", model_path)
    assert "1 done before" in result.stdout
    assert "1 left: of another input" in result.stdout


def test_a_file_of_another_folder_is_another_input(run, noisy, model_path):
    """Of equal size and time, it was taken for done before."""
    for folder in ("r1", "r2"):
        make(Path(folder), ["f.tif"], noisy)
        os.utime(f"{folder}/f.tif", (1e9, 1e9))
    run("r1", "-o", "out", "-m", model_path)
    assert "1 left: of another input" in run("r2", "-o", "out", "-m", model_path).stdout
    assert "1 done before" in run("r2/../r1/f.tif", "-o", "out", "-m", model_path).stdout


def test_what_was_removed_is_made_again(run, raw, tmp_path, model_path):
    run("raw", "-o", "out", "-m", model_path, "--std")
    made = results(tmp_path / "out")
    (tmp_path / "out" / "a.std.tif").unlink()
    (tmp_path / "out" / "b.mrc").write_bytes(b"cut")
    assert "2 denoised" in run("raw", "-o", "out", "-m", model_path, "--std").stdout
    assert results(tmp_path / "out") == made


def test_files_of_others_are_not_replaced(run, raw, tmp_path, model_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.tif").write_bytes(b"precious")
    result = run("raw", "-o", "out", "-m", model_path, code=1)
    assert "1 denoised" in result.stdout
    assert "out/a.tif is there already, and not of this batch" in result.stdout
    assert (tmp_path / "out" / "a.tif").read_bytes() == b"precious"


def test_a_torn_line_and_a_damaged_one_are_survived(run, raw, tmp_path, model_path):
    run("raw", "-o", "out", "-m", model_path)
    manifest = tmp_path / "out" / NAME
    manifest.write_bytes(b"\x00\xff\n" + manifest.read_bytes() + b'{"output": "a.t')
    result = run("raw", "-o", "out", "-m", model_path)
    assert "2 done before" in result.stdout
    assert "1 line that cannot be read" in result.stderr
    assert manifest.read_bytes().endswith(b"}\n")


def test_only_temporary_files_of_its_own_are_removed(run, raw, tmp_path, model_path):
    """Those of an `n2sr denoise` into a folder in it were removed too, while it wrote them."""
    run("raw", "-o", "out", "-m", model_path)
    out = tmp_path / "out"
    (out / "deep").mkdir()
    others = [temporary_of(out / name) for name in ("mine.tif", "deep/a.tif")]
    ours = [temporary_of(out / name) for name in ("a.tif", "a.std.tif")]
    for path in (*others, *ours):
        path.write_bytes(b"half")
    assert "removed 2 temporary files" in run("raw", "-o", "out", "-m", model_path).stderr
    assert [path.exists() for path in (*others, *ours)] == [True, True, False, False]


def test_a_file_that_appears_while_a_batch_runs_is_not_replaced(
    run, raw, tmp_path, model_path, monkeypatch
):
    class Late(local._Worker):
        def do(self, task, on_share):
            if task.name == "a.tif":
                (tmp_path / "out" / "a.tif").write_bytes(b"precious")
            return super().do(task, on_share)

    monkeypatch.setattr(local, "_Worker", Late)
    result = run("raw", "-o", "out", "-m", model_path, code=1)
    assert "a.tif exists already" in result.stdout
    assert "1 denoised" in result.stdout
    assert (tmp_path / "out" / "a.tif").read_bytes() == b"precious"


def test_a_second_batch_into_the_folder_is_refused(run, raw, tmp_path, model_path):
    (tmp_path / "out").mkdir()
    with Manifest(tmp_path / "out"):
        result = run("raw", "-o", "out", "-m", model_path, code=2)
    assert "another batch writes into out; wait for it to end" in result.stderr
    run("raw", "-o", "out", "-m", model_path)


@pytest.mark.parametrize("new_is_whole", [True, False])
def test_a_store_that_a_killed_batch_put_aside_is_not_lost(tmp_path, new_is_whole):
    """Killed between two renames it had put the old result aside; the next one removed both."""
    new = temporary_of(tmp_path / "a.zspy")
    for name, folder in (("old", new.with_name(f"{new.name}-old")), ("new", new)):
        if name == "old" or new_is_whole:
            folder.mkdir()
            (folder / "which").write_text(name)
    entry = Entry(output="a.zspy", outcome="started", input="a", size=1, mtime_ns=1, settings={})
    with Manifest(tmp_path) as manifest:
        manifest.append([entry])
        assert manifest.remove_leftovers() == 1 + new_is_whole
    assert (tmp_path / "a.zspy" / "which").read_text() == ("new" if new_is_whole else "old")
    assert {path.name for path in tmp_path.iterdir()} == {"a.zspy", NAME}


class Answers:
    """A runner without processes: it gives each file its outcomes, in turn."""

    def __init__(self, outcomes):
        self.outcomes, self.waiting, self.is_closed = outcomes, [], False

    def __call__(self, begins, shares, n_threads):
        self.begins, self.asked, self.n_threads = begins, n_threads, n_threads or 3
        return self

    def describe(self):
        return "nobody"

    def submit(self, task):
        self.begins(task)
        self.waiting.append(task)

    def next_result(self):
        task = self.waiting.pop(0)
        return task, self.outcomes[task.name].pop(0)

    def close(self):
        self.is_closed = True


class Unwatched:
    def begin(self, n_files, told):
        pass

    def share(self, name, share):
        pass

    def end(self, name, entry):
        pass


def answered(tmp_path, outcomes, answers=None, model=None, **options):
    how = BatchOptions(denoising=DenoiseOptions(model=model), **options)
    answers = answers or Answers(outcomes)
    try:
        return run_batch([str(tmp_path / "raw")], tmp_path / "out", how, answers, Unwatched())
    finally:
        assert answers.is_closed


def test_a_wrong_setting_is_told_at_the_first_file(raw, tmp_path):
    wrong = Outcome(error="preset is 'bst'", is_hopeless=True, is_of_settings=True)
    with pytest.raises(SettingError, match="preset is 'bst'"):
        answered(tmp_path, {"a.tif": [wrong], "b.mrc": []})
    summary = answered(tmp_path, {"a.tif": [Outcome()], "b.mrc": [wrong]})
    assert summary.done == ["a.tif"]
    assert summary.failed == {str(raw / "b.mrc"): "preset is 'bst'"}


@pytest.mark.parametrize(
    ("option", "told"),
    [
        (["--preset", "fst"], "--preset is 'fst', but must be one of fast, balanced, best, paper"),
        (["--init", "nothere.safetensors"], "nothere.safetensors does not exist; check the path"),
        (["--steps", "0"], "--steps is 0"),
    ],
)
def test_a_wrong_setting_is_told_though_results_are_there(run, raw, tmp_path, option, told):
    """They were left as those of other settings, with exit 0."""
    answered(tmp_path, {"a.tif": [Outcome()], "b.mrc": [Outcome()]})
    for name in ("a.tif", "b.mrc"):
        (tmp_path / "out" / name).touch()
    for folder in ("out", "new"):
        assert told in run("raw", "-o", folder, *option, code=2).stderr
    assert not (tmp_path / "new").exists()


def test_networks_are_learned_with_the_threads_that_the_batch_began_with(raw, tmp_path, model_path):
    """With others they are the same only to rounding: found by comparing --jobs 1 with 2."""
    fails = {"a.tif": [Outcome(error="killed")], "b.mrc": [Outcome(error="killed")]}
    asked = []
    for options in ({}, {}, {"n_threads": 2}, {"model": str(model_path)}):
        answers = Answers({name: list(outcomes) for name, outcomes in fails.items()})
        answered(tmp_path, {}, answers, retries=0, **options)
        asked.append(answers.asked)
    assert asked == [0, 3, 2, 0]


def test_only_what_may_succeed_is_tried_again(raw, tmp_path):
    fails = Outcome(error="the share is away")
    hopeless = Outcome(error="constant", is_hopeless=True)
    summary = answered(
        tmp_path, {"a.tif": [fails, fails, Outcome()], "b.mrc": [hopeless]}, retries=2
    )
    assert (summary.done, summary.failed) == (["a.tif"], {str(raw / "b.mrc"): "constant"})


@pytest.mark.parametrize(
    ("cause", "is_hopeless"),
    [
        (None, True),
        (OSError("Unable to synchronously open file (truncated file)"), True),  # h5py's
        (OSError(errno.ESTALE, "Stale file handle"), False),
        (MemoryError(), False),
    ],
)
def test_a_damaged_file_is_hopeless_but_a_share_that_is_away_is_not(
    raw, monkeypatch, cause, is_hopeless
):
    """Damaged, truncated and unknown files were tried again."""

    def refused(*_, **__):
        raise FileFormatError("a.tif is damaged") from cause

    monkeypatch.setattr(work_module, "denoise_file", refused)
    job = planned([str(raw / "a.tif")], raw.parent / "out", {"std": False})[0]
    options = DenoiseOptions(model="m.onnx")
    outcome = work_module.work(work_module.Task.of(job, options), None, lambda _: None)
    assert outcome.is_hopeless is is_hopeless


@pytest.mark.parametrize("retries", [0, 2])
def test_a_worker_that_is_killed_fails_its_file_only(
    run, raw, tmp_path, model_path, monkeypatch, retries
):
    class Mortal(local._Worker):
        def do(self, task, on_share):
            if task.name == "a.tif":
                self.kill()
            return super().do(task, on_share)

    monkeypatch.setattr(local, "_Worker", Mortal)
    before = set(psutil.Process().children(recursive=True))
    result = run("raw", "-o", "out", "-m", model_path, "--retries", retries, code=1)
    assert "a.tif: the process that did it was killed by signal 9; did memory" in result.stdout
    last = {entry["output"]: entry for entry in entries(tmp_path / "out")}
    assert last["a.tif"]["attempts"] == retries + 1
    assert last["b.mrc"]["outcome"] == "done"
    assert set(psutil.Process().children(recursive=True)) <= before


def test_a_full_disk_ends_a_batch_rather_than_hang_it(run, raw, model_path, monkeypatch):
    """The thread that could not note that a file begins died, and was waited for."""

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("n2sr_deploy.batch.manifest.os.fsync", full)
        result = run("raw", "-o", "out", "-m", model_path, code=2)
    assert "No space left on device; make room" in result.stderr
    assert "2 denoised" in run("raw", "-o", "out", "-m", model_path).stdout


def test_a_process_that_cannot_begin_ends_a_batch(run, raw, model_path, monkeypatch):
    monkeypatch.setattr(local.sys, "executable", "/no/such/python")
    result = run("raw", "-o", "out", "-m", model_path, code=2)
    assert "cannot start a process to denoise in: No such file" in result.stderr


def started(arguments, folder, stderr=subprocess.DEVNULL):
    """The command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, "batch", *map(str, arguments)],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def workers_of(process):
    if process.poll() is not None:
        return []
    return psutil.Process(process.pid).children(recursive=True)


def n_lines(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
def test_killed_at_any_moment_it_ends_with_the_same_files(run, noisy, tmp_path, model_path):
    names = [f"{folder}{i}.tif" for folder in ("", "deep/") for i in range(5)]
    make(tmp_path / "raw", names, noisy)
    arguments = ["raw", "-m", model_path, "--recursive", "--std", "-M", 8]
    run(*arguments, "-o", "whole", "--jobs", 2)
    moments = random.Random(0)
    manifest = tmp_path / "out" / NAME
    for attempt in range(5):
        process = started([*arguments, "-o", "out", "--jobs", 1 + attempt % 2], tmp_path)
        wanted = n_lines(manifest) + moments.randint(1, 4)
        while n_lines(manifest) < wanted and process.poll() is None:
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.15))
        workers = workers_of(process)
        process.kill()
        process.wait()
        assert not psutil.wait_procs(workers, timeout=20)[1], "a worker outlived its batch"
    temporary_of(tmp_path / "out" / "0.tif").write_bytes(b"left by a killed run")
    (tmp_path / "out" / ".n2sr-notes.txt").write_bytes(b"somebody's")
    result = run(*arguments, "-o", "out")
    assert "removed" in result.stderr
    assert " failed" not in result.stdout
    (tmp_path / "out" / ".n2sr-notes.txt").unlink()
    assert results(tmp_path / "out") == results(tmp_path / "whole")


@pytest.mark.skipif(os.name == "nt", reason="signals differ on Windows")
def test_ctrl_c_stops_cleanly(run, noisy, tmp_path, model_path):
    make(tmp_path / "raw", [f"{i}.tif" for i in range(20)], noisy)
    process = started(["raw", "-m", model_path, "-o", "out", "-M", 64], tmp_path, subprocess.PIPE)
    while n_lines(tmp_path / "out" / NAME) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    workers = workers_of(process)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 128 + signal.SIGINT
    assert not psutil.wait_procs(workers, timeout=20)[1]
    done = [entry for entry in entries(tmp_path / "out") if entry["outcome"] == "done"]
    assert 1 <= len(done) < 20
    told = process.stderr.read().decode()
    process.stderr.close()
    assert f"stopped: {len(done)} of 20 files denoised; the same command does the rest" in told
    assert "Abort" not in told


@pytest.mark.skipif(os.name == "nt", reason="signals differ on Windows")
def test_ctrl_c_of_a_terminal_while_processes_begin_shows_no_traceback(noisy, tmp_path, model_path):
    """A terminal tells all of them, and they were still importing."""
    make(tmp_path / "raw", ["0.tif"], noisy)
    process = started(["raw", "-m", model_path, "-o", "out"], tmp_path, subprocess.PIPE)
    while not (workers := workers_of(process)):
        assert process.poll() is None
        time.sleep(0.001)
    time.sleep(0.1)  # to be Python by then
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 128 + signal.SIGINT
    assert not psutil.wait_procs(workers, timeout=20)[1]
    told = process.stderr.read().decode()
    process.stderr.close()
    assert "stopped: 0 of 1 file denoised" in told
    assert "Traceback" not in told


def test_ctrl_c_amid_the_note_of_a_file_counts_it(raw, tmp_path, monkeypatch):
    """Noted but not told, now and then: the stop came while the disk was waited for."""
    told, fsync = [], os.fsync

    def stopped_at_the_third(descriptor):
        if n_lines(tmp_path / "out" / NAME) == 3:  # two begun, one done
            signal.raise_signal(signal.SIGINT)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", stopped_at_the_third)
    monkeypatch.setattr(Unwatched, "end", lambda self, name, entry: told.append(name))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            answered(tmp_path, {"a.tif": [Outcome()], "b.mrc": [Outcome()]})
    finally:
        after = signal.signal(signal.SIGINT, before)
    done = [entry["output"] for entry in entries(tmp_path / "out") if entry["outcome"] == "done"]
    assert told == done == ["a.tif"]
    assert after is signal.default_int_handler


# ---- which files, and where results go ------------------------------------------------------


def plan(inputs, folder="out", **options):
    jobs = planned(inputs, Path(folder), {"std": False}, **options)
    return {job.noisy.as_posix(): job.name for job in jobs}


def test_names_of_results(run, raw, noisy, monkeypatch):
    write_frame(raw / "a.mrc", noisy)  # the stem of a.tif
    (raw / "notes.txt").write_text("no frame")
    (raw / ".hidden.tif").write_bytes((raw / "a.tif").read_bytes())
    flat = {"raw/a.mrc": "a.mrc", "raw/a.tif": "a.tif", "raw/b.mrc": "b.mrc"}
    assert plan(["raw"]) == flat
    assert plan(["raw"], recursive=True) == {**flat, "raw/deep/c.tif": "deep/c.tif"}
    assert plan(["raw/**/*.tif"]) == {"raw/a.tif": "a.tif", "raw/deep/c.tif": "deep/c.tif"}
    assert plan(["raw/deep/c.tif"]) == {"raw/deep/c.tif": "c.tif"}
    assert plan(["raw/a.tif", "raw/deep"]) == {
        "raw/a.tif": "a.tif",
        "raw/deep/c.tif": "deep/c.tif",
    }
    assert plan(["raw"], extension=".npy")["raw/a.mrc"] == "a.mrc.npy"
    assert plan(["raw"], extension=".zspy")["raw/a.mrc"] == "a.mrc.zspy"
    assert plan(["raw"], leave_out={"../raw/a.mrc"}) == {
        key: value for key, value in flat.items() if key != "raw/a.mrc"
    }
    monkeypatch.setattr("n2sr_deploy.formats.is_written", lambda path: path.suffix != ".mrc")
    assert plan(["raw"])["raw/a.mrc"] == "a.mrc.tif"


def test_files_beside_the_frames_are_no_frames(run, raw):
    """Of a microscope's folder, pictures and notes failed and an EMI was done twice."""
    for name in ("report.png", "notes.xml", "report.html", "s.emi", "s_1.ser", "s_2.ser", "t.emi"):
        (raw / name).write_bytes(b"")
    frames = {"raw/a.tif", "raw/b.mrc", "raw/s_1.ser", "raw/s_2.ser", "raw/t.emi"}
    assert plan(["raw"]).keys() == frames
    assert plan(["raw/*"]).keys() == plan(["raw/*.*"]).keys() == frames
    assert plan(["raw/*.emi"]).keys() == {"raw/s.emi", "raw/t.emi"}
    assert plan(["raw/*.png"]).keys() == {"raw/report.png"}
    assert plan(["raw", "raw/notes.xml"]).keys() == {*frames, "raw/notes.xml"}
    assert "raw/s.emi" in plan(["raw", "raw/s.emi"])


def test_every_format_that_is_written_can_be_asked_for():
    """--format zspy was refused, and the help of denoise named three formats."""
    for command, wanted in (("batch", "zspy|"), ("denoise", ".zspy")):
        told = CliRunner().invoke(main, [command, "--help"], terminal_width=1000).output
        for name in formats.extensions(written=True):
            assert name[1:] in told
        assert wanted in told.replace("]", "|")
        assert "calibrated standard error" in told


def test_names_that_cannot_be(run, raw, noisy, tmp_path):
    with pytest.raises(OutputError, match="is an input, which is never changed"):
        plan(["raw"], "raw")
    with pytest.raises(InputFileError, match="does not exist; name a folder, a file or a glob"):
        plan(["rw"])
    with pytest.raises(InputFileError, match="cannot be used: File name too long"):
        plan(["a" * 300])
    write_frame(raw / ("a" * 251 + ".npy"), noisy)
    for options in (("-o", "out", "--format", "tif"), ("-o", "a" * 300)):
        told = run("raw", *options, code=2).stderr
        assert "cannot be used: File name too long" in told
    (raw / ("a" * 251 + ".npy")).unlink()
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.png").touch()
    with pytest.raises(InputFileError, match=r'no frame file in empty.* \.png, .*"FOLDER/\*\.png"'):
        plan(["empty"])
    write_frame(raw / "a.tif.npy", noisy)
    with pytest.raises(OutputError, match="2 inputs would be written to"):
        plan(["raw"], extension=".npy")


def test_globs_are_globs_where_no_name_may_have_a_star(run, raw, monkeypatch):
    """Windows, whose shells leave globs to the program, refuses to look for such a name."""
    stat = Path.stat

    def as_windows(path, **options):
        if "*" in path.name:
            error = OSError(errno.EINVAL, "The filename, directory name, or label is incorrect")
            error.winerror = 123
            raise error
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", as_windows)
    assert plan(["raw/*.tif"]) == {"raw/a.tif": "a.tif"}


def test_a_link_keeps_its_name(run, raw, tmp_path, noisy):
    write_frame(tmp_path / "elsewhere.tif", noisy)
    (raw / "link.tif").symlink_to(tmp_path / "elsewhere.tif")
    assert plan(["raw"])["raw/link.tif"] == "link.tif"


def test_folders_that_zarr_keeps_are_files(run, noisy, tmp_path, model_path):
    pytest.importorskip("zarr")
    make(tmp_path / "raw", ["deep/a.zspy", "b.hspy"], noisy)
    arguments = ["raw", "-o", "out", "-m", model_path, "--recursive"]
    assert "2 denoised" in run(*arguments).stdout
    assert read_frame("out/deep/a.zspy").pixels.shape == noisy.shape
    left = temporary_of(tmp_path / "out" / "deep" / "a.zspy")
    (left / "data").mkdir(parents=True)
    assert "2 done before" in run(*arguments).stdout
    assert not left.exists()
    assert plan(["raw/deep/a.zspy"]) == {"raw/deep/a.zspy": "a.zspy"}


def test_results_in_a_folder_of_the_inputs_are_no_inputs(run, raw, tmp_path, model_path):
    arguments = ["raw", "-o", "raw/out", "-m", model_path, "--recursive", "--std"]
    run(*arguments)
    assert "3 done before" in run(*arguments).stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--per-frame", "-m", "MODEL"], "leave one out"),
        (["--steps", "3", "-m", "MODEL"], "leave one out"),
        (["--jobs", "2", "--scheduler", "x"], "leave one out"),
        (["-m", "no.onnx"], "does not exist"),
        (["--std", "-M", "1"], "at least 2 draws"),
        (["-M", "0"], "must be 1 to 1024"),
        (["--jobs", "0"], "--jobs"),
    ],
)
def test_bad_usage(run, raw, model_path, tmp_path, arguments, message):
    filled = [str(model_path) if word == "MODEL" else word for word in arguments]
    assert message in run("raw", "-o", "out", *filled, code=2).stderr
    assert not results(tmp_path / "out")


def test_what_is_no_model_is_told_before_the_first_file(run, raw, tmp_path):
    """Each file failed by it, one after another."""
    (tmp_path / "text.onnx").write_text("text")
    told = run("raw", "-o", "out", "-m", "text.onnx", code=2).stderr
    assert told.count("text.onnx is not an ONNX model") == 1
    assert not (tmp_path / "out").exists()


def test_threads_are_shared_fairly(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [threads_each(n) for n in (1, 3, 16, 40)] == [16, 5, 1, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert threads_each(1) == 2


def test_a_batch_that_is_refused_leaves_nothing_behind(tmp_path, model_path):
    raw, empty = tmp_path / "raw", tmp_path / "empty"
    for folder in (raw, empty):
        folder.mkdir()
    np.save(raw / "a.npy", np.ones((64, 64), np.uint16))
    for inputs, out, message in (
        (raw, raw, "is an input"),
        (empty, tmp_path / "new", "no frame"),
    ):
        result = CliRunner().invoke(
            main, ["batch", str(inputs), "-o", str(out), "-m", str(model_path)]
        )
        assert result.exit_code == 2
        assert message in result.stderr
    assert [path.name for path in raw.iterdir()] == ["a.npy"]
    assert not (tmp_path / "new").exists()


def test_causes_that_go_in_circles_come_to_an_end():
    first, second = FileFormatError("one"), ValueError("other")
    first.__cause__, second.__cause__ = second, first
    assert not work_module._is_of_the_system(first)
    second.__cause__ = OSError(errno.EIO, "the share is away")
    assert work_module._is_of_the_system(first)


@pytest.mark.parametrize(
    "error",
    [
        MissingExtraError("reading SER", "ncempy", "formats"),
        NotChosenError("x.mrc holds 3 frames", "Choose one"),
        OutOfMemoryError("too little memory"),
    ],
)
def test_errors_come_out_of_another_process(error):
    """One that does not leaves a `multiprocessing.Pool` waiting for ever."""
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
