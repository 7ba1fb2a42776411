"""Draw, infer, merge: any size, tiles without seams, the same for a seed."""

from __future__ import annotations

import copy
import functools
import math
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from n2sr_deploy import (
    Denoiser,
    ExportedModel,
    Frame,
    SamplingPattern,
    open_denoiser,
    read_frame,
    write_frame,
)
from n2sr_deploy.cycle_spinning import n_shifted
from n2sr_deploy.errors import FrameError, InputFileError, ModelError, N2SRError, SettingError
from n2sr_deploy.sampling import draw
from n2sr_deploy.tiling import overlap, seen_within, tiles
from n2sr_train import Checkpoint, TrainingConfig, export_model, train
from tests.conftest import random_pixels, tiny_config


class NearestNeighbour:
    """A backend that is no network: every kept pixel fills its cell."""

    name = "nearest neighbour"

    def __init__(self, stride):
        self.stride = stride
        self.largest_batch = 0
        self.closed = False

    def infer(self, subsampled, out):
        for array in (subsampled, out):
            assert array.dtype == np.float32
            assert array.flags.c_contiguous
        self.largest_batch = max(self.largest_batch, len(subsampled))
        out[...] = subsampled.repeat(self.stride[0], axis=2).repeat(self.stride[1], axis=3)

    def close(self):
        self.closed = True


def with_fake(model, pattern=None, **settings):
    metadata = model.metadata
    if pattern is not None:
        metadata = replace(
            metadata, pattern=pattern, n_orientations=8 if pattern.shared is None else 4
        )
    fake = NearestNeighbour(metadata.pattern.stride)
    return Denoiser(replace(model, metadata=metadata), backend=fake, **settings), fake


def relative_difference(a, b, scale):
    return max(np.abs(a.mean - b.mean).max(), np.abs(a.std - b.std).max()) / scale


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_network_that_gives_no_numbers_is_told(model, value):
    """The frame was blamed, when its result was to be written."""
    denoiser, fake = with_fake(model)
    fake.infer = lambda subsampled, out: out.fill(value)
    with pytest.raises(ModelError, match="the model gives NaN or infinite values for this frame"):
        denoiser.denoise(random_pixels((32, 48), "uint16"), 4)


def test_the_mean_over_a_group_of_nearest_neighbours_is_the_mean_of_each_cell(model):
    frame = random_pixels((32, 48), "uint16")
    denoiser, _ = with_fake(model)
    denoised = denoiser.denoise(frame, 4)
    cells = frame.reshape(16, 2, 24, 2).astype(np.float64)
    expected = cells.mean(axis=(1, 3)).repeat(2, axis=0).repeat(2, axis=1)
    spread = cells.std(axis=(1, 3), ddof=1).repeat(2, axis=0).repeat(2, axis=1)
    assert np.allclose(denoised.mean, expected, rtol=1e-4, atol=0.1)
    assert np.allclose(denoised.std, spread, rtol=1e-3, atol=0.5)


def test_denoising_brings_a_noisy_frame_nearer_to_the_truth(model, noisy):
    from n2sr_deploy.phantom import clean_phantom

    clean = clean_phantom((96, 128), spacing=12)
    with Denoiser(model) as denoiser:
        denoised = denoiser.denoise(noisy)
    before, after = (np.mean((image - clean) ** 2) for image in (noisy.pixels, denoised.mean))
    assert after < before / 2


@pytest.mark.parametrize("shape", [(8, 8), (9, 15), (37, 53), (64, 8), (96, 128)])
@pytest.mark.parametrize("n_samples", [1, 3, 4, 9])
def test_any_shape_and_number_of_draws(model, shape, n_samples):
    with Denoiser(model) as denoiser:
        denoised = denoiser.denoise(random_pixels(shape, "int16"), n_samples)
    for result in (denoised.mean, denoised.std):
        assert result.shape == shape
        assert result.dtype == np.float32
        assert np.isfinite(result).all()


@pytest.mark.parametrize("name", ["cell", "row", "column"])
@pytest.mark.parametrize("stride", [2, 3])
def test_every_pattern_trains_exports_and_denoises(noisy, tmp_path, name, stride):
    from n2sr_train import export_model, train

    pattern = SamplingPattern.named(name, stride)
    export_model(train(noisy, tiny_config(pattern=pattern, steps=3))).save(tmp_path / "m.onnx")
    exported = ExportedModel.open(tmp_path / "m.onnx")
    assert exported.metadata.pattern == pattern
    with Denoiser(exported) as denoiser:
        assert np.isfinite(denoiser.denoise(noisy).mean).all()


