"""The standard error follows the true error, wherever it comes from."""

from __future__ import annotations

import numpy as np
import pytest

from n2sr_deploy import Denoised, Denoiser, Frame
from n2sr_deploy.errors import FrameError
from n2sr_deploy.frame import Intensity
from n2sr_deploy.layout import input_shapes
from n2sr_deploy.pipeline import FramePipeline, Program
from n2sr_deploy.provenance import of_standard_error
from n2sr_deploy.uncertainty import smoothed, standard_error
from tests.fake_device import FakeDevice, FakeNetwork

SHAPE = (256, 256)
Y, X = np.mgrid[: SHAPE[0], : SHAPE[1]].astype(float)
CLEAN = 5 + np.cos(2 * np.pi * Y / 20) * np.cos(2 * np.pi * X / 17)
NOISE = 1.0


class Smoother:
    """A denoiser whose draws are Gaussian averages, each with some noise of its own."""

    def __init__(self, size, shrunk=1.0):
        self.size, self.shrunk = size, shrunk

    def __call__(self, frame):
        mean = smoothed(frame.pixels.astype(float), self.size)
        mean = mean.mean() + self.shrunk * (mean - mean.mean())
        std = np.full(frame.shape, 0.02) * (1 + (X > 128))
        draws = np.sqrt(np.random.default_rng(7).chisquare(3, frame.shape) / 3)
        return Denoised(
            mean=mean.astype(np.float32), std=(std * draws).astype(np.float32), timings={}
        )


def noisy(seed=0, clean=CLEAN):
    noise = NOISE * np.random.default_rng(seed).normal(size=SHAPE)
    return Frame(pixels=(clean + noise).astype(np.float32))


def ratio(denoise):
    frame = noisy()
    denoised = denoise(frame)
    found = standard_error(frame, denoised, denoise)
    true = np.sqrt(np.mean((denoised.mean - CLEAN) ** 2))
    return np.sqrt(np.mean(found.standard_error**2.0)) / true, found


@pytest.mark.parametrize("size", [1.0, 1.5, 2.0])
def test_the_scale_is_that_of_the_true_error(size):
    scale, found = ratio(Smoother(size))
    assert scale == pytest.approx(1, abs=0.25)
    assert 0 < found.scale_error < 0.4


def test_signal_that_is_lost_counts_though_all_draws_agree():
    sound, lossy = Smoother(2.0), Smoother(2.0, shrunk=0.2)
    frame = noisy()
    errors = [
        standard_error(frame, denoise(frame), denoise).standard_error.mean()
        for denoise in (sound, lossy)
    ]
    assert errors[1] > 1.5 * errors[0]


@pytest.mark.parametrize("size", [4.0, 8.0, 20.0, 200.0])
def test_a_lattice_that_is_blurred_away_counts(size):
    scale, _ = ratio(Smoother(size))
    assert scale == pytest.approx(1, abs=0.4)


def test_it_is_larger_where_draws_disagree():
    frame = noisy()
    error = standard_error(frame, Smoother(1.5)(frame), Smoother(1.5)).standard_error
    assert error.dtype == np.float32
    assert error.shape == SHAPE
    assert error[:, 150:].mean() == pytest.approx(2 * error[:, :100].mean(), rel=0.1)
    assert error[:, :100].std() < 0.15 * error[:, :100].mean()


def test_it_scales_with_the_counts():
    frame = noisy()
    times = Frame(pixels=frame.pixels * np.float32(100))

    def scaled(given):
        small = Smoother(1.5)(Frame(pixels=given.pixels / np.float32(100)))
        return Denoised(mean=small.mean * 100, std=small.std * 100, timings={})

    one = standard_error(frame, Smoother(1.5)(frame), Smoother(1.5))
    hundred = standard_error(times, scaled(times), scaled)
    assert hundred.standard_error == pytest.approx(100 * one.standard_error, rel=0.01)


def smoothing_of(given):
    """Of `smoothed`, each draw with the same noise of its own."""
    mean = smoothed(given.pixels.astype(float), 1.5).astype(np.float32)
    return Denoised(mean=mean, std=np.full(given.shape, 0.02, "f"), timings={})


