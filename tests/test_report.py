"""A report tells good from bad, in both directions, and writes whole files that need no other."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks.simulation import unit_noise
from n2sr_deploy.cli import main
from n2sr_deploy.errors import FrameError, MissingExtraError, OutputError
from n2sr_deploy.formats import read_frame, write_frame
from n2sr_deploy.formats.units import length_told
from n2sr_deploy.frame import Frame
from n2sr_deploy.noise import measure_noise
from n2sr_deploy.opening import open_denoiser
from n2sr_deploy.pattern import SamplingPattern
from n2sr_deploy.phantom import clean_phantom
from n2sr_deploy.report import HalfResult, Halves, Known, measure, report_on
from n2sr_deploy.report import drawing as drawing_module
from n2sr_deploy.report.cross_validation import confirmation, unseen_by
from n2sr_deploy.report.page import page
from n2sr_deploy.report.panels import panels
from n2sr_deploy.report.reporting import known
from n2sr_deploy.sampling import held_out
from n2sr_deploy.uncertainty import smoothed
from tests.conftest import SHARED_DATA, random_pixels
from tests.test_denoiser import with_fake

REAL = SHARED_DATA / "real"
SHAPE = (192, 224)
Y, X = np.mgrid[: SHAPE[0], : SHAPE[1]].astype(float)


def lattice():
    """Atom columns 12 pixels apart, of height about 1."""
    return np.cos(2 * np.pi * Y / 12) * np.cos(2 * np.pi * X / 12) / 2 + 3


def noisy_frame(along_rows=0.0, clean=None, std=0.6, seed=3, **known):
    clean = lattice() if clean is None else clean
    noise = unit_noise(SHAPE, np.random.default_rng(seed), along_rows)
    return Frame(pixels=(clean + std * noise).astype(np.float32), **known)


def levels(frame, denoised, **given):
    findings = measure(frame, np.asarray(denoised, np.float32), **given)
    return [verdict.level for verdict in findings.verdicts], findings


@pytest.mark.parametrize("along_rows", [0.0, 0.5])
def test_the_truth_passes(along_rows):
    found, findings = levels(noisy_frame(along_rows), lattice())
    assert found == ["good", "good", "good"]
    assert findings.counted("kept") >= 2
    assert not findings.counted("lost")
    assert "None is seen" in findings.verdicts[0].answer


@pytest.mark.parametrize("along_rows", [0.0, 0.5])
def test_a_blurred_result_has_left_signal(along_rows):
    found, findings = levels(noisy_frame(along_rows), smoothed(lattice(), 4))
    assert found[0] == "bad"
    assert findings.counted("lost") >= 2
    assert "Bragg peaks" in findings.verdicts[0].answer


def test_nothing_invented_is_no_praise_where_the_signal_is_missing():
    """What a model of another specimen made of a frame was called good."""
    found, findings = levels(noisy_frame(), smoothed(lattice(), 4))
    assert found == ["bad", "good", "caution"]
    assert "the network has not learned this frame" in findings.verdicts[2].answer
    _, findings = levels(noisy_frame(), lattice())
    assert "specimen" not in findings.verdicts[2].answer


@pytest.mark.parametrize("along_rows", [0.0, 0.5])
def test_the_noisy_frame_itself_has_noise_left(along_rows):
    frame = noisy_frame(along_rows)
    found, findings = levels(frame, frame.pixels)
    assert found == ["bad", "bad", "caution"]
    assert findings.verdicts[2].answer == "That cannot be told: the residual is empty."
    assert findings.noise_left == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    ("removed", "level", "words"),
    [
        (0.0, "bad", "That cannot be told: the residual is empty: the result is hardly another"),
        (0.05, "bad", "the residual has only 5."),
        (0.3, "caution", "of the noise's standard deviation: most of the noise stayed"),
        (0.8, "good", "None is seen"),
    ],
)
def test_an_empty_residual_does_not_say_that_no_signal_is_left(removed, level, words):
    """Of an untouched frame the page said that its residual has the noise's own spectrum."""
    frame = noisy_frame()
    _, findings = levels(frame, frame.pixels + removed * (lattice() - frame.pixels))
    assert findings.verdicts[0].level == level
    assert words in findings.verdicts[0].answer


def test_no_more_than_all_of_the_signal_stays():
    """A result turned upside down: twice the signal's amplitude is in the residual."""
    frame = noisy_frame()
    _, findings = levels(frame, 2 * lattice().mean() - lattice())
    assert max(findings.rings.signal_left[np.isfinite(findings.rings.signal_left)]) > 2
    assert "all of the signal's power at" in findings.verdicts[0].answer


def test_streaks_of_correlated_noise_are_noise_left():
    frame = noisy_frame(0.5)
    noise = frame.pixels - lattice()
    streaks = 0.25 * smoothed(noise, 0.5)
    assert levels(frame, lattice() + streaks)[0][1] == "caution"
    assert levels(frame, lattice() + 0.02 * noise)[0][1] == "good"


def test_an_invented_lattice_patch_is_unsupported():
    patch = np.exp(-((Y - 96) ** 2 + (X - 110) ** 2) / (2 * 30**2)) * np.cos(
        2 * np.pi * (0.21 * Y + 0.13 * X)
    )
    found, findings = levels(noisy_frame(), lattice() + 0.6 * patch)
    assert found[2] == "bad"
    assert findings.counted("unsupported") >= 1
    peak = next(peak for peak in findings.peaks if peak.state == "unsupported")
    assert np.abs(peak.frequency) == pytest.approx((0.21, 0.13), abs=0.02)


@pytest.mark.parametrize("trace", [0.0, 0.001, 0.03])
def test_a_strong_peak_that_is_lost_is_not_told_to_be_invented(trace):
    """What is left at its frequency, as a network always leaves some, was "denied" by chance."""
    lost = 2 * np.cos(2 * np.pi * (0.29 * Y + 0.17 * X)) + 2 * np.cos(2 * np.pi * 0.31 * (Y - X))
    for seed in range(5):
        left = trace * np.random.default_rng(seed).normal(size=SHAPE)
        found, findings = levels(noisy_frame(clean=lattice() + lost, seed=seed), lattice() + left)
        assert findings.counted("lost") == 2
        assert findings.counted("unsupported") == 0
        assert found[0] == "bad"
        assert found[2] == "caution"