@pytest.mark.parametrize("budget", [1, 150_000, 400_000])
@pytest.mark.parametrize("shape", [(136, 200), (93, 157)])
def test_tiles_leave_no_seam(model, budget, shape):
    frame = random_pixels(shape, "float32")
    with Denoiser(model) as whole, Denoiser(model, memory_budget=budget) as tiled:
        assert len(list(whole._tiles(shape, 4))) == 1
        assert len(list(tiled._tiles(shape, 4))) > 1
        difference = relative_difference(whole.denoise(frame), tiled.denoise(frame), frame.std())
    assert difference < 1e-5


@pytest.mark.parametrize("name", ["row", "column"])
@pytest.mark.parametrize("budget", [150_000, 2**30])
@pytest.mark.parametrize("n_samples", [4, 8])
def test_whole_lines_leave_no_stripes(model, name, budget, n_samples):
    """A backend that shows kept lines in both places of their cell: a slope became stairs."""
    lines = np.arange(136, dtype=np.float32)
    frame = np.tile(lines, (136, 1))
    frame = frame if name == "column" else np.ascontiguousarray(frame.T)
    denoiser, _ = with_fake(model, SamplingPattern.named(name), memory_budget=budget)
    done = denoiser.denoise(frame, n_samples)
    along = (slice(1, -1), 5) if name == "row" else (5, slice(1, -1))
    steps = np.diff(done.mean[along])
    assert np.allclose(steps, 1, atol=1e-3)
    # Of its four draws a line is shown as itself in two, and as each neighbour in one.
    assert np.allclose(done.std[along], np.sqrt(n_samples / 2 / (n_samples - 1)), atol=1e-3)


def test_the_smallest_frames_are_drawn_as_they_are(model):
    """Without a line, one of 9 could not be mirrored up to 16."""
    pattern = SamplingPattern.named("row")
    for rows in (9, 10):
        denoiser, _ = with_fake(model, pattern)
        padded = denoiser.model.metadata.padded((rows, 40))
        shifted = n_shifted(pattern, 4, (rows, 40), padded)
        assert shifted == (2 if padded[0] <= 2 * (rows - 1) - 1 else 0)
        assert np.isfinite(denoiser.denoise(random_pixels((rows, 40), "uint8"), 4).mean).all()


class BoxSum(NearestNeighbour):
    """Every output depends equally on all input within `radius`, zero outside, as convolutions."""

    def __init__(self, stride, radius):
        super().__init__(stride)
        self.radius = radius

    def infer(self, subsampled, out):
        padded = np.pad(subsampled.astype(np.float64), ((0, 0), (0, 0), *[(self.radius,) * 2] * 2))
        box = (2 * self.radius + 1,) * 2
        sums = np.lib.stride_tricks.sliding_window_view(padded, box, axis=(2, 3)).mean(axis=(4, 5))
        super().infer(np.ascontiguousarray(sums, np.float32), out)


@pytest.mark.parametrize(("overlap", "seamless"), [(16, True), (8, False)])
def test_tiles_overlap_by_all_the_network_sees_and_no_less_would_do(model, overlap, seamless):
    """Radius 8 cells of 2 pixels, multiple 8: an overlap of 16 pixels is enough and needed."""
    frame = random_pixels((88, 120), "float32")
    metadata = replace(model.metadata, receptive_radius=(overlap, overlap), bytes_per_pixel=1)
    known = replace(model, metadata=metadata)
    results = []
    for budget in (10**9, 60_000):
        denoiser = Denoiser(known, backend=BoxSum((2, 2), radius=8), memory_budget=budget)
        results.append(denoiser.denoise(frame))
    assert len(list(denoiser._tiles(frame.shape, 4))) > 1
    assert (relative_difference(*results, frame.std()) < 1e-5) == seamless


