"""The sub-sampler: its definition, and that the compiled kernels equal it bit for bit."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from n2sr_deploy import kernels as loading
from n2sr_deploy import reference
from n2sr_deploy.errors import FrameError, SettingError
from n2sr_deploy.pattern import SamplingPattern, Window
from n2sr_deploy.sampling import PIXEL_TYPES, draw, held_out, merge
from tests.conftest import random_pixels

SAME_KERNELS = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
PATTERNS = [
    SamplingPattern.named("cell"),
    SamplingPattern.named("row"),
    SamplingPattern.named("column"),
    SamplingPattern.named("cell", 3),
    SamplingPattern.named("cell", 4),
    SamplingPattern.named("cell", (2, 3)),
    SamplingPattern.named("cell", (4, 1)),
    SamplingPattern.named("row", 3),
    SamplingPattern.named("column", 4),
]
patterns = st.sampled_from(PATTERNS)
shapes = st.tuples(st.integers(5, 40), st.integers(5, 60))
seeds = st.integers(0, 2**64 - 1)


def turned_back(subsampled, first_sample=0):
    return [
        image[reference.ORIENTATIONS[(first_sample + m) % 4]] for m, image in enumerate(subsampled)
    ]


def test_philox_gives_the_known_answers_of_random123():
    zeros = reference.philox4x32_10(np.zeros(4, np.uint64), 0)
    assert [hex(word) for word in zeros] == ["0x6627e8d5", "0xe169c58d", "0xbc57ac4c", "0x9b00dbd8"]
    ones = reference.philox4x32_10(np.full(4, 2**32 - 1, np.uint64), 2**64 - 1)
    assert [hex(word) for word in ones] == ["0x408f276d", "0x41c83b0e", "0xa20bc7c6", "0x6d5451fd"]
    counter = np.array([0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], np.uint64)
    pi = reference.philox4x32_10(counter, 0x299F31D0A4093822)
    assert [hex(word) for word in pi] == ["0xd16cfe09", "0x94fdcceb", "0x5001e420", "0x24126ea1"]


@SAME_KERNELS
@given(pattern=patterns, shape=shapes, seed=seeds, frame_index=seeds)
def test_a_group_of_draws_keeps_every_pixel_exactly_once(
    kernels, pattern, shape, seed, frame_index
):
    rows, columns = (n // s * s for n, s in zip(shape, pattern.stride, strict=True))
    frame = np.arange(rows * columns, dtype=np.float64).reshape(rows, columns)
    n = pattern.group_size
    if not frame.size:
        return
    for first in (0, n, 3 * n):
        group = draw(frame, pattern, n, seed=seed, frame_index=frame_index, first_sample=first)
        assert np.array_equal(np.sort(group, axis=None), frame.ravel())


@SAME_KERNELS
@given(pattern=patterns, shape=shapes, seed=seeds, sample=st.integers(0, 40))
def test_kept_and_held_out_pixels_make_up_the_frame(kernels, pattern, shape, seed, sample):
    rows, columns = (n // s * s for n, s in zip(shape, pattern.stride, strict=True))
    frame = np.arange(rows * columns, dtype=np.float64).reshape(rows, columns)
    if not frame.size:
        return
    kept = draw(frame, pattern, 1, seed=seed, first_sample=sample)[0]
    mask = held_out(pattern, frame.shape, sample=sample, seed=seed)
    assert np.array_equal(np.sort(kept, axis=None), frame[~mask])
    kept_in_cells = (~mask).reshape(
        rows // pattern.stride_y, pattern.stride_y, columns // pattern.stride_x, pattern.stride_x
    )
    assert (kept_in_cells.sum(axis=(1, 3)) == 1).all()
    if pattern.shared == "row":
        assert (mask.all(axis=1) | (~mask).all(axis=1)).all()
    if pattern.shared == "column":
        assert (mask.all(axis=0) | (~mask).all(axis=0)).all()


@SAME_KERNELS
@given(
    pattern=patterns,
    shape=st.tuples(st.integers(5, 20), st.integers(200, 700)),
    dtype=st.sampled_from(PIXEL_TYPES),
    seed=seeds,
    frame_index=seeds,
    first_sample=st.integers(0, 30),
    n_samples=st.integers(1, 9),
    n_threads=st.integers(0, 5),
)
def test_compiled_draw_equals_the_definition_bit_for_bit(
    compiled, pattern, shape, dtype, seed, frame_index, first_sample, n_samples, n_threads
):
    frame = random_pixels(shape, dtype, seed % 1000)
    mean, scale = float(frame.mean(dtype=np.float64)), float(frame.std(dtype=np.float64)) + 1
    found = draw(
        frame,
        pattern,
        n_samples,
        seed=seed,
        frame_index=frame_index,
        first_sample=first_sample,
        mean=mean,
        scale=scale,
        n_threads=n_threads,
    )
    expected = np.empty_like(found)
    window = Window(0, 0, *pattern.cells(shape))
    reference.draw(frame, pattern, window, first_sample, mean, scale, seed, frame_index, expected)
    assert np.array_equal(found, expected)


@SAME_KERNELS
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 2500)),
    n_samples=st.integers(1, 9),
    first_sample=st.integers(0, 7),
    scale=st.floats(1e-3, 1e6),
    offset=st.floats(-1e6, 1e6),
    n_threads=st.integers(0, 5),
    data=st.data(),
)
def test_compiled_merge_equals_the_definition_bit_for_bit(
    compiled, shape, n_samples, first_sample, scale, offset, n_threads, data
):
    outputs = np.random.default_rng(1).normal(size=(n_samples, *shape)).astype(np.float32)
    top, left = (data.draw(st.integers(0, size - 1)) for size in shape)
    wanted = shape[0] - top, shape[1] - left
    results = {}
    for name, module in (("found", compiled), ("expected", reference)):
        whole = np.full((2, shape[0] + 2, shape[1] + 3), np.nan, np.float32)
        mean, std = whole[:, 1 : 1 + wanted[0], 2 : 2 + wanted[1]]  # rows are not adjacent
        module.merge(outputs, first_sample, top, left, offset, scale, mean, std, n_threads)
        assert np.isnan(whole).sum() == whole.size - 2 * mean.size, "wrote outside"
        results[name] = mean.copy(), std.copy()
    assert np.array_equal(results["found"][0], results["expected"][0])
    assert np.array_equal(results["found"][1], results["expected"][1])


def test_large_results_which_go_past_the_caches_are_the_same(compiled):
    """Beyond 16 MiB the kernels write with streaming stores; odd sizes make odd addresses."""
    frame = random_pixels((2051, 2053), "uint16")
    pattern = SamplingPattern.named("cell")
    found = draw(frame, pattern, 4, seed=1, mean=30_000, scale=9_000)
    expected = np.empty_like(found)
    window = Window(0, 0, *pattern.cells((2051, 2053)))
    reference.draw(frame, pattern, window, 0, 30_000.0, 9_000.0, 1, 0, expected)
    assert found.nbytes > 2**24
    assert np.array_equal(found, expected)
    outputs = random_pixels((3, 2051, 2053), "float32")
    results = np.empty((2, 2, 2051, 2053), np.float32)
    assert results[0, 0].nbytes > 2**24
    for module, (mean, std) in zip((compiled, reference), results, strict=True):
        module.merge(outputs, 1, 0, 0, 5.0, 2.0, mean, std, 0)
    assert np.array_equal(results[0], results[1])


@SAME_KERNELS
@given(pattern=patterns, sample=st.integers(0, 40), seed=seeds, n_threads=st.integers(0, 5))
def test_compiled_kept_places_equal_the_definition(compiled, pattern, sample, seed, n_threads):
    window = Window(3, 70, 5, 300)
    found = compiled.kept(pattern, window, sample, seed, 7, n_threads)
    assert np.array_equal(found, reference.kept(pattern, window, sample, seed, 7))


@pytest.mark.parametrize("pattern", [SamplingPattern.named("cell", n) for n in (2, 3, 4)], ids=str)
@pytest.mark.parametrize("left", [0, 1, 3, 65_536 - 270])
def test_compiled_places_equal_the_definition_wherever_a_window_begins(compiled, pattern, left):
    """Neighbours share random numbers four by four, which windows cut."""
    window = Window(65_534, left, 2, 270)
    found = compiled.kept(pattern, window, 2, 5, 7, 1)
    assert np.array_equal(found, reference.kept(pattern, window, 2, 5, 7))


def test_the_kernels_in_use_are_told(compiled, monkeypatch):
    assert "compiled" in loading.describe_kernels()
    found = loading.Loaded(reference, "no libgomp", False)
    monkeypatch.setattr(loading, "loaded", lambda: found)
    assert loading.describe_kernels().endswith("cannot be loaded: no libgomp")


@SAME_KERNELS
@given(pattern=patterns, seed=seeds, data=st.data())
def test_a_draw_depends_only_on_its_own_number(kernels, pattern, seed, data):
    frame = random_pixels((23, 31), "uint16")
    many = draw(frame, pattern, 20, seed=seed)
    first, n = data.draw(st.integers(0, 19)), data.draw(st.integers(1, 6))
    some = draw(frame, pattern, n, seed=seed, first_sample=first)
    assert np.array_equal(many[first : first + n], some[: 20 - first])


@SAME_KERNELS
@given(pattern=patterns, seed=seeds, data=st.data())
def test_a_window_draws_what_the_whole_frame_draws(kernels, pattern, seed, data):
    frame = random_pixels((37, 41), "int16")
    rows, columns = pattern.cells(frame.shape)
    whole = turned_back(draw(frame, pattern, 5, seed=seed))
    top, left = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))
    window = Window(
        top,
        left,
        data.draw(st.integers(1, rows - top)),
        data.draw(st.integers(1, columns - left)),
    )
    part = turned_back(draw(frame, pattern, 5, seed=seed, window=window))
    for of_whole, of_part in zip(whole, part, strict=True):
        assert np.array_equal(
            of_whole[top : top + window.height, left : left + window.width], of_part
        )


def test_draws_are_turned_as_defined_and_merge_turns_them_back(kernels):
    pattern = SamplingPattern.named("cell")
    frame = np.arange(24 * 36, dtype=np.float32).reshape(24, 36)
    subsampled = draw(frame, pattern, 4, seed=5)
    rows_grow = [image[-1].mean() > image[0].mean() for image in subsampled]
    columns_grow = [image[:, -1].mean() > image[:, 0].mean() for image in subsampled]
    assert rows_grow == [True, False, True, False]
    assert columns_grow == [True, False, False, True]
    mean, std = np.empty((2, 12, 18), np.float32)
    merge(subsampled, mean=mean, std=std)
    assert np.allclose(mean, frame.reshape(12, 2, 18, 2).mean(axis=(1, 3)))


def test_pixels_beyond_the_frame_are_its_mirror_image(kernels):
    frame = random_pixels((11, 13), "float32")
    padded = np.pad(frame, ((0, 5), (0, 7)), mode="reflect")
    pattern = SamplingPattern.named("cell")
    window = Window(0, 0, 8, 10)
    assert np.array_equal(
        draw(frame, pattern, 4, seed=3, window=window), draw(padded, pattern, 4, seed=3)
    )


def test_merge_is_mean_and_sample_standard_deviation_in_counts(kernels):
    outputs = np.random.default_rng(0).normal(size=(4, 6, 10)).astype(np.float32)
    mean, std = np.empty((2, 6, 10), np.float32)
    merge(outputs, mean=mean, std=std, offset=100, scale=20)
    back = np.stack(turned_back(outputs)).astype(np.float64) * 20 + 100
    assert np.allclose(mean, back.mean(axis=0), rtol=1e-5)
    assert np.allclose(std, back.std(axis=0, ddof=1), rtol=1e-4)
    merge(outputs[:1], mean=mean, std=std)
    assert (std == 0).all()


def test_every_pixel_of_a_cell_is_kept_equally_often(kernels):
    pattern = SamplingPattern.named("cell", 3)
    window = Window(0, 0, 300, 300)
    counts = np.bincount(kernels.kept(pattern, window, 2, 11, 0, 0).ravel(), minlength=9)
    expected = 90_000 / 9
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()


def test_seed_frame_and_group_all_change_the_draw(kernels):
    pattern = SamplingPattern.named("cell")
    window = Window(0, 0, 40, 40)
    base = kernels.kept(pattern, window, 0, 1, 1, 0)
    for other in ((4, 1, 1), (0, 2, 1), (0, 1, 2), (0, 1 + 2**32, 1), (0, 1, 1 + 2**32)):
        assert 0.1 < np.mean(base == kernels.kept(pattern, window, *other, 0)) < 0.4


def test_rows_that_share_their_choice_may_be_of_any_length(kernels):
    frame = np.zeros((2, 2**16 + 10), np.uint8)
    assert draw(frame, SamplingPattern.named("row"), 1).shape == (1, 1, 2**16 + 10)


def test_the_frame_is_never_written_to(kernels):
    frame = random_pixels((20, 20), "uint16")
    frame.setflags(write=False)
    draw(frame, SamplingPattern.named("cell"), 4, mean=5, scale=2)


def test_numbers_of_numpy_draw_what_pythons_do(kernels):
    """Without compiled kernels they overflowed."""
    frame, pattern = random_pixels((20, 20), "uint16"), SamplingPattern.named("cell")
    wanted = draw(frame, pattern, 2, seed=5, frame_index=3)
    found = draw(frame, pattern, 2, seed=np.int32(5), frame_index=np.uint8(3))
    assert np.array_equal(found, wanted)
    mask = held_out(pattern, (20, 20), seed=np.int32(5), frame_index=np.uint8(3))
    assert np.array_equal(mask, held_out(pattern, (20, 20), seed=5, frame_index=3))


def test_a_frame_with_strides_draws_what_its_copy_draws(kernels):
    wide = random_pixels((40, 60), "uint16")
    pattern = SamplingPattern.named("cell")
    for view in (wide[3:25, 7:47], wide.T, wide[::2, ::3], wide[::-1, ::-1]):
        assert np.array_equal(draw(view, pattern, 4), draw(view.copy(), pattern, 4))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda f, p: draw(f[None], p, 1), FrameError, "takes one frame"),
        (lambda f, p: draw(f[:0], p, 1), FrameError, "takes one frame"),
        (lambda f, p: draw(f.astype(np.complex64), p, 1), FrameError, "convert it first"),
        (lambda f, p: draw(f, p, 0), SettingError, "at least one draw"),
        (lambda f, p: draw(f, p, 1, seed=-1), SettingError, "seed is -1"),
        (lambda f, p: draw(f, p, 1, frame_index=2**64), SettingError, "frame_index"),
        (lambda f, p: draw(f, p, 1, scale=0), SettingError, "scale is 0"),
        (lambda f, p: draw(f, p, 1, scale=np.nan), SettingError, "scale is nan"),
        (lambda f, p: draw(f, p, 1, first_sample=-1), SettingError, "out of range"),
        (lambda f, p: draw(f, p, 1, window=Window(0, 0, 21, 5)), FrameError, "too far past"),
        (lambda f, p: draw(f, p, 1, window=Window(-1, 0, 5, 5)), SettingError, "begins before"),
        (lambda f, p: draw(f, p, 1, window=Window(2**16, 0, 5, 5)), FrameError, "in parts"),
        (lambda f, p: draw(f, p, 1, out=np.empty((1, 3, 3), np.float32)), SettingError, "out is"),
        (lambda f, p: held_out(p, f.shape, sample=-1), SettingError, "out of range"),
        (lambda f, p: held_out(p, (20, 21)), SettingError, "multiple of the stride"),
        (lambda f, p: held_out(p, (2, 2**17 + 2)), FrameError, "in parts"),
        (lambda f, p: draw(f, p, 1, seed=1.5), SettingError, "must be an integer"),
        (
            lambda f, p: draw(f, p, 1, out=np.broadcast_to(np.float32(0), (1, 10, 10))),
            SettingError,
            "writable",
        ),
        (lambda f, p: SamplingPattern.named("row", (2, 4)), SettingError, "give one number"),
        (lambda f, p: SamplingPattern.named("row", (1, 2)), SettingError, "give one number"),
        (lambda f, p: SamplingPattern.named("column", (2, 1)), SettingError, "give one number"),
        (lambda f, p: merge(f, mean=f), SettingError, "outputs is"),
        (
            lambda f, p: merge(np.zeros((2, 4, 4), np.float32), mean=np.zeros((5, 4), np.float32)),
            SettingError,
            "reach past",
        ),
        (
            lambda f, p: merge(np.zeros((2, 4, 4), np.float32), mean=np.zeros((4, 4))),
            SettingError,
            "must be writable float32",
        ),
        (lambda f, p: SamplingPattern(stride_y=1, stride_x=1), SettingError, "holds out no pixel"),
        (lambda f, p: SamplingPattern(stride_y=5, stride_x=2), SettingError, "1 to 4"),
        (
            lambda f, p: SamplingPattern(stride_y=2, stride_x=2, shared="row"),
            SettingError,
            "needs stride 1 along it",
        ),
        (lambda f, p: SamplingPattern.named("diagonal"), SettingError, "must be one of"),
    ],
)
def test_bad_input_is_refused_with_a_sentence(call, error, message):
    frame = random_pixels((20, 20), "uint16")
    with pytest.raises(error, match=message):
        call(frame, SamplingPattern.named("cell"))


@pytest.mark.parametrize("name", ["cell", "row", "column"])
@pytest.mark.parametrize("stride", [2, 3, 4])
def test_a_pattern_is_named_by_one_stride_or_by_the_strides_that_it_tells(name, stride):
    pattern = SamplingPattern.named(name, stride)
    assert pattern == SamplingPattern.named(name, (stride, stride))
    assert pattern == SamplingPattern.named(name, pattern.stride)


DENOISING = ("--version",)  # which tells of the kernels
IN_ONE_GO = ("denoise", "noisy.npy", "-o", "d.npy", "--steps=1", "--device=cpu")
TRAINING = ("train", "noisy.npy", "-o", "a.safetensors", "--steps=1", "--device=cpu")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only libgomp tells its settings")
@pytest.mark.parametrize(
    ("users", "command", "spins"),
    [
        ({}, DENOISING, "0"),
        ({"GOMP_SPINCOUNT": "30"}, DENOISING, "30"),
        ({}, TRAINING, "2000"),
        ({"GOMP_SPINCOUNT": "30"}, TRAINING, "30"),
        ({"OMP_WAIT_POLICY": "passive"}, TRAINING, "0"),
        ({}, IN_ONE_GO, "2000"),
    ],
)
def test_threads_sleep_between_frames_and_spin_briefly_between_the_steps_of_a_training(
    users, command, spins, tmp_path
):
    np.save(tmp_path / "noisy.npy", random_pixels((64, 64), "uint16"))
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("OMP", "GOMP"))
    }
    done = subprocess.run(
        [sys.executable, "-P", "-c", "from n2sr_deploy.cli import main; main()", *command],
        env={**kept, "OMP_DISPLAY_ENV": "verbose", **users},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    found = re.findall("GOMP_SPINCOUNT = '(.*)'", done.stderr)
    if not found:
        pytest.skip("kernels without OpenMP, or with one that is silent")
    assert found[0] == spins


def test_kernels_are_loaded_once_by_however_many_threads():
    code = """