def test_an_invented_atom_is_unsupported_and_found():
    atom = np.exp(-((Y - 90) ** 2 + (X - 121) ** 2) / (2 * 3**2))
    found, findings = levels(noisy_frame(), lattice() + 0.9 * atom)
    assert found[2] != "good"
    place = next(place for place in findings.places if place.is_invented)
    assert np.hypot(place.row - 90, place.column - 121) < 4
    assert "the data deny" in findings.verdicts[2].answer


def test_a_lost_atom_is_signal_left():
    atom = np.exp(-((Y - 90) ** 2 + (X - 121) ** 2) / (2 * 3**2))
    found, findings = levels(noisy_frame(clean=lattice() + 0.9 * atom), lattice())
    assert found[0] != "good"
    assert found[2] == "good"
    assert not findings.places[0].is_invented


def test_noise_only_frames_have_no_peaks_and_pass():
    found, findings = levels(noisy_frame(clean=np.full(SHAPE, 3.0)), np.full(SHAPE, 3.0))
    assert found == ["good", "good", "good"]
    assert findings.peaks == ()
    assert "no Bragg peaks are seen" in findings.verdicts[0].answer


def diffuse(transfer):
    """A specimen that no lattice orders: white noise seen through a transfer function."""
    fy, fx = (np.fft.fftfreq(n) for n in SHAPE)
    white = np.fft.fft2(np.random.default_rng(7).normal(size=SHAPE))
    image = np.fft.ifft2(white * transfer(fy[:, None] ** 2 + fx**2)).real
    return 3 + 2 * image / image.std()


@pytest.mark.parametrize(
    "clean",
    [
        diffuse(lambda f2: np.exp(-300 * f2)),
        diffuse(lambda f2: np.abs(np.sin(1000 * f2)) * np.exp(-30 * f2)),  # Thon rings
        3 + 9 * (0.7 * X + Y > 170),  # an edge: a streak
        3 + np.cos(2 * np.pi * Y / 8),  # offsets of rows, of one period
    ],
    ids=["amorphous", "rings", "edge", "lines"],
)
def test_what_is_no_lattice_has_no_bragg_peaks(clean):
    """Speckle of the diffuse spectrum and hum of the scan were told as Bragg peaks."""
    for seed in range(3):
        findings = measure(exposure(clean, seed), clean.astype(np.float32))
        assert findings.peaks == ()


@pytest.mark.parametrize(("strength", "n_peaks"), [(1.0, 3), (0.25, 3)])
def test_a_hexagonal_lattice_has_its_peaks(strength, n_peaks):
    angles = np.deg2rad([7, 67, 127])
    waves = [np.cos(2 * np.pi * 0.1 * (Y * np.sin(a) + X * np.cos(a))) for a in angles]
    clean = diffuse(lambda f2: np.exp(-2000 * f2)) + strength * sum(waves)
    peaks = measure(exposure(clean, 0), clean.astype(np.float32)).peaks
    assert [peak.state for peak in peaks] == ["kept"] * n_peaks
    for peak in peaks:
        assert np.hypot(*peak.frequency) == pytest.approx(0.1, abs=0.006)


def test_a_constant_result_of_a_lattice_has_lost_it():
    found, _ = levels(noisy_frame(), np.full(SHAPE, 3.0))
    assert found[0] == "bad"
    assert found[1] == "good"


def test_hot_pixels_are_mended_and_no_signal():
    frame = noisy_frame()
    pixels = frame.pixels.copy()
    pixels[40, 50] = pixels[100, 60] = 60
    found, findings = levels(replace(frame, pixels=pixels), lattice())
    assert found == ["good", "good", "good"]
    assert "2 hot pixels" in findings.mended


def with_offsets():
    """The lattice with one offset for each row, as a detector or a specimen has them."""
    return lattice() + np.random.default_rng(6).normal(size=(SHAPE[0], 1))


def test_offsets_that_were_left_are_judged_as_part_of_the_frame():
    """The truth was called bad in all three, since the frame was mended and the result was not."""
    noisy = noisy_frame(clean=with_offsets())
    found, findings = levels(noisy, with_offsets(), repairs=False)
    assert found == ["good", "good", "good"]
    assert not findings.mended
    found, findings = levels(noisy, with_offsets())
    assert "bad" in found
    assert "offsets of rows" in findings.mended
    _, findings = levels(
        noisy,
        with_offsets(),
        second=noisy_frame(clean=with_offsets(), seed=4),
        repairs=False,
    )
    assert findings.excess.denoised == pytest.approx(0, abs=0.01)


def test_the_command_judges_what_was_not_mended(tmp_path, quick_drawing):
    truth, noisy = tmp_path / "truth.tif", tmp_path / "noisy.tif"
    write_frame(truth, with_offsets().astype(np.float32))
    write_frame(noisy, noisy_frame(clean=with_offsets()))
    for option, is_bad in (("--no-repair", False), (None, True)):
        arguments = ["report", noisy, truth, "-o", tmp_path / "r.html", "--overwrite", option]
        result = CliRunner().invoke(main, [str(word) for word in arguments if word])
        assert ("[bad]" in result.stdout) == is_bad, result.output


def test_the_second_exposure_tells_the_true_error():
    frame = noisy_frame()
    noise = 0.6 * np.random.default_rng(9).normal(size=SHAPE)
    other = Frame(pixels=(lattice() + noise).astype(np.float32))
    error = 0.1 * np.random.default_rng(1).normal(size=SHAPE)
    found, findings = levels(
        frame, lattice() + error, second=other, standard_error=np.full(SHAPE, 0.1)
    )
    assert found[3] == "good"
    variance = frame.pixels.var()
    assert findings.excess.denoised == pytest.approx(
        np.mean(error**2) / variance, abs=4 * findings.excess.error
    )
    assert findings.excess.noisy == pytest.approx(0.36 / variance, rel=0.05)
    assert findings.excess.reported == pytest.approx(0.01 / variance, rel=0.01)
    assert levels(frame, frame.pixels, second=other)[0][3] != "good"


