"""A stack is denoised frame by frame: the same frames as alone, in flat memory, axes kept."""

from __future__ import annotations

import re
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks.simulation import unit_noise
from n2sr_deploy import Frame, cores, read_frame
from n2sr_deploy import denoise_file as module
from n2sr_deploy.cli import main
from n2sr_deploy.denoise_file import denoise_file
from n2sr_deploy.denoise_options import DenoiseOptions
from n2sr_deploy.formats import open_frames, write_frames
from n2sr_deploy.formats.base import Axis
from n2sr_deploy.learning import Learned, LearnOptions, TrainingStatus
from n2sr_deploy.mending import mend
from n2sr_deploy.noise import measure_noise
from n2sr_deploy.opening import Denoisers
from n2sr_deploy.pattern import SamplingPattern
from n2sr_deploy.provenance import noise_of, tell_what_is_lost

QUICK = ["--steps", "2", "--device", "cpu"]
TIME = Axis(name="time", size=3, scale=0.5, offset=2.0, unit="s")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a command in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, code=0):
        result = CliRunner().invoke(main, [str(a) for a in arguments])
        assert result.exit_code == code, result.output
        return result

    return run


def series(noisy, n_frames=3, dtype=np.uint16):
    """Frames of one area, brighter each time, the second with a hot pixel."""
    rng = np.random.default_rng(0)
    for index in range(n_frames):
        pixels = rng.poisson(noisy.pixels * 400 * (index + 1)).astype(dtype)
        if index == 1:
            pixels[20, 30] = np.iinfo(dtype).max if np.dtype(dtype).kind == "u" else 1e5
        yield replace(noisy, pixels=pixels)


@pytest.fixture
def stack(noisy, tmp_path):
    write_frames(tmp_path / "stack.tif", series(noisy), (TIME,))
    return tmp_path / "stack.tif"


@pytest.mark.parametrize("extension", ["tif", "mrc"])
def test_axes_calibration_and_history_are_kept(run, stack, model_path, extension):
    out, std = f"out.{extension}", f"std.{extension}"
    result = run("denoise", stack, "-m", model_path, "--stack", "-o", out, "--std", std)
    assert "3 frames denoised, mean of 4 draws" in result.stdout
    assert "mended: hot pixels or offsets of lines in 1 of 3 frames" in result.stderr
    for name, what in ((out, "mean"), (std, "standard error")):
        with open_frames(name) as opened:
            assert opened.axes == (TIME,)
            frames = list(opened)
        assert frames[0].pixels.dtype == np.float32
        assert frames[0].pixel_size == pytest.approx((0.02, 0.03))
        assert f": {what} of 4 draws, seed 0, frames 0 to 2" in frames[0].history[-1]
        assert "hot pixels replaced" in frames[0].history[-2]
    assert all((frame.pixels > 0).all() for frame in frames)


def test_a_frame_is_the_same_alone_and_in_its_stack(run, stack, model_path):
    run("denoise", stack, "-m", model_path, "--stack", "-o", "out.tif", "--std", "std.tif")
    for index in range(3):
        run(
            *("denoise", stack, "-m", model_path, "--frame", index, "--overwrite"),
            *("-o", "one.tif", "--std", "one-std.tif"),
        )
        for whole, one in (("out.tif", "one.tif"), ("std.tif", "one-std.tif")):
            assert np.array_equal(read_frame(whole, index).pixels, read_frame(one).pixels)


def test_the_same_seed_gives_the_same_file(run, stack, tmp_path, model_path):
    for name in ("a.tif", "b.tif"):
        run("denoise", stack, "-m", model_path, "--stack", "--seed", 3, "-o", name)
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()


@pytest.fixture
def learned(model, monkeypatch):
    """The frames that were learned from, in a moment."""
    frames = []

    def learn(frame, options, progress):
        progress(
            TrainingStatus(
                step=2,
                n_steps=2,
                elapsed_s=1.0,
                remaining_s=0.0,
                loss=0.5,
                validation_error=0.5,
                steps_per_s=2.0,
            )
        )
        frames.append(frame.index)
        return Learned(model, "in a moment")

    monkeypatch.setattr(module, "learn", learn)
    return frames