import os, threading
from n2sr_deploy import kernels
was = {**os.environ}
begin, found = threading.Barrier(8), []
def load():
    begin.wait()
    found.append(kernels.kernels())
threads = [threading.Thread(target=load) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert len(found) == 8 and len(set(map(id, found))) == 1
assert was == os.environ
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="elsewhere each has its own OpenMP"
)
@pytest.mark.parametrize(
    ("first", "users", "sleeps"),
    [("", {}, True), ("import torch; ", {}, False), ("", {"OMP_WAIT_POLICY": "active"}, False)],
)
def test_a_training_after_denoising_knows_that_its_threads_sleep(compiled, first, users, sleeps):
    if not compiled.openmp_threads():
        pytest.skip("kernels without OpenMP")
    code = (
        f"{first}from n2sr_deploy import kernels; assert not kernels.pytorch_sleeps(); "
        f"kernels.kernels(); assert kernels.pytorch_sleeps() is {sleeps}"
    )
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("OMP", "GOMP"))
    }
    environment = {**kept, "OMP_NUM_THREADS": "2", **users}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5000), (37, 64), (200, 4096)])
@pytest.mark.parametrize("n_threads", [0, 1, 3])
def test_sums_are_exact(kernels, dtype, shape, n_threads):
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    rng = np.random.default_rng(0)
    for pixels in (
        rng.integers(low, high, shape, dtype, endpoint=True),
        np.full(shape, high, dtype),
        np.full(shape, low, dtype),
    ):
        values = pixels.astype(object)
        assert kernels.sums(pixels, n_threads) == (values.sum(), (values**2).sum())


