"""Dask: lazy arrays give what a stack gives, and a batch survives the loss of its workers."""

from __future__ import annotations

import importlib
import json
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from n2sr_deploy import Denoiser, Frame, write_frame
from n2sr_deploy.batch.manifest import NAME
from n2sr_deploy.cli import main
from n2sr_deploy.defects import repair
from n2sr_deploy.errors import FrameError, InputFileError, SettingError
from n2sr_deploy.formats import open_frames, write_frames
from n2sr_deploy.formats.base import Axis

psutil = pytest.importorskip("psutil")
da = pytest.importorskip("dask.array")
distributed = pytest.importorskip("distributed")


@pytest.fixture
def frames(noisy):
    """(2, 3, 96, 128) uint16."""
    rng = np.random.default_rng(0)
    return rng.poisson(noisy.pixels * 400, (2, 3, *noisy.shape)).astype(np.uint16)


@pytest.fixture
def denoise():
    return importlib.import_module("n2sr_deploy.dask").denoise


# ---- arrays ---------------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", [(1, 1, 96, 128), (2, 2, 50, 40), (2, 3, 96, 128)])
def test_every_frame_is_as_in_a_stack_whatever_the_chunks(denoise, frames, model, chunks):
    lazy = denoise(da.from_array(frames, chunks=chunks), model, seed=3)
    assert (lazy.shape, lazy.dtype) == (frames.shape, np.float32)
    assert lazy.chunks[-2:] == ((96,), (128,))
    with ThreadPoolExecutor(2) as pool:
        result = lazy.compute(scheduler="threads", pool=pool)
    with Denoiser(model) as denoiser:
        for index, pixels in enumerate(frames.reshape(-1, 96, 128)):
            mended = repair(Frame(pixels=pixels, index=index)).frame
            expected = denoiser.denoise(mended, seed=3).mean
            assert np.array_equal(result.reshape(-1, 96, 128)[index], expected)


def test_rows_that_were_not_scanned_stay_blank_as_in_a_stack(denoise, frames, model_path, tmp_path):
    stack = frames[0].copy()
    stack[0] = 5  # dropped
    stack[1, 70:] = 0
    write_frames(
        tmp_path / "a.tif",
        [Frame(pixels=pixels) for pixels in stack],
        (Axis(name="time", size=3),),
    )
    lazy = denoise(da.from_array(stack), model_path, backend="ort")
    result = lazy.compute(scheduler="synchronous")
    assert (result[0] == 5).all()
    assert not result[1, 70:].any()
    arguments = ["denoise", str(tmp_path / "a.tif"), "--stack", "-m", str(model_path)]
    arguments += ["-o", str(tmp_path / "b.tif"), "--backend", "ort"]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    with open_frames(tmp_path / "b.tif") as opened:
        for index in range(3):
            assert np.array_equal(result[index], opened.read(index).pixels)


def test_a_part_is_computed_alone(denoise, frames, model, model_path):
    lazy = denoise(da.from_array(frames, chunks=(1, 1, -1, -1)), model_path)
    whole = lazy.compute(scheduler="synchronous")
    assert np.array_equal(lazy[1, 2].compute(scheduler="synchronous"), whole[1, 2])
    one = denoise(da.from_array(frames[0, 0], chunks=(-1, -1)), model)
    assert np.array_equal(one.compute(scheduler="synchronous"), whole[0, 0])


def test_nothing_is_done_before_it_is_asked_for(denoise, noisy, model):
    def read(block_id):
        raise AssertionError("too early")

    lazy = da.map_blocks(read, chunks=((1,) * 4, 96, 128), dtype=np.uint16, meta=np.empty(0))
    assert denoise(lazy, model).shape == (4, 96, 128)


def test_what_is_refused(denoise, frames, model, tmp_path):
    array = da.from_array(frames)
    bad = frames.astype(np.float32)
    bad[1, 2] = np.nan
    with pytest.raises(FrameError, match="the array, frame 5 of 6: frame has nothing but NaN"):
        denoise(da.from_array(bad, chunks=(1, 1, -1, -1)), model).compute(scheduler="sync")
    with pytest.raises(FrameError, match="wrap it with dask"):
        denoise(frames, model)
    with pytest.raises(FrameError, match="takes frames"):
        denoise(array[0, 0, 0], model)
    with pytest.raises(FrameError, match="real numbers"):
        denoise(array.astype(complex), model)
    with pytest.raises(FrameError, match="at least"):
        denoise(array[..., :4, :4], model)
    with pytest.raises(SettingError, match="did you mean 'ort'"):
        denoise(array, model, backend="orts")
    with pytest.raises(SettingError, match="n_samples"):
        denoise(array, model, n_samples=0)
    with pytest.raises(InputFileError):
        denoise(array, tmp_path / "none.onnx")