def test_one_network_is_learned_from_the_middle_frame_or_the_one_named(run, stack, learned):
    result = run("denoise", stack, "--stack", "-o", "a.npy")
    assert "learning from frame 1 of 3" in result.stderr
    told = result.stderr
    assert told.index("training, step 2 of 2, done") < told.index("learned: in a moment")
    run("denoise", stack, "--stack", "--frame", 2, "-o", "b.tif")
    assert learned == [1, 2]
    assert read_frame("b.tif", 0).metadata["n2sr"]["learned_from_frame"] == 2
    assert np.load("a.npy").shape == (3, 96, 128)


def test_each_frame_may_learn_its_own_network(run, stack, learned):
    result = run("denoise", stack, "--per-frame", "-o", "out.tif")
    assert result.stderr.count("training, step 2 of 2, done") == 3
    told = re.findall(r"learning from frame \d of 3", result.stderr)
    assert told == [f"learning from frame {n} of 3" for n in range(3)]
    assert learned == [0, 1, 2]
    frame = read_frame("out.tif", 0)
    assert "each frame's own weights" in frame.history[-1]
    assert frame.metadata["n2sr"]["weights_sha256"] is None
    run("denoise", stack, "--frame", 2, "-o", "one.tif")
    assert np.array_equal(read_frame("out.tif", 2).pixels, read_frame("one.tif").pixels)


def test_integers_stay_integers_where_that_is_asked_for(run, stack, model_path):
    run(
        *("denoise", stack, "-m", model_path, "--stack", "--dtype", "same"),
        *("-o", "same.tif", "--std", "std.tif"),
    )
    run("denoise", stack, "-m", model_path, "--stack", "-o", "float.tif")
    same, exact = read_frame("same.tif", 2).pixels, read_frame("float.tif", 2).pixels
    assert same.dtype == np.uint16
    assert np.array_equal(same, np.clip(np.rint(exact), 0, 65535).astype(np.uint16))
    assert read_frame("std.tif", 2).pixels.dtype == np.float32


def test_the_record_tells_what_was_done(run, stack, model, model_path):
    run("denoise", stack, "-m", model_path, "--frame", 1, "-o", "out.tif", "--seed", 5, "-M", 8)
    record = read_frame("out.tif").metadata["n2sr"]
    assert record["weights_sha256"] == model.metadata.weights_sha256
    assert record["noise"]["std"] > 0  # the frame's own
    assert (record["seed"], record["n_samples"], record["preset"]) == (5, 8, "balanced")
    assert record["backend"] in read_frame("out.tif").history[-1]
    assert re.fullmatch(r"\d+\.\d+.*", record["version"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stack", "--frame", "1", "-m", "MODEL"], "leave one of the three out"),
        (["--per-frame", "-m", "MODEL"], "leave one out"),
        (["--per-frame", "--frame", "1"], "leave out --frame"),
        (["--stack", "--frame", "9", *QUICK], "has no frame 9"),
        (["--stack", "--signal", "x", "-m", "MODEL"], "no signals to choose from"),
        (["-m", "MODEL"], "Choose it with --frame 0 to --frame 2, or denoise all with --stack"),
    ],
)
def test_what_cannot_be_is_refused(run, stack, model_path, tmp_path, arguments, message):
    filled = [str(model_path) if word == "MODEL" else word for word in arguments]
    assert message in run("denoise", stack, "-o", "out.tif", *filled, code=2).stderr
    assert list(tmp_path.iterdir()) == [stack]