def test_tiles_cover_the_frame_once_and_keep_to_the_budget(model):
    budget = 1_500_000
    denoiser, _ = with_fake(model, memory_budget=budget)
    meta, shape = denoiser.model.metadata, (300, 411)
    covered = np.zeros(shape, int)
    cut = denoiser._tiles(shape, 4)
    assert len({tile.window((2, 2))[2:] for tile in cut}) == 1
    for tile in cut:
        covered[tile.rows, tile.columns] += 1
        wanted, seen = (tile.rows, tile.columns), (tile.seen_rows, tile.seen_columns)
        for axis in (0, 1):
            assert overlap(meta, axis) >= meta.receptive_radius[axis]
            assert seen[axis].start <= max(0, wanted[axis].start - overlap(meta, axis))
            end = min(meta.padded(shape)[axis], wanted[axis].stop + overlap(meta, axis))
            assert seen[axis].stop >= end
        seen_pixels = math.prod(part.stop - part.start for part in seen)
        bytes_per_pixel = meta.bytes_per_pixel + 2 * 4 * 4  # four draws' inputs and outputs
        assert seen_pixels * bytes_per_pixel <= budget
    assert (covered == 1).all()


@pytest.mark.parametrize(
    ("shape", "n_pixels", "most"),
    [
        ((4096, 4096), 9_500_000, 1.3),  # 2 GiB for 16 draws of preset fast
        ((4096, 4096), 4_000_000, 1.6),
        ((16384, 16384), 9_500_000, 1.6),
        ((2048, 30000), 9_500_000, 1.2),  # rows whole
    ],
)
def test_tiles_cost_little_more_than_the_whole_frame(model, shape, n_pixels, most):
    deep = replace(
        model.metadata,
        pad_multiple=(32, 32),
        receptive_radius=(246, 246),
    )
    seen = seen_within(deep, shape, n_pixels)
    assert math.prod(seen) <= n_pixels
    cost = len(list(tiles(deep, shape, seen))) * math.prod(seen)
    assert math.prod(shape) < cost <= most * math.prod(shape)


def test_the_smallest_tiles_are_taken_where_nothing_fits(model):
    meta = model.metadata
    smallest = tuple(
        2 * overlap(meta, axis) + multiple for axis, multiple in enumerate(meta.pad_multiple)
    )
    assert seen_within(meta, (300, 411), 1) == smallest


def test_the_same_for_a_seed_whatever_the_threads_and_batch(model, noisy, monkeypatch):
    results = []
    for n_threads, at_once in ((1, 1), (2, 1), (3, 2), (0, 7)):
        monkeypatch.setattr("n2sr_deploy.denoiser.DRAWS_AT_ONCE", at_once)
        with Denoiser(model, n_threads=n_threads) as denoiser:
            results.append(denoiser.denoise(noisy, 7, seed=9, frame_index=3))
    for other in results[1:]:
        assert relative_difference(results[0], other, noisy.pixels.std()) < 1e-5


def test_seed_and_frame_index_choose_the_draws(model, noisy):
    with Denoiser(model) as denoiser:
        first = denoiser.denoise(noisy, 1)
        again = denoiser.denoise(noisy, 1)
        other_seed = denoiser.denoise(noisy, 1, seed=1)
        other_frame = denoiser.denoise(noisy, 1, frame_index=1)
    assert np.array_equal(first.mean, again.mean)
    assert not np.array_equal(first.mean, other_seed.mean)
    assert not np.array_equal(first.mean, other_frame.mean)


def test_the_result_follows_the_counts(model, noisy):
    with Denoiser(model) as denoiser:
        plain = denoiser.denoise(noisy)
        scaled = denoiser.denoise(noisy.pixels.astype(np.float64) * 1e4 + 1e6)
    assert np.allclose(scaled.mean, plain.mean * 1e4 + 1e6, rtol=0, atol=10)
    assert np.allclose(scaled.std, plain.std * 1e4, rtol=0, atol=10)


def test_the_raw_frame_is_never_changed(model, noisy):
    pixels = noisy.pixels.copy()
    pixels.setflags(write=False)
    with Denoiser(model) as denoiser:
        denoiser.denoise(pixels)
    assert np.array_equal(pixels, noisy.pixels)


def test_batches_are_no_larger_than_is_of_use(model, noisy, monkeypatch):
    for at_once in (1, 3, 100):
        monkeypatch.setattr("n2sr_deploy.denoiser.DRAWS_AT_ONCE", at_once)
        denoiser, fake = with_fake(model)
        denoiser.denoise(noisy, 7)
        assert fake.largest_batch == min(at_once, 4)  # the other three are transposed