def scene(seed=0):
    """No two areas of it are alike."""
    return 2 * smoothed(np.random.default_rng(seed).normal(size=SHAPE), 3) * 6 + 3


def exposure(clean, seed, std=0.6):
    noise = np.random.default_rng(seed).normal(size=SHAPE)
    return Frame(pixels=(clean + std * noise).astype(np.float32))


@pytest.mark.parametrize("clean", [lattice(), scene()], ids=["lattice", "scene"])
def test_copies_are_no_second_exposure(clean):
    """Their excess error was told, though it means nothing."""
    first, third = exposure(clean, 1), exposure(clean, 3)
    for second in (first, Frame(pixels=clean.astype(np.float32))):
        with pytest.raises(FrameError, match="the second exposure has the very pixels of the"):
            levels(first, clean, second=second)
    for pixels in (2 * first.pixels + 7, first.pixels + 2 * third.pixels):
        found, findings = levels(first, clean, second=Frame(pixels=pixels))
        assert found[3] == "caution"
        assert "the second exposure has the noise of the noisy frame" in findings.describe()


def exposures(size, noise, seed, n=2):
    """Of one small phantom, which comes first."""
    clean = clean_phantom((size, size), spacing=12, seed=seed)
    rng = np.random.default_rng(seed + 100)
    drawn = (clean + noise * rng.normal(size=(n, size, size))).astype(np.float32)
    return clean, *(Frame(pixels=pixels) for pixels in drawn)


@pytest.mark.parametrize("size", [48, 64, 96])
def test_small_exposures_are_no_copies(size):
    """One in four was called a copy of the other: so few frequencies correlate by chance."""
    copies = 0
    for seed in range(16):
        clean, first, second = exposures(size, 0.1, seed)
        _, findings = levels(first, clean, second=second)
        assert "made from" not in findings.verdicts[3].answer
        twice = Frame(pixels=2 * first.pixels + 7)
        answer = levels(first, clean, second=twice)[1].verdicts[3].answer
        copies += "has the noise of the noisy frame" in answer
    assert copies >= 14  # of the others hardly any frequency is without signal


@pytest.mark.parametrize(
    "other",
    [lambda x: 2 * x, lambda x: 0.5 * (x + np.roll(x, 1, axis=0))],
    ids=["another gain", "interpolated"],
)
def test_a_second_exposure_with_other_noise_tells_nothing(other):
    clean = lattice()
    second = Frame(pixels=other(exposure(clean, 2).pixels))
    found, findings = levels(exposure(clean, 1), clean, second=second)
    assert found[3] == "caution"
    assert "times as strong as the noisy frame's" in findings.verdicts[3].answer


def test_a_result_of_the_second_exposure_is_seen():
    first, second = exposure(scene(), 1), exposure(scene(), 2)
    denoised = scene() + smoothed(second.pixels - scene(), 1) / 4
    found, findings = levels(first, denoised, second=second)
    assert found[3] == "caution"
    assert "the result has noise of the second exposure (correlation 0." in findings.describe()
    found, findings = levels(second, denoised, second=first)
    assert found[3] == "good"
    assert findings.excess.own_noise.value > 0.5


def test_frames_of_another_area_are_refused():
    """They were judged as if the denoiser had failed."""
    noisy = exposure(scene(), 1)
    with pytest.raises(FrameError, match="the second exposure shows another area than the noisy"):
        levels(noisy, scene(), second=exposure(scene(4), 2))
    with pytest.raises(FrameError, match="the denoised frame shows another area than the noisy"):
        levels(noisy, scene(4))
    with pytest.raises(FrameError, match=r"the denoised frame lies 4\.\d rows and -7\.\d columns"):
        levels(noisy, np.roll(scene(), (4, -7), (0, 1)))


@pytest.mark.parametrize(
    ("size", "noise", "n"),
    [(64, 0.1, 16), (96, 0.1, 16), (96, 0.3, 16), (128, 0.3, 12), (192, 0.3, 6), (192, 0.6, 6)],
)
def test_exposures_of_little_dose_are_of_one_area(size, noise, n):
    """They were refused: the phases of faint signal hardly agree."""
    for seed in range(n):
        clean, first, second = exposures(size, noise, seed)
        _, findings = levels(first, clean, second=second)
        assert findings.excess.shift in (None, (0, 0))


@pytest.mark.skipif(not REAL.exists(), reason="needs the shared frames")
def test_real_frames_of_other_areas_are_refused():
    names = ("nist_haadf_pair.mrc", "abf_SrTiO3_5frames.hspy", "haadf_MoS2.dm3", "haadf_SrTiO3.ser")
    frames = [replace(read_frame(REAL / name, 0), pixel_size=None) for name in names]
    frames = [replace(frame, pixels=frame.pixels[:512, :512]) for frame in frames]
    for noisy, other in pairwise(frames):
        with pytest.raises(FrameError, match="the second exposure shows another area"):
            levels(noisy, noisy.pixels + 1, second=other)
    again = replace(read_frame(REAL / names[1], 3), pixel_size=None)  # distorted, as scans are
    assert levels(frames[1], frames[1].pixels + 1, second=again)[1].excess.shift is not None


@pytest.mark.parametrize(
    ("drift", "words"),
    [
        (0, None),
        (0.6, "px between the two counts as error"),
        (3, "That cannot be told: the second exposure has drifted by "),
    ],
)
def test_a_drift_of_the_second_exposure_is_told(drift, words):
    phase = np.exp(-2j * np.pi * drift * np.fft.fftfreq(SHAPE[0]))[:, None]
    moved = np.fft.ifft2(np.fft.fft2(scene()) * phase).real
    _, findings = levels(exposure(scene(), 1, 0.3), scene(), second=exposure(moved, 2, 0.3))
    assert findings.excess.shift == pytest.approx((drift, 0), abs=0.25)
    answer = findings.verdicts[3].answer
    assert words in answer if words else "drift" not in answer