# ---- batches --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster():
    """Two worker processes that are started anew when they are lost."""
    import dask

    processes = set(psutil.Process().children(recursive=True))
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address=None,
            worker_dashboard_address=None,
            silence_logs=50,
        ) as cluster,
    ):
        yield cluster
    left = set(psutil.Process().children(recursive=True)) - processes
    left = {process for process in left if "resource_tracker" not in " ".join(process.cmdline())}
    assert not psutil.wait_procs(left, timeout=20)[1]


@pytest.fixture
def raw(tmp_path, noisy):
    rng = np.random.default_rng(0)
    (tmp_path / "raw").mkdir()
    for index in range(8):
        pixels = rng.poisson(noisy.pixels * 400).astype(np.uint16)
        write_frame(tmp_path / "raw" / f"{index}.tif", replace(noisy, pixels=pixels))
    return tmp_path / "raw"


def run(*arguments, code=0):
    result = CliRunner().invoke(main, ["batch", *(str(a) for a in arguments)])
    assert result.exit_code == code, result.output
    return result


def results(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != NAME}


def test_the_workers_write_what_this_machine_would(cluster, raw, tmp_path, model_path):
    run(raw, "-o", tmp_path / "here", "-m", model_path, "--std")
    (raw / "bad.npy").write_bytes(b"no frame")
    arguments = raw, "-m", model_path, "--std", "--scheduler", cluster.scheduler_address
    result = run(*arguments, "-o", tmp_path / "out", code=1)
    assert "9 files to denoise, 2 Dask workers" in result.stderr
    assert "8 denoised" in result.stdout
    assert "bad.npy is no whole NumPy array" in result.stdout
    assert results(tmp_path / "out") == results(tmp_path / "here")
    assert "8 done before" in run(*arguments, "-o", tmp_path / "out", code=1).stdout


def test_a_lost_workers_files_are_done_by_another(cluster, raw, tmp_path, model_path):
    run(raw, "-o", tmp_path / "here", "-m", model_path, "-M", 64)
    manifest = tmp_path / "out" / NAME

    def kill_one():
        while not (manifest.exists() and b'"done"' in manifest.read_bytes()):
            time.sleep(0.01)
        with distributed.Client(cluster.scheduler_address, set_as_default=False) as client:
            pids = client.run(os.getpid)
        os.kill(next(iter(pids.values())), signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    result = run(
        *(raw, "-m", model_path, "-M", 64, "-o", tmp_path / "out"),
        *("--scheduler", cluster.scheduler_address),
    )
    killer.join()
    assert "8 denoised" in result.stdout
    assert results(tmp_path / "out") == results(tmp_path / "here")
    cluster.wait_for_workers(2)


def test_a_file_that_ends_its_workers_fails_alone(cluster, raw, tmp_path, model_path, monkeypatch):
    from n2sr_deploy.batch import cluster as ours

    honest = ours._worked

    def deadly(values, plugin):
        if values["name"] == "3.tif":
            os.kill(os.getpid(), signal.SIGKILL)
        return honest(values, plugin)

    monkeypatch.setattr(ours, "_worked", deadly)
    result = run(
        *(raw, "-m", model_path, "-o", tmp_path / "out"),
        *("--scheduler", cluster.scheduler_address),
        code=1,
    )
    assert "7 denoised" in result.stdout
    assert "3.tif: every worker that did it was lost" in result.stdout
    lines = (tmp_path / "out" / NAME).read_text().splitlines()
    last = {e["output"]: e for e in map(json.loads, lines)}
    assert {name for name, e in last.items() if e["outcome"] == "failed"} == {"3.tif"}


def test_a_scheduler_that_is_not_there_is_told(raw, tmp_path, model_path, monkeypatch):
    monkeypatch.setattr("n2sr_deploy.batch.cluster._ANSWERS_S", 0.5)
    result = run(
        *(raw, "-m", model_path, "-o", tmp_path / "out"),
        *("--scheduler", "tcp://127.0.0.1:9"),
        code=2,
    )
    assert "no Dask scheduler answers at 'tcp://127.0.0.1:9'" in result.stderr