def test_the_middle_of_a_large_frame_has_its_own_noise():
    """It was given that of the whole frame's mean."""
    clean = np.full((128, 3072), 20.0)
    clean[:, 1024:2048] = 400 + 200 * np.cos(np.arange(1024) / 12)
    frame = Frame(pixels=np.random.default_rng(0).poisson(clean).astype(np.float32))
    denoised, twins = smoothing_of(frame), []

    def denoise(given):
        twins.append(given.pixels)
        return smoothing_of(given)

    standard_error(frame, denoised, denoise)
    assert np.array_equal(twins[0][:, :1024], frame.pixels[:, :1024]), "seen beside all the rest"
    added = (twins[0] - denoised.mean)[:, 1024:2048]
    assert added.std() == pytest.approx(20, rel=0.05)


def test_a_denoiser_for_one_shape_is_given_that_shape(model):
    """On TensorRT, of frames larger than 1024 pixels, there was no engine for the twin."""
    device = FakeDevice()
    noise = np.random.default_rng(0).normal(size=(64, 1056))
    frame = Frame(pixels=(5 + np.cos(np.arange(1056) / 3) + noise).astype(np.float32))
    shapes = input_shapes(model, frame.shape, 4)
    program = Program(model, FakeNetwork(model, device, shapes=shapes), device, 1)
    with FramePipeline(program) as pipeline, Denoiser(model, backend="ort") as denoiser:
        errors = [
            standard_error(frame, each.denoise(frame), each.denoise).standard_error
            for each in (pipeline, denoiser)
        ]
    assert errors[0].mean() == pytest.approx(errors[1].mean(), rel=0.1)


def test_a_small_frame_is_told_to_be_a_guess(caplog):
    pixels = noisy().pixels[:40, :40]
    denoised = Denoised(mean=pixels * 0 + 5, std=np.full((40, 40), 0.1, "f"), timings={})
    found = standard_error(Frame(pixels=pixels), denoised, lambda frame: pytest.fail("no twin"))
    assert found.standard_error == pytest.approx(0.095, abs=0.01)
    assert "too small" in caplog.text
    assert found.scale_error >= 0.5


def test_a_frame_without_noise_is_no_error(caplog):
    frame = Frame(pixels=CLEAN.astype(np.float32))
    denoised = Denoised(mean=CLEAN.astype("f"), std=np.zeros(SHAPE, "f"), timings={})
    found = standard_error(frame, denoised, lambda frame: pytest.fail("no twin"))
    assert not found.standard_error.any()


def test_smoothing_keeps_the_mean_and_mirrors_the_edges():
    values = np.random.default_rng(0).random((40, 50))
    assert smoothed(np.ones((40, 50)), 3) == pytest.approx(1)
    assert smoothed(values, 3).mean() == pytest.approx(values.mean(), rel=0.02)
    assert smoothed(values, 3).std() < 0.15 * values.std()


def test_it_is_the_same_every_time_with_a_real_network(model, noisy):
    with Denoiser(model, backend="ort") as denoiser:
        denoised = denoiser.denoise(noisy)
        first, second = (standard_error(noisy, denoised, denoiser.denoise) for _ in range(2))
    assert np.array_equal(first.standard_error, second.standard_error)
    assert np.isfinite(first.standard_error).all()
    assert first.standard_error.min() > 0


def test_a_standard_error_has_the_unit_of_counts_but_no_offset():
    denoised = Frame(
        pixels=np.ones((32, 32), np.float32),
        intensity=Intensity(scale=2.0, offset=100.0, unit="e"),
        metadata={"n2sr": {}},
        history=("n2sr 1: mean of 4 draws",),
    )
    assert of_standard_error(denoised).intensity == Intensity(scale=2.0, unit="e")


def test_an_array_is_a_frame_and_another_shape_is_told(model, noisy):
    with Denoiser(model) as denoiser:
        denoised = denoiser.denoise(noisy, 4)
        found = standard_error(noisy.pixels, denoised, lambda frame: denoiser.denoise(frame, 4))
        assert found.standard_error.shape == noisy.shape
        with pytest.raises(FrameError, match=r"but the result .*give the frame that was denoised"):
            standard_error(noisy.pixels[:-8], denoised, denoiser.denoise)