def test_frames_without_a_structure_have_a_second_exposure_too():
    """Of which no shift can be told."""
    flat = np.full(SHAPE, 3.0)
    found, findings = levels(exposure(flat, 1), flat, second=exposure(flat, 2))
    assert found[3] == "good"
    assert findings.excess.shift is None


def test_the_noise_model_and_the_residuals_variance_agree():
    clean = lattice() * 2
    noise = np.random.default_rng(3).normal(size=SHAPE) * np.sqrt(0.3 * clean)
    frame = Frame(pixels=(clean + noise).astype(np.float32))
    curve = measure(frame, clean.astype(np.float32)).variance
    assert curve.variance == pytest.approx(0.3 * curve.intensity, rel=0.15)


def half_results(noisy, clean, shown):
    """What shows this, and the noise of the pixels that each of them saw, smeared."""
    halves = []
    for draws in (range(2), range(2, 4)):
        unseen = unseen_by(SamplingPattern.named("cell"), SHAPE, draws, seed=0, frame_index=0)
        noise = smoothed(np.where(unseen, 0, noisy - clean), 2)
        halves.append(HalfResult((shown + noise).astype(np.float32), unseen))
    return Halves(*halves)


def test_unseen_pixels_confirm_the_lattice_and_neither_noise_nor_what_was_drawn_alike():
    """The correlation of two half-results took whatever a network draws everywhere for detail."""
    noisy = noisy_frame(std=0.3).pixels.astype(float)
    invented = 0.2 * np.cos(2 * np.pi * (0.3 * X + 0.2 * Y))
    found = confirmation(noisy, half_results(noisy, lattice(), lattice() + invented))

    def at(frequency):
        ring = np.argmin(np.abs(found.frequency - frequency))
        return found.share[ring], found.error[ring], found.is_confirmed[ring]

    share, error, is_confirmed = at(np.sqrt(2) / 12)
    assert share == pytest.approx(1, abs=4 * error)
    assert error < 0.05
    assert is_confirmed
    share, error, is_confirmed = at(np.hypot(0.3, 0.2))
    assert share == pytest.approx(0, abs=4 * error)
    assert error < 0.1
    assert not is_confirmed
    assert found.resolution == pytest.approx(np.sqrt(2) / 12, abs=2.5 / 96)  # rings beside it too


@pytest.mark.parametrize("name", ["row", "column"])
def test_lines_that_are_displaced_where_they_were_seen_confirm_no_detail(name):
    """As networks show them: it looked as if detail were confirmed at every frequency."""
    fine = np.cos(2 * np.pi * Y / 12) * np.cos(2 * np.pi * X / 7) / 2 + 3
    fine = fine if name == "row" else fine.T
    axis, pattern = int(name == "column"), SamplingPattern.named(name)
    noisy = fine + np.random.default_rng(0).normal(size=fine.shape) / 3
    halves = []
    for draw in range(2):
        unseen = unseen_by(pattern, fine.shape, range(draw, draw + 1), seed=0, frame_index=0)
        displaced = np.where(
            np.roll(unseen, 1, axis), np.roll(fine, 1, axis), np.roll(fine, -1, axis)
        )
        halves.append(HalfResult(np.where(unseen, fine, displaced).astype(np.float32), unseen))
    assert confirmation(noisy, Halves(*halves)).resolution > 0.3
    found = confirmation(noisy, Halves(*halves, name))
    assert found.along == name
    assert found.resolution == pytest.approx(1 / 7, abs=2.5 / 96)


def noise_alone(seed, shape=SHAPE, pattern="cell"):
    """Of noise, smeared, as a half-result shows it."""
    noisy = np.random.default_rng(seed).normal(size=shape)
    pattern = SamplingPattern.named(pattern)
    halves = []
    for draw in range(2):
        unseen = unseen_by(pattern, shape, range(draw, draw + 1), seed=seed, frame_index=0)
        shown = smoothed(np.where(unseen, 0, noisy), 2)
        halves.append(HalfResult(shown.astype(np.float32), unseen))
    return confirmation(noisy, Halves(*halves, pattern.shared))


def test_shares_of_noise_scatter_by_their_standard_error():
    found = [noise_alone(seed) for seed in range(30)]
    told = np.array([(each.share / each.error)[2:8] for each in found])
    assert 0.8 < told.std() < 1.1
    assert abs(told.mean()) < 0.3


def test_what_is_surely_there_but_for_the_most_part_is_not_is_unconfirmed():
    """A third of the height that is shown is in the frame."""
    noisy = noisy_frame(std=0.05).pixels.astype(float)
    shown = 3 * (lattice() - 3) + 3
    found = confirmation(noisy, half_results(noisy, lattice(), shown))
    ring = np.argmin(np.abs(found.frequency - np.sqrt(2) / 12))
    assert found.share[ring] == pytest.approx(1 / 3, abs=0.03)
    assert found.error[ring] < 0.02
    assert not found.is_confirmed[ring]


@pytest.mark.parametrize("pattern", ["cell", "row", "column"])
@pytest.mark.parametrize("shape", [(48, 48), (65, 65), (100, 101)])
def test_frames_of_any_size_are_told_of_without_a_warning(shape, pattern):
    """Rings without a frequency had a mean of nothing."""
    found = noise_alone(0, shape, pattern)
    assert np.isfinite(found.share).all()
    assert np.isfinite(found.error).all()


def test_of_noise_nothing_is_confirmed():
    noisy = np.random.default_rng(1).normal(size=SHAPE)
    found = confirmation(noisy, half_results(noisy, np.zeros(SHAPE), np.zeros(SHAPE)))
    assert found.resolution is None
    assert not found.is_confirmed.any()


def test_nothing_is_written_to():
    frame = noisy_frame()
    before, denoised = frame.pixels.copy(), lattice().astype(np.float32)
    frame.pixels.flags.writeable = denoised.flags.writeable = False
    measure(frame, denoised)
    assert np.array_equal(frame.pixels, before)