AFTER_A_FORK = """
import os, signal
import numpy as np
from n2sr_deploy import Denoiser, measure_noise

frame = np.random.default_rng(0).poisson(30, (64, 64)).astype(np.uint16)
with Denoiser.open({path!r}) as fastest:
    fastest.denoise(frame, 2)
denoiser = Denoiser.open({path!r}, backend="ort")
before = denoiser.denoise(frame, 2).mean
if child := os.fork():
    assert os.waitpid(child, 0)[1] == 0, "it failed or hung"
else:
    signal.alarm(30)
    assert measure_noise(frame).std > 0
    for backend in "ort", "auto":
        with Denoiser.open({path!r}, backend=backend) as other:
            assert np.array_equal(other.denoise(frame, 2).mean, before)
    os._exit(0)
"""


TRAINING_AFTER_A_FORK = """
import os, signal
import numpy as np
from n2sr_deploy import measure_noise
from n2sr_train import LearnOptions, export_model, learn_checkpoint

frame = np.random.default_rng(0).poisson(30, (64, 64)).astype(np.uint16)
before = {before}
if child := os.fork():
    assert os.waitpid(child, 0)[1] == 0, "it failed or hung"
else:
    signal.alarm(60)
    options = LearnOptions(preset="fast", steps=2, device="cpu")
    checkpoint = learn_checkpoint(frame, options)
    assert checkpoint.summary["steps"] == 2
    export_model(checkpoint)
    os._exit(0)
"""
# Names that were imported before the fork do not import PyTorch in it.
AFTER_IMPORTS = """
import os, signal
from n2sr_deploy import measure_noise
from n2sr_train import Checkpoint, export_model, train
import numpy as np

frame = np.random.default_rng(0).poisson(30, (64, 64)).astype(np.uint16)
checkpoint = Checkpoint.open({path!r})
measure_noise(frame)
for work in (lambda: export_model(checkpoint), lambda: train(frame, {config})):
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == 0, "it failed or hung"
    else:
        signal.alarm(60)
        work()
        os._exit(0)
"""
TWO_STEPS = "__import__('dataclasses').replace(checkpoint.config, steps=2, seconds=None)"
BY_PYTORCH = "__import__('torch').ones(600, 600).exp().sum()"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system forks no processes")
@pytest.mark.parametrize(
    "what",
    ["denoises", "learns after a measurement", "learns after PyTorch", "learns by old names"],
)
def test_a_forked_process_works(model_path, checkpoint_path, what):
    """It waited for ever for OpenMP's and OpenVINO's threads, which a fork has not."""
    code = {
        "denoises": AFTER_A_FORK.format(path=str(model_path)),
        "learns after a measurement": TRAINING_AFTER_A_FORK.format(before="measure_noise(frame)"),
        "learns after PyTorch": TRAINING_AFTER_A_FORK.format(before=BY_PYTORCH),
        "learns by old names": AFTER_IMPORTS.format(path=str(checkpoint_path), config=TWO_STEPS),
    }[what]
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