def test_a_bad_frame_in_a_stack_is_named_and_nothing_is_left(run, noisy, tmp_path, model_path):
    good, bad = noisy.pixels, noisy.pixels.copy()
    bad[3, 4] = np.nan
    np.save("bad.npy", np.stack([good, bad, good]))
    result = run("denoise", "bad.npy", "-m", model_path, "--stack", "-o", "out.tif", code=2)
    assert "bad.npy, frame 1 of 3: frame has 1 NaN or infinite pixel" in result.stderr
    assert list(tmp_path.iterdir()) == [tmp_path / "bad.npy"]


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_frames_that_were_dropped_stay_as_they_are_and_spare_the_others(
    run, noisy, model_path, dtype
):
    """One frame of zeros among thousands, and none could be denoised."""
    frames = [frame.pixels for frame in series(noisy, 3, np.dtype(dtype))]
    blank = np.full_like(frames[0], 7)
    write_frames("all.tif", map(Frame.of, frames), (TIME,))
    write_frames(
        "some.tif", map(Frame.of, [blank, *frames[:2], blank, frames[2]]), (replace(TIME, size=5),)
    )
    with_model = ["-m", model_path, "--stack", "--dtype", "same", "--no-repair"]
    result = run("denoise", "some.tif", *with_model, "-o", "out.tif", "--std", "std.tif")
    told = "2 frames left as read, since every pixel is the same: 0, 3"
    assert result.stderr.count(told) == 1
    with open_frames("out.tif") as opened, open_frames("std.tif") as stds:
        assert opened.axes == (replace(TIME, size=5),)
        results, errors = list(opened), list(stds)
    assert results[0].pixels.dtype == dtype
    assert told in results[0].history
    assert results[0].metadata["n2sr"]["constant_frames"] == [0, 3]
    for index in (0, 3):
        assert np.array_equal(results[index].pixels, blank)
        assert not errors[index].pixels.any()
    for index in (1, 2, 4):
        assert errors[index].pixels.all()
        run(
            "denoise", "some.tif", "--frame", index, *with_model[:2], *with_model[3:], "-o", "1.tif"
        )
        assert np.array_equal(results[index].pixels, read_frame("1.tif").pixels)
        Path("1.tif").unlink()


def test_nothing_is_learned_from_a_frame_that_was_dropped(run, noisy, learned):
    good = noisy.pixels
    np.save("a.npy", np.stack([good, good, good * 0, good * 0, good * 0]))
    run("denoise", "a.npy", "--stack", "-o", "b.npy")
    assert learned == [1]  # the nearest to the middle
    run("denoise", "a.npy", "--stack", "--per-frame", "-o", "c.npy")
    assert learned == [1, 0, 1]
    assert not np.load("c.npy")[2:].any()
    result = run("denoise", "a.npy", "--stack", "--frame", "2", "-o", "d.npy", code=2)
    assert "a.npy, frame 2 of 5: frame is constant" in result.stderr
    np.save("none.npy", np.zeros((3, 96, 128)))
    result = run("denoise", "none.npy", "--stack", "-o", "d.npy", code=2)
    assert "none.npy, frame 0 of 3: frame is constant" in result.stderr


def test_a_frame_that_cannot_be_denoised_is_told_before_anything_is_learned(run, noisy, learned):
    """It was told when it was reached, after minutes of training and denoising."""
    good = noisy.pixels
    np.save("bad.npy", np.stack([good, good, np.full_like(good, np.nan)]))
    for options in (["--stack"], ["--per-frame"]):
        result = run("denoise", "bad.npy", *options, "-o", "out.tif", code=2)
        assert "bad.npy, frame 2 of 3: frame has nothing but NaN" in result.stderr
    assert learned == []


def test_a_damaged_file_is_told_as_such_in_the_middle_of_a_stack(run, stack, model_path):
    """Its error was once taken for one of the output's format."""
    whole = stack.read_bytes()
    with open_frames(stack) as opened:
        assert len(opened) == 3
    stack.write_bytes(whole[: len(whole) * 2 // 3])
    result = run("denoise", stack, "-m", model_path, "--stack", "-o", "out.tif", code=2)
    assert "stack.tif" in result.stderr
    assert "cannot hold" not in result.stderr


@pytest.mark.parametrize("extension", ["tif", "mrc", "npy"])
def test_memory_does_not_grow_with_the_frames(noisy, tmp_path, model_path, extension, monkeypatch):
    # Two threads take more memory when both are busy, which is chance.
    monkeypatch.setattr(cores, "cores_allowed", lambda: 1)
    options = DenoiseOptions(
        model=str(model_path), n_samples=4, stack=True, learn=LearnOptions(repair=False)
    )

    def peak(denoisers, n_frames):
        path = tmp_path / f"{n_frames}.{extension}"
        write_frames(path, series(noisy, n_frames, np.float32), (replace(TIME, size=n_frames),))
        out = tmp_path / f"out-{n_frames}.{extension}"
        std = out.with_stem(f"std-{n_frames}")
        tracemalloc.start()
        denoise_file(path, out, options, denoisers, std=std, overwrite=True)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    with Denoisers() as denoisers:
        peak(denoisers, 2)  # imports and caches are none of the frames'
        few, many = peak(denoisers, 3), peak(denoisers, 15)
    assert many < few + 4 * 4 * noisy.pixels.size  # bytes of four frames


def test_a_kept_denoiser_serves_frames_of_any_size(noisy, tmp_path, model_path):
    options = DenoiseOptions(model=str(model_path))
    other = Frame(pixels=noisy.pixels[:64, :72])
    write_frames(tmp_path / "a.tif", [noisy])
    write_frames(tmp_path / "b.tif", [other])
    with Denoisers() as denoisers:
        for name in "ab":
            denoise_file(tmp_path / f"{name}.tif", tmp_path / f"{name}.npy", options, denoisers)
        again = denoisers.of_file(str(model_path), "auto", (96, 128), None)
        assert denoisers.of_file(str(model_path), "auto", (64, 72), None) is again
    assert np.load(tmp_path / "b.npy").shape == (64, 72)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "int64"])