@pytest.mark.parametrize(
    ("noisy", "denoised", "words"),
    [
        (np.full(SHAPE, 2.0), np.full(SHAPE, 2.0), "constant"),
        (np.eye(40), np.eye(40), "from 48 x 48 on"),
        (lattice(), lattice()[:-2], "190 x 224 pixels, but the noisy frame 192 x 224"),
        (lattice(), lattice() * np.nan, "NaN"),
    ],
)
def test_what_cannot_be_judged_is_refused_with_the_reason(noisy, denoised, words):
    with pytest.raises(FrameError, match=words):
        measure(Frame(pixels=noisy), denoised)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (np.ones((96, 224)), "the standard error is 96 x 224 pixels, but the noisy frame 192 x"),
        (np.full(SHAPE, np.nan), "the standard error has NaN"),
        (lattice() - 3, "the standard error has pixels down to -0.5, but none can be below 0"),
    ],
)
def test_a_standard_error_of_another_frame_is_refused(error, words):
    with pytest.raises(FrameError, match=words):
        measure(noisy_frame(), lattice(), standard_error=error)


@pytest.fixture
def files(tmp_path):
    """noisy.tif and denoised.tif, of known pixel size."""
    frame = noisy_frame(pixel_size=(0.02, 0.02), unit="nm")
    write_frame(tmp_path / "noisy.tif", frame)
    write_frame(tmp_path / "denoised.tif", frame.with_pixels(lattice().astype("f"), "made"))
    return tmp_path


@pytest.fixture
def quick_drawing(monkeypatch):
    """Pictures of few pixels: here their looks do not matter."""
    monkeypatch.setattr(drawing_module, "_png", lambda figure, dpi: b"\x89PNG")


def run(folder, *arguments):
    given = [str(folder / part) if "." in part else part for part in arguments]
    return CliRunner().invoke(main, ["report", *given])


def test_a_noisy_frame_without_noise_is_asked_about(caplog):
    """It was judged in thousands of per cent."""
    measure(Frame(pixels=lattice().astype("f")), lattice().astype("f") + 0.01)
    assert "next to no noise" in caplog.text
    caplog.clear()
    measure(noisy_frame(), lattice().astype("f"))
    assert "next to no noise" not in caplog.text


def test_verdicts_and_their_numbers_are_told_as_json(files, quick_drawing):
    write_frame(files / "second.tif", noisy_frame(seed=1))
    given = ["noisy.tif", "denoised.tif", "--second", "second.tif"]
    told = json.loads(run(files, *given, "-o", "a.html", "--json").stdout)
    words = run(files, *given, "-o", "b.html").stdout
    assert told["report"] == str(files / "a.html")
    for verdict in told["verdicts"]:
        assert f"{verdict['question']} [{verdict['level']}]\n  {verdict['answer']}\n" in words
    assert len(told["verdicts"]) == 4
    assert told["excess"]["denoised"] == pytest.approx(0, abs=4 * told["excess"]["error"])
    assert told["peaks"]["kept"] > 0
    assert told["noise"] == measure_noise(noisy_frame()).to_dict()


def test_the_command_writes_a_page_that_needs_nothing_else(files):
    result = run(files, "noisy.tif", "denoised.tif", "-o", "report.html")
    assert result.exit_code == 0, result.output
    text = (files / "report.html").read_text()
    assert not re.search(r"https?://|<script|<link|src=\"(?!data:)", text)
    assert text.count("data:image/png;base64,") == 12
    assert "Is signal left in the residual?" in text
    assert (files / "report.png").read_bytes().startswith(b"\x89PNG")
    assert "[good]" in result.output
    assert sorted(path.name for path in files.iterdir()) == [
        "denoised.tif", "noisy.tif", "report.html", "report.png",
    ]  # fmt: skip


def test_the_command_refuses_before_any_work(files):
    (files / "report.html").write_text("mine")
    result = run(files, "noisy.tif", "denoised.tif", "-o", "report.html")
    assert result.exit_code == 2
    assert "exists already" in result.output
    assert (files / "report.html").read_text() == "mine"
    for arguments, words in (
        (("-o", "page.pdf"), "must end in .html"),
        (("-o", "page.html", "--second-frame", "0"), "the noisy frame itself"),
        (("-o", "page.html", "--std", "denoised.tif", "-m", "model.onnx"), "leave one out"),
    ):
        result = run(files, "noisy.tif", "denoised.tif", *arguments)
        assert result.exit_code == 2
        assert words in result.output
    assert not (files / "page.html").exists()


def test_the_noisy_and_the_denoised_frame_are_not_taken_for_each_other(files):
    result = read_frame(files / "denoised.tif")
    write_frame(files / "ours.tif", replace(result, metadata={"n2sr": {"n_samples": 4}}))
    found = run(files, "ours.tif", "noisy.tif", "-o", "page.html")
    assert found.exit_code == 2
    assert "name the noisy frame first" in found.output


def test_a_picture_that_is_there_stays(files):
    frame = read_frame(files / "noisy.tif")
    write_frame(files / "report.npy", frame)
    (files / "report.png").write_bytes(b"a picture of mine")
    with pytest.raises(OutputError, match="exists already"):
        report_on(files / "report.html", frame, frame.pixels, title="x")
    assert (files / "report.png").read_bytes() == b"a picture of mine"