def test_the_draws_are_those_of_the_sub_sampler(model, noisy):
    class Recording(NearestNeighbour):
        def infer(self, subsampled, out):
            seen.append(subsampled.copy())
            super().infer(subsampled, out)

    seen: list[np.ndarray] = []
    pattern = model.metadata.pattern
    Denoiser(model, backend=Recording(pattern.stride)).denoise(noisy, 4, seed=5)
    mean, std = noisy.mean_and_std()
    expected = draw(noisy.pixels, pattern, 4, seed=5, mean=mean, scale=std)
    assert np.array_equal(seen[0][:, 0], expected)


def test_closing_closes_the_backend(model, noisy):
    denoiser, fake = with_fake(model)
    with denoiser:
        pass
    assert fake.closed
    closed = Denoiser(model)
    closed.close()
    with pytest.raises(ModelError, match="was closed"):
        closed.denoise(noisy)


@pytest.mark.parametrize(
    ("frame", "n_samples", "error", "message"),
    [
        (np.zeros((7, 50)), 4, FrameError, "7 x 50 pixels, but this model needs at least 8 x 8"),
        (np.zeros((40, 40)), 4, FrameError, "constant"),
        (np.full((40, 40), np.nan), 4, FrameError, "NaN"),
        (np.zeros((3, 40, 40)), 4, FrameError, "takes one frame"),
        (np.eye(40), 0, SettingError, "n_samples is 0"),
        (np.eye(40), 10**9, SettingError, "n_samples is 1000000000, but must be 1 to 1024"),
        (np.eye(40), -3, SettingError, "n_samples is -3"),
        (np.eye(40), 2.0, SettingError, "n_samples is 2.0, but must be 1 to 1024, a whole number"),
    ],
)
def test_bad_frames_are_refused(model, frame, n_samples, error, message):
    denoiser, _ = with_fake(model)
    with pytest.raises(error, match=message):
        denoiser.denoise(frame, n_samples)


def test_the_network_is_given_few_draws_at_once(model):
    """Of a pattern whose draws all lie alike."""
    denoiser, fake = with_fake(model, SamplingPattern.named("row"))
    denoiser.denoise(random_pixels((32, 48), "uint16"), 16)
    assert fake.largest_batch == 4


def test_fewer_draws_at_once_are_taken_before_tiles(model):
    """Memory for the draws' inputs and outputs, and for the network with two of them."""
    meta = model.metadata
    frame = random_pixels((64, 64), "uint16")
    budget = 64 * 64 * (2 * 4 * 8 + 2 * meta.bytes_per_pixel)
    denoiser, fake = with_fake(model, memory_budget=budget)
    denoiser.denoise(frame, 8)
    assert fake.largest_batch == 2
    assert len(denoiser._tiles(frame.shape, 8)) == 1


def test_the_share_of_a_frame_that_is_done_is_told(model):
    """Of 8192 x 8192 pixels nothing was told for minutes."""
    budget = 64 * 64 * (2 * 4 * 8 + 2 * model.metadata.bytes_per_pixel)
    told = []
    for shape, n_runs in (((64, 64), 4), ((192, 192), None)):
        denoiser, _ = with_fake(model, memory_budget=budget)
        told.clear()
        denoiser.on_share = told.append
        denoiser.denoise(random_pixels(shape, "uint16"), 8)
        assert told == sorted(set(told))
        assert told[-1] == 1
        if n_runs is not None:
            assert told == [(n + 1) / n_runs for n in range(n_runs)]
        else:
            assert len(told) > len(denoiser._tiles(shape, 8)) > 1


@pytest.mark.parametrize("setting", [{"memory_budget": 0}, {"n_threads": -1}])
def test_bad_settings_are_refused(model, setting):
    with pytest.raises(SettingError, match="at least"):
        Denoiser(model, **setting)


def test_a_path_is_no_model():
    for opened in (Denoiser, open_denoiser, functools.partial(open_denoiser, shape=(64, 64))):
        with pytest.raises(SettingError, match=r"model is 'x.onnx', but must be .* ExportedModel"):
            opened("x.onnx")