@pytest.mark.parametrize("extension", ["tif", "npy", "hspy"])
def test_dtype_same_is_the_type_in_the_file(run, model_path, dtype, extension):
    counts = np.random.default_rng(0).poisson(40, (96, 128)).astype(dtype)
    np.save("a.npy", counts)
    run("denoise", "a.npy", "-m", model_path, "-o", f"out.{extension}", "--dtype", "same")
    with open_frames(f"out.{extension}") as opened:
        assert opened.dtype.name == dtype
        assert opened.read().pixels.mean() == pytest.approx(counts.mean(), abs=0.1)


def test_dtype_same_is_refused_where_a_format_has_no_such_pixels(run, model_path):
    np.save("a.npy", np.random.default_rng(0).poisson(40, (96, 128)).astype(np.uint32))
    result = run("denoise", "a.npy", "-m", model_path, "-o", "out.mrc", "--dtype", "same", code=2)
    assert "cannot hold uint32 pixels: MRC has int16, uint16, float32" in result.stderr
    assert not Path("out.mrc").exists()


def test_intensity_that_rounding_loses_is_told(run, model_path):
    np.save("a.npy", np.random.default_rng(0).poisson(0.3, (96, 128)).astype(np.uint16))
    result = run("denoise", "a.npy", "-m", model_path, "-o", "out.tif", "--dtype", "same")
    assert "--dtype same clipped" in result.stderr
    assert "the mean went from 0.3" in result.stderr
    np.save("b.npy", np.random.default_rng(0).poisson(3000, (96, 128)).astype(np.uint16))
    result = run("denoise", "b.npy", "-m", model_path, "-o", "b.tif", "--dtype", "same")
    assert "clipped" not in result.stderr


def test_a_model_for_noise_of_another_kind_is_told(run, model_path):
    rng = np.random.default_rng(0)
    for name, along_rows in (("white", 0.0), ("streaks", 0.5)):
        np.save(f"{name}.npy", (100 + 10 * unit_noise((256, 256), rng, along_rows)).astype("f4"))
    white = run("denoise", "white.npy", "-m", model_path, "-o", "white.tif")
    assert "trained with pattern" not in white.stderr
    streaks = run("denoise", "streaks.npy", "-m", model_path, "-o", "streaks.tif")
    assert re.search(r"neighbours 0\.(4|5)\d along rows and -?0\.0\d along col", streaks.stderr)
    assert "asks for pattern row" in streaks.stderr
    assert "the model was trained with pattern cell" in streaks.stderr
    told = read_frame("streaks.tif").metadata["n2sr"]["noise"]
    assert told["along_rows"][0] == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("with_std", [False, True])
def test_shares_of_frames_are_told_and_never_fewer_than_before(
    stack, model_path, tmp_path, with_std
):
    told = []
    options = DenoiseOptions(model=str(model_path), stack=True, backend="ort")
    std = tmp_path / "std.tif" if with_std else None
    with Denoisers() as denoisers:
        denoise_file(
            stack,
            tmp_path / "out.tif",
            options,
            denoisers,
            std=std,
            on_frame=lambda done, total: told.append((done, total)),
            on_result=lambda result: result.denoiser.denoise(result.mended.noisy),  # as a report
        )
        assert denoisers.of_file(str(model_path), "ort", (96, 128), None).on_share is None
    shares = [done for done, _ in told]
    assert shares == sorted(shares)
    assert {1, 2, 3} <= set(shares)
    assert with_std == (0.5 in shares)
    assert {total for _, total in told} == {3}