def test_a_second_frame_of_the_same_stack_is_named_by_its_number(files, quick_drawing):
    rng = np.random.default_rng(5)
    stack = np.stack([lattice() + 0.6 * rng.normal(size=SHAPE) for _ in range(2)])
    np.save(files / "stack.npy", stack.astype(np.float32))
    unsaid = run(
        files, "stack.npy", "denoised.tif", "--frame", "0", "--second", "stack.npy",
        "-o", "report.html",
    )  # fmt: skip
    assert unsaid.exit_code == 2
    assert "--second-frame 0 to --second-frame 1" in unsaid.output
    result = run(
        files, "stack.npy", "denoised.tif", "--frame", "0", "--second-frame", "1",
        "-o", "report.html",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "What does the second exposure say? [good]" in result.output


@pytest.mark.parametrize(
    ("length", "unit", "told"),
    [
        (500, "nm", "500 nm"),
        (2, "Å", "2 Å"),
        (1000, "Å", "100 nm"),
        (5000, "nm", "5 µm"),
        (0.02, "µm", "20 nm"),
        (0.05, "nm", "50 pm"),
        (2000, "1/nm", "2000 1/nm"),  # no length
        (5000, "m", "5000 m"),
    ],
)
def test_a_scale_bars_length_has_a_unit_that_suits_it(length, unit, told):
    assert length_told(length, unit) == told


def test_frames_of_stacks_are_judged_by_their_number(files, quick_drawing):
    truths = [lattice(), smoothed(lattice(), 4)]
    rng = np.random.default_rng(5)
    noise = 0.6 * rng.normal(size=SHAPE)
    np.save(files / "noisy.npy", np.stack([lattice() + noise] * 2).astype("f"))
    np.save(files / "denoised.npy", np.stack(truths).astype("f"))
    np.save(files / "std.npy", np.ones((2, *SHAPE), "f"))
    levels = [
        run(
            files, "noisy.npy", "denoised.npy", "--frame", str(index), "--std", "std.npy",
            "-o", f"{index}.html",
        ).output.splitlines()[0]
        for index in range(2)
    ]  # fmt: skip
    assert [line.rpartition(" ")[2] for line in levels] == ["[good]", "[bad]"]
    np.save(files / "three.npy", np.zeros((3, *SHAPE), "f"))
    result = run(files, "noisy.npy", "three.npy", "--frame", "0", "-o", "no.html")
    assert result.exit_code == 2
    assert "3 frames" in result.output


def test_a_signal_of_several_is_judged(files, quick_drawing):
    h5py = pytest.importorskip("h5py")
    with h5py.File(files / "two.h5", "w") as file:
        file["haadf"] = noisy_frame().pixels
        file["abf"] = noisy_frame().pixels * -1
    arguments = ["two.h5", "denoised.tif", "-o", "report.html"]
    assert run(files, *arguments).exit_code == 2
    result = run(files, *arguments, "--signal", "haadf")
    assert result.exit_code == 0, result.output
    assert "[good]" in result.output


def partly_scanned(frame, rows):
    pixels = frame.pixels.copy()
    pixels[rows:] = 0
    return replace(frame, pixels=pixels)


def test_rows_that_were_not_scanned_are_not_judged(files, quick_drawing):
    """They were taken for noise left in the result."""
    for name in ("noisy", "denoised"):
        frame = read_frame(files / f"{name}.tif")
        write_frame(files / f"part-{name}.tif", partly_scanned(frame, 110))
    for name in ("std", "second"):
        write_frame(files / f"{name}.tif", Frame(pixels=noisy_frame(clean=lattice() + 1).pixels))
    result = run(
        files, "part-noisy.tif", "part-denoised.tif", "--std", "std.tif", "--second",
        "second.tif", "-o", "report.html",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert result.output.count("[good]") >= 3
    assert "judged is what was measured of it: 110 x 224" in (files / "report.html").read_text()
    write_frame(files / "cut.tif", Frame(pixels=lattice()[:110].astype("f")))
    for arguments in (["cut.tif"], ["part-denoised.tif", "--std", "cut.tif"]):
        result = run(files, "part-noisy.tif", *arguments, "-o", "no.html")
        assert result.exit_code == 2
        assert "is 110 x 224 pixels, but the noisy frame 192 x 224" in result.output


def test_ctrl_c_while_the_report_is_made_leaves_the_result_and_says_so(
    files, model_path, monkeypatch, quick_drawing
):
    """And by which command the report is made."""

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    stack, out, page = (files / name for name in ("my stack.npy", "o.tif", "o.html"))
    np.save(stack, np.stack(2 * [noisy_frame().pixels]))
    with monkeypatch.context() as patch:
        patch.setattr("n2sr_deploy.report.report_on", interrupted)
        done = CliRunner().invoke(
            main,
            ["denoise", str(stack), "--frame", "1", "-m", str(model_path), "-o", str(out),
             "--report", str(page)],
        )  # fmt: skip
    assert done.exit_code == 130
    assert out.exists()
    _, again = done.stderr.split("the result is kept; its report is made by: n2sr ")
    made = CliRunner().invoke(main, shlex.split(again.splitlines()[0]))
    assert made.exit_code == 0, made.output
    assert page.exists()


def test_a_result_is_judged_by_the_frame_it_was_made_of(files, model_path, quick_drawing):
    """A good result of another frame of the stack was called invented."""
    np.save(files / "stack.npy", np.stack([noisy_frame().pixels, noisy_frame().pixels[::-1]]))
    stack, out, page = (str(files / name) for name in ("stack.npy", "one.tif", "one.html"))
    done = CliRunner().invoke(
        main,
        ["denoise", stack, "--frame", "1", "-m", str(model_path), "-o", out, "--report", page],
    )
    assert done.exit_code == 0, done.output
    assert "one.tif, denoised from stack.npy, frame 1" in (files / "one.html").read_text()
    other = run(files, "stack.npy", "one.tif", "--frame", "0", "-o", "no.html")
    assert other.exit_code == 2
    assert "was made of frame 1 of 2" in other.output
    assert "say --frame 1" in other.output
    assert run(files, "stack.npy", "one.tif", "--frame", "1", "-o", "a.html").exit_code == 0


def test_a_result_that_the_network_does_not_make_is_told(files, model_path, quick_drawing, caplog):
    noisy, out = str(files / "noisy.tif"), str(files / "made.tif")
    with_model = ["-m", str(model_path)]
    CliRunner().invoke(main, ["denoise", noisy, *with_model, "-o", out, "--backend", "ort"])
    assert run(files, "noisy.tif", "made.tif", *with_model, "-o", "a.html").exit_code == 0
    assert "is not what" not in caplog.text
    made = read_frame(files / "made.tif")
    other = replace(made, pixels=made.pixels + 2 * lattice().astype("f"))
    write_frame(files / "other.tif", other)
    assert run(files, "noisy.tif", "other.tif", *with_model, "-o", "b.html").exit_code == 0
    assert "other.tif is not what" in caplog.text


def test_denoise_reports_on_a_frame_that_was_not_scanned_to_its_end(
    tmp_path, noisy, model_path, quick_drawing
):
    write_frame(tmp_path / "a.tif", partly_scanned(noisy, 70))
    paths = [str(tmp_path / name) for name in ("a.tif", "b.tif", "b.html", "std.tif")]
    arguments = ["denoise", paths[0], "-m", str(model_path), "-o", paths[1], "--report", paths[2]]
    result = CliRunner().invoke(main, [*arguments, "--std", paths[3]])
    assert result.exit_code == 0, result.output
    assert "Is noise left" in result.output
    result = CliRunner().invoke(
        main, ["report", *paths[:2], "-m", str(model_path), "-o", str(tmp_path / "c.html")]
    )
    assert result.exit_code == 0, result.output


def test_denoise_of_a_frame_too_small_to_judge_writes_nothing(tmp_path, noisy, model_path):
    """The result was written before the report failed, and stood in the way of another try."""
    write_frame(tmp_path / "a.tif", Frame(pixels=noisy.pixels[:40, :40]))
    arguments = ["denoise", str(tmp_path / "a.tif"), "-m", str(model_path)]
    arguments += ["-o", str(tmp_path / "b.tif")]
    result = CliRunner().invoke(main, [*arguments, "--report", str(tmp_path / "b.html")])
    assert result.exit_code == 2
    assert "can be judged from 48 x 48 on; leave the report out" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["a.tif"]
    assert CliRunner().invoke(main, arguments).exit_code == 0


def test_with_a_model_the_page_has_standard_error_and_half_results(
    files, noisy, model_path, quick_drawing
):
    write_frame(files / "small.tif", noisy)
    result = CliRunner().invoke(
        main,
        ["denoise", str(files / "small.tif"), "-m", str(model_path), "-o", str(files / "d.tif"),
         "--std", str(files / "std.tif"), "--report", str(files / "d.html")],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert (files / "d.html").exists()
    assert (files / "d.png").exists()
    assert read_frame(files / "std.tif").pixels.min() >= 0
    result = CliRunner().invoke(
        main,
        ["report", str(files / "small.tif"), str(files / "d.tif"), "-m", str(model_path),
         "-o", str(files / "again.html")],
    )  # fmt: skip
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("pattern", ["cell 2", "row 2", "column 2", "row 4", "column 4"])
def test_a_half_result_does_not_know_the_pixels_that_it_never_saw(model, pattern):
    name, stride = pattern.split()
    denoiser, _ = with_fake(model, SamplingPattern.named(name, int(stride)))
    frame = random_pixels((66, 70), "uint16")
    for which in (0, 1):
        half = known(denoiser, Frame(pixels=frame, index=7), n_samples=1, seed=3).halves[which]
        assert half.unseen.mean() > 0.2
        other = frame.copy()
        other[half.unseen] = np.roll(frame[half.unseen], 1)  # of the same mean and deviation
        again = known(denoiser, Frame(pixels=other, index=7), n_samples=1, seed=3).halves[which]
        assert np.allclose(again.image, half.image, atol=0.1)
        spoilt = frame.copy()
        spoilt[~half.unseen] = np.roll(frame[~half.unseen], 1)
        spoilt = known(denoiser, Frame(pixels=spoilt, index=7), n_samples=1, seed=3).halves[which]
        assert not np.allclose(spoilt.image, half.image, atol=0.1)


@pytest.mark.parametrize("name", ["row", "column"])
def test_lines_beside_one_that_was_seen_do_not_judge_where_noise_reaches_them(name):
    pattern = SamplingPattern.named(name, 4)
    unseen = unseen_by(pattern, (64, 64), range(1), seed=0, frame_index=0)
    lines = unseen if name == "row" else unseen.T
    assert (lines == lines[:, :1]).all()
    kept = ~held_out(pattern, (64, 64))
    for number, is_kept in enumerate((kept if name == "row" else kept.T)[:, 0]):
        assert not (is_kept and lines[max(number - 1, 0) : number + 2].any())
    assert 0.2 < unseen.mean() < 0.5


def test_with_a_model_a_result_is_judged_as_it_was_made(
    files, noisy, model, model_path, quick_drawing, monkeypatch
):
    """The draws, the seed and the mending were the defaults', whatever the result's own."""
    asked = []
    monkeypatch.setattr(
        "n2sr_deploy.report.known",
        lambda denoiser, frame, made, **how: asked.append((frame, how, made)) or Known(None),
    )
    pixels = noisy.pixels.copy()
    pixels[40, 50] = 60
    spiked = replace(noisy, pixels=pixels)
    write_frame(files / "spiked.tif", spiked)
    record = {"weights_sha256": model.metadata.weights_sha256, "n_samples": 6, "seed": 5}

    def report(metadata, *options):
        told = replace(noisy, metadata=metadata)
        write_frame(files / "d.tif", told, overwrite=True)
        arguments = ["spiked.tif", "d.tif", "-o", "d.html", "--overwrite", *options]
        result = run(files, *arguments, "-m", str(model_path))
        return result.output, asked[-1] if asked else None

    _, (frame, how, made) = report({"n2sr": {**record, "repair": False}})
    assert how == {"n_samples": 6, "seed": 5}
    with open_denoiser(model) as denoiser:
        assert np.array_equal(made.mean, denoiser.denoise(frame, 6, seed=5).mean)
    assert frame.pixels[40, 50] == 60
    _, (frame, how, _) = report({"n2sr": {**record, "repair": True}}, "--seed", "2")
    assert how == {"n_samples": 6, "seed": 2}
    assert frame.pixels[40, 50] < 60
    _, (frame, how, _) = report({})
    assert how == {"n_samples": None, "seed": 0}
    asked.clear()
    output, _ = report({"n2sr": {**record, "weights_sha256": "0" * 64}})
    assert "d.tif was made with 000000000000; give the model that made it" in output
    assert not asked


def test_words_from_files_are_escaped_on_the_page(quick_drawing):
    findings = measure(noisy_frame(), lattice().astype(np.float32))
    text = page(findings, "<b>a & b</b>", ("<i>x</i>",))
    assert "<b>a &amp;" not in text
    assert "&lt;i&gt;x" in text


def test_every_panel_draws_with_and_without_what_is_optional():
    findings = measure(
        noisy_frame(pixel_size=(0.02, 0.02), unit="nm"),
        lattice().astype(np.float32),
        standard_error=np.full(SHAPE, 0.1, np.float32),
        halves=half_results(noisy_frame().pixels, lattice(), lattice()),
    )
    assert drawing_module.overview_png(findings, "all").startswith(b"\x89PNG")


@pytest.fixture
def drawn(monkeypatch):
    """The figures of all that is drawn, instead of their files."""
    figures = []
    monkeypatch.setattr(drawing_module, "_png", lambda figure, dpi: figures.append(figure) or b"")
    return figures


def test_the_pictures_of_a_report_align(drawn):
    """Each was as large as what stood beside it let it be, and the noisy one had no unit."""
    findings = measure(
        noisy_frame(clean=5e4 * lattice(), std=3e4),
        5e4 * lattice().astype(np.float32),
        standard_error=np.full(SHAPE, 0.1, np.float32),
    )
    pictures = panels(findings)[:4]
    for panel in pictures:
        drawing_module.panel_png(panel, findings)
    drawing_module.overview_png(findings, "all")
    for figure in drawn:
        figure.draw_without_rendering()
    assert len({figure.axes[0].get_window_extent().bounds for figure in drawn[:-1]}) == 1
    axes = [axis for part in drawn[-1].subfigs for axis in part.axes]
    boxes = [axis.get_window_extent() for axis in axes if axis.get_title("left")]
    for box in boxes[1:4]:
        assert (box.y0, *box.size) == pytest.approx((boxes[0].y0, *boxes[0].size))
    assert np.diff([box.x0 for box in boxes[:4]]) == pytest.approx(boxes[1].x0 - boxes[0].x0)
    rows = [[box.y0 for box in boxes[at : at + 4]] for at in (0, 4, 8)]
    assert min(rows[0]) - max(rows[1]) < min(rows[1]) - max(rows[2]), "no axis is below pictures"
    for figure, unit in zip(drawn, ["counts"] * 3 + ["std of the noise"], strict=False):
        scale = figure.axes[1]
        assert scale.get_ylabel() == unit
        assert scale.get_tightbbox().x1 < figure.bbox.x1


@pytest.mark.parametrize(("along", "size"), [(None, 0.02), ("row", 0.02), ("column", 0.03)])
def test_the_resolution_is_marked_where_the_last_ring_is_confirmed(along, size):
    noisy = noisy_frame(pixel_size=(0.03, 0.02), unit="nm")
    halves = half_results(noisy.pixels, lattice(), lattice())._replace(along=along)
    findings = measure(noisy, lattice().astype("f"), halves=halves)
    axis = drawing_module._figure((4, 4)).add_subplot()
    panels(findings)[-1].draw(axis, findings)
    resolution = findings.confirmation.resolution
    assert resolution == findings.confirmation.frequency[findings.confirmation.is_confirmed][-1]
    assert [text.get_text() for text in axis.texts] == [
        f" {1 / resolution:.3g} px = {size / resolution:.3g} nm "
    ]


def test_the_picture_has_each_verdict_whole(drawn):
    """Long ones were cut, and the legend hid peaks."""
    long = ("at row 17 the residual shows structure that noise does not make; " * 6).strip()
    findings = measure(noisy_frame(), lattice().astype(np.float32))
    verdicts = tuple(replace(verdict, answer=long) for verdict in findings.verdicts)
    title = "a_name_without_spaces" * 9
    drawing_module.overview_png(replace(findings, verdicts=verdicts), title)
    header, _, others = drawn[0].subfigs
    texts = [text.get_text() for text in header.texts]
    assert texts[0].replace("\n", "") == title
    answers = [text for text in texts if text in long]
    assert " ".join(answers) == " ".join([long] * len(verdicts))
    drawn[0].draw_without_rendering()
    edges = [text.get_window_extent() for text in header.texts]
    assert all(edge.x1 < header.bbox.x1 and edge.y0 > header.bbox.y0 for edge in edges)
    spectrum = next(a for a in others.axes if a.get_title("left") == "Spectrum, denoised")
    assert spectrum.get_legend().get_window_extent().y1 < spectrum.get_window_extent().y0


def test_without_matplotlib_the_error_names_the_extra(files, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"n2sr\[report\]"):
        drawing_module.check_drawing()
    result = run(files, "noisy.tif", "denoised.tif", "-o", "report.html")
    assert result.exit_code == 2


def test_frames_of_other_pixel_sizes_are_refused(tmp_path):
    pixels = np.random.default_rng(0).normal(100, 5, (64, 64)).astype(np.float32)
    for name, size, unit in (("noisy", 0.1, "nm"), ("same", 1.001, "Å"), ("other", 0.2, "nm")):
        write_frame(
            tmp_path / f"{name}.tif", Frame(pixels=pixels, pixel_size=(size,) * 2, unit=unit)
        )

    def report(denoised, *options):
        arguments = [tmp_path / "noisy.tif", tmp_path / f"{denoised}.tif", *options]
        output = ["-o", tmp_path / f"{denoised}{len(options)}.html"]
        return CliRunner().invoke(main, ["report", *map(str, [*arguments, *output])])

    assert report("same").exit_code == 0
    refused = report("other")
    assert refused.exit_code == 2
    assert (
        "the denoised frame has pixels of 0.2 nm, but the noisy frame of 0.1 nm" in refused.stderr
    )
    refused = report("same", "--second", tmp_path / "other.tif")
    assert "the second exposure has pixels of 0.2 nm" in refused.stderr