@pytest.mark.parametrize(
    "given",
    [
        lambda: read_frame(None),
        lambda: Denoiser.open(3),
        lambda: write_frame(None, np.eye(64)),
        lambda: Checkpoint.open(None),
        lambda: export_model("sample.safetensors"),
        lambda: train(np.eye(64), TrainingConfig.named("fast"), progress=3),
    ],
)
def test_what_a_program_gives_wrongly_is_an_error_of_n2sr(given):
    with pytest.raises(N2SRError, match=r"is .*, but must be"):
        given()


def test_threads_that_share_a_denoiser_get_each_their_own_frame(model):
    frames = [random_pixels((64, 64), "uint16", seed) for seed in range(4)]
    with Denoiser(model) as denoiser, ThreadPoolExecutor(4) as pool:
        alone = [denoiser.denoise(frame, 4).mean for frame in frames]
        shared = pool.map(lambda frame: denoiser.denoise(frame, 4).mean, frames * 25)
        for mean, expected in zip(shared, alone * 25, strict=True):
            np.testing.assert_allclose(mean, expected, rtol=1e-5)


def test_a_denoiser_stays_in_its_process(model):
    denoiser, _ = with_fake(model)
    for leave in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError, match="give its model, or the model's path"):
            leave(denoiser)
    assert pickle.loads(pickle.dumps(model)).metadata == model.metadata


def test_opening_what_is_no_model(tmp_path, checkpoint_path, model_path):
    with pytest.raises(InputFileError, match="does not exist"):
        Denoiser.open(tmp_path / "no.onnx")
    with pytest.raises(ModelError, match="is a checkpoint, not an exported model; export it first"):
        Denoiser.open(checkpoint_path)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(model_path.read_bytes()[:500])
    with pytest.raises(ModelError, match="not an ONNX model"):
        Denoiser.open(broken)
    broken.write_bytes(b"")
    with pytest.raises(ModelError, match="not an ONNX model"):
        Denoiser.open(broken)
    with Denoiser.open(model_path) as denoiser:
        assert denoiser.model.metadata.preset == "balanced"


def test_a_frame_object_and_its_pixels_are_denoised_alike(model, noisy):
    with Denoiser(model) as denoiser:
        a = denoiser.denoise(noisy)
        b = denoiser.denoise(Frame(pixels=noisy.pixels).pixels)
    assert np.array_equal(a.mean, b.mean)


def test_the_mean_of_the_frame_is_kept(model, noisy):
    with Denoiser(model) as denoiser:
        denoised = denoiser.denoise(noisy)
    assert denoised.mean.mean(dtype=np.float64) == pytest.approx(
        noisy.pixels.mean(dtype=np.float64), abs=1e-6
    )


def test_every_second_group_of_draws_is_transposed_where_the_model_says_so(model, noisy):
    """And turned back: a network that only repeats pixels sees no difference."""

    shapes = set()

    class Watched(NearestNeighbour):
        def infer(self, subsampled, out):
            shapes.add(subsampled.shape[2:])
            super().infer(subsampled, out)

    results = []
    for n_orientations in (4, 8):
        metadata = replace(model.metadata, n_orientations=n_orientations)
        turned = replace(model, metadata=metadata)
        with Denoiser(turned, backend=Watched((2, 2))) as denoiser:
            results.append(denoiser.denoise(noisy, 12).mean)
    height, width = (n // 2 for n in noisy.shape)
    assert shapes == {(height, width), (width, height)}
    assert np.allclose(*results, atol=1e-6)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "uint32", "float32"])
def test_mean_and_standard_deviation_of_a_frame(dtype):
    pixels = np.random.default_rng(0).poisson(90, (301, 257)).astype(dtype)
    mean, std = Frame(pixels=pixels).mean_and_std()
    assert mean == pytest.approx(pixels.mean(dtype=np.float64), rel=1e-14)
    assert std == pytest.approx(pixels.std(dtype=np.float64), rel=1e-13)


@pytest.mark.parametrize("given", ["noisy.tif", None, (row for row in np.eye(4)), [[1, 2], [3]]])
def test_what_is_no_array_is_told_as_what_it_is(given):
    """A path had "type <U9", ragged lists were NumPy's ValueError."""
    with pytest.raises(FrameError, match=r"noisy.tif|None|generator|list .* array"):
        Frame.of(given)


def test_a_model_is_not_printed_with_its_bytes():
    """A notebook printed two megabytes."""
    shown = ExportedModel(onnx=b"network", metadata="told")
    assert repr(shown) == "ExportedModel(metadata='told')"