def test_a_model_that_loses_signal_is_told(run, model_path, caplog):
    """Fringes came out flat, with twice the noisy frame's error, and nothing was said."""
    fringes = 50 + 15 * np.sin(np.arange(256) / 4)[:, None] * np.ones(256)
    noisy = np.random.default_rng(0).poisson(fringes).astype(np.uint16)
    noise = measure_noise(noisy)
    tell_what_is_lost(noise, noisy, fringes.astype(np.float32))
    assert not caplog.text
    tell_what_is_lost(noise, noisy, np.full(noisy.shape, 50, np.float32))
    assert "has 3.2 times the power of its noise, so signal is lost" in caplog.text
    caplog.clear()
    exact = fringes.astype(np.float32)
    tell_what_is_lost(measure_noise(exact), exact, exact + 1)
    assert not caplog.text

    y, x = np.mgrid[-600:600, -600:600]
    particle = np.where(np.hypot(y, x) < 300, 100.0, 10.0)  # brighter than the whole frame
    counts = np.random.default_rng(1).poisson(particle)
    noise = measure_noise(counts)
    tell_what_is_lost(noise, counts, particle)
    assert not caplog.text
    tell_what_is_lost(noise, counts, np.full(particle.shape, particle.mean()))
    assert "signal is lost" in caplog.text

    np.save("fringes.npy", noisy)
    told = run("denoise", "fringes.npy", "-m", model_path, "-o", "fringes.tif").stderr
    assert told.count("so signal is lost") == 1
    told = run("denoise", "fringes.npy", *QUICK, "-o", "learned.tif").stderr
    assert "signal is lost" not in told
    # Hot pixels that were to be left are no signal, and are not there to be compared.
    told = run("denoise", "fringes.npy", "-m", model_path, "-o", "as_it_is.tif", "--no-repair")
    assert "signal is lost" not in told.stderr


@pytest.mark.parametrize(("stride", "is_told"), [(2, True), (4, False)])
def test_a_model_of_lines_too_near_each_other_is_told(model, caplog, stride, is_told):
    """A model of every second line said nothing of noise that asks for every fourth."""
    pixels = 100 + 10 * unit_noise((256, 256), np.random.default_rng(0), 0.5, 0.45)
    mended = mend(Frame(pixels=pixels.astype(np.float32)), repairs=True)
    pattern = SamplingPattern.named("row", stride)
    noise_of(mended, replace(model.metadata, pattern=pattern))
    told = f"asks for pattern row, stride 4 x 1, but the model was trained with pattern {pattern}"
    assert (told in caplog.text) is is_told


def test_another_magnification_than_the_models_is_told_once(run, noisy, model_path):
    """The model learned from pixels of 0.02 x 0.03 nm."""
    for name, size, unit in (
        ("same.tif", (0.02, 0.03), "nm"),
        ("near.tif", (0.22, 0.33), "angstrom"),
        ("unknown.tif", None, None),
        ("far.tif", (0.04, 0.06), "nm"),
    ):
        write_frames(name, series(replace(noisy, pixel_size=size, unit=unit)), (TIME,))
    told = {
        name: run("denoise", name, "-m", model_path, "--stack", "-o", f"of_{name}").stderr
        for name in ("same.tif", "near.tif", "unknown.tif", "far.tif")
    }
    assert [text.count("at that magnification") for text in told.values()] == [0, 0, 0, 1]
    assert "0.04 x 0.06 nm, but the model was trained on ones of 0.02 x 0.03 nm" in told["far.tif"]


def test_a_frame_that_was_denoised_before_is_told(run, stack, model_path):
    first = run("denoise", stack, "--frame", 0, "-m", model_path, "-o", "once.tif")
    assert "a result of n2sr" not in first.stderr
    assert (
        "denoising it again" in run("denoise", "once.tif", "-m", model_path, "-o", "b.tif").stderr
    )
    learned = run("train", "once.tif", "-o", "c.safetensors", *QUICK)
    assert "no noise left to learn from" in learned.stderr
