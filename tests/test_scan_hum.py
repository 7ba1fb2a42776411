"""Hum in the scan is found where it is, nowhere else, and rows are put straight."""

from __future__ import annotations

import numpy as np
import pytest
from click.testing import CliRunner
from scipy import ndimage

from benchmarks.simulation import simulated_frame
from n2sr_deploy import (
    Denoiser,
    Frame,
    denoise_frame,
    displaced_rows,
    read_frame,
    scan_hum,
    write_frame,
)
from n2sr_deploy.cli import main
from n2sr_deploy.displaced_rows import Hum, displaced, straightened
from n2sr_deploy.errors import FileFormatError, SettingError
from n2sr_deploy.formats import open_frames, write_frames
from n2sr_deploy.formats.base import Axis
from n2sr_deploy.phantom import clean_phantom
from n2sr_deploy.scan_hum import find_hum, find_hum_between, put_straight

HUM = Hum(frequency=0.2131, down=(1.2, -0.8), aside=(0.4, 0.3))


def with_residue(clean, seed=0):
    """As a network leaves it."""
    noise = np.random.default_rng(seed).normal(size=clean.shape)
    return (clean + 0.02 * clean.std() * noise).astype(np.float32)


@pytest.mark.parametrize("shape", [(256, 256), (96, 640), (700, 80)])
@pytest.mark.parametrize(
    ("frequency", "strength"),
    [(0.1307, 1.4), (0.2131, 0.7), (0.2131, 1.4), (0.37, 0.7), (0.37, 1.4), (0.49, 0.7)],
)
def test_it_is_found_and_undone(frequency, shape, strength):
    down, aside = (1.0 * strength, -0.7 * strength), (0.3 * strength, 0.2 * strength)
    hum = Hum(frequency=frequency, down=down, aside=aside)
    clean = clean_phantom(shape, spacing=16)
    swayed = with_residue(displaced(clean, hum))
    result, found = put_straight(swayed)
    assert found is not None
    assert found.frequency == pytest.approx(frequency, abs=1e-4)
    assert found.down == pytest.approx(down, abs=0.05)
    assert found.aside == pytest.approx(aside, abs=0.05)
    inside = (slice(4, -4), slice(4, -4))
    before, after = (np.mean((x - clean)[inside] ** 2) for x in (swayed, result))
    assert after < 0.2 * before


def periodic(kind, spacing, angle):
    y, x = np.mgrid[:224, :256].astype(float)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    u, v = (np.cos(2 * np.pi * way / spacing) for way in (u, v))
    return {"columns": np.exp(4 * (u + v - 2)), "waves": v, "layers": (v > 0) * 1.0}[kind]


@pytest.mark.parametrize("kind", ["columns", "waves", "layers"])
@pytest.mark.parametrize("angle", [0.0, 0.0005, 0.003, 0.02, 0.3])
def test_no_lattice_or_layer_is_taken_for_it(kind, angle):
    for spacing in (3, 4.7, 6, 8, 10, 12, 16, 24, 40):
        assert find_hum(with_residue(periodic(kind, spacing, angle))) is None, spacing


def test_nothing_else_is_taken_for_it():
    rng = np.random.default_rng(5)
    for clean in (
        *(simulated_frame((256, 256), rng) for _ in range(8)),
        clean_phantom((256, 256), spacing=6),
        rng.normal(size=(256, 256)),
        np.full((128, 128), 3.0),
        np.zeros((63, 200)),
    ):
        image = clean.astype(np.float32)
        same, found = put_straight(image)
        assert found is None
        assert same is image


def enlarged(image, times):
    return np.repeat(np.repeat(image, times, 0), times, 1)


def smooth(seed):
    return clean_phantom((256, 256), spacing=11 + seed)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("times", [2, 3, 4, 4.67, 5])
def test_an_image_enlarged_by_repeating_rows_is_not_taken_for_it(times, seed):
    rows = (np.arange(256) / times).astype(int) * round(times)
    assert find_hum(with_residue(smooth(seed)[rows % 256])) is None


@pytest.mark.parametrize("spacing", [16, 20])
def test_a_blurred_enlarged_image_is_not_taken_for_it(spacing):
    """Its rows are no longer the same, but it keeps step with them."""
    large = enlarged(clean_phantom((256, 256), spacing=spacing)[::5, ::5], 5)[:256, :256]
    blurred = sum(np.roll(large, k, 0) * w for k, w in ((-1, 0.25), (0, 0.5), (1, 0.25)))
    assert find_hum(with_residue(blurred)) is None


def test_interlaced_rows_and_blocks_are_not_taken_for_it():
    image = clean_phantom((256, 256), spacing=20)
    image[1::2] = np.roll(image, 2, axis=1)[1::2]
    assert find_hum(with_residue(image)) is None
    blocks = clean_phantom((256, 256), spacing=16).reshape(32, 8, 32, 8)
    coarse = 0.7 * blocks.mean(axis=(1, 3), keepdims=True) + 0.3 * blocks
    assert find_hum(with_residue(coarse.reshape(256, 256))) is None


@pytest.mark.parametrize("n_atoms", [2, 3, 4])
def test_layers_of_several_atoms_along_the_rows_are_not_taken_for_it(n_atoms):
    rng = np.random.default_rng(n_atoms)
    y, x = np.mgrid[:256, :256].astype(float)
    for _ in range(30):
        spacing = rng.uniform(8, 20)
        places, weights = rng.uniform(size=n_atoms), rng.uniform(0.2, 1, size=n_atoms)
        layers = sum(
            w * np.exp(8 * (np.cos(2 * np.pi * (y / spacing + at)) - 1))
            for at, w in zip(places, weights, strict=True)
        )
        columns = np.exp(8 * (np.cos(2 * np.pi * x / rng.uniform(8, 25)) - 1))
        assert find_hum(with_residue(layers * columns)) is None


def test_a_fine_wave_beside_a_coarse_one_is_not_taken_for_it():
    """Hum would make two waves of a coarse one, so that it explains half."""
    y, x = np.mgrid[:256, :256].astype(float)
    for coarse in (40, 60, 74):
        for fine in (2.5, 3.3, 4.4):
            wave = np.cos(2 * np.pi * (y + 0.01 * x) / fine)
            image = np.cos(2 * np.pi * (y / coarse + x / 260)) + 0.1 * wave
            assert find_hum(with_residue(image)) is None


def test_bands_of_rows_leave_no_seam(monkeypatch):
    image = clean_phantom((300, 120), spacing=20)
    results = []
    for n_rows in (1000, 64):
        monkeypatch.setattr(displaced_rows, "_BAND", n_rows)
        results.append([straightened(image, HUM), displaced(image, HUM)])
    np.testing.assert_allclose(results[0], results[1], rtol=1e-5, atol=1e-5)


def test_the_phase_is_that_of_the_middle_row_of_frames_of_any_size():
    """Of large frames only the middle is looked at."""
    for n_rows in (600, 601):
        clean = clean_phantom((n_rows, 560), spacing=14)
        found = find_hum(displaced(clean, HUM))
        assert found is not None
        assert found.down == pytest.approx(HUM.down, abs=0.05)


def test_rows_are_laid_back():
    clean = clean_phantom((200, 180), spacing=20)
    swayed = displaced(clean, HUM)
    again = displaced(straightened(swayed, HUM), HUM)
    assert np.mean((again - swayed) ** 2) < 0.02 * np.mean((swayed - clean) ** 2)


@pytest.fixture
def hummed(monkeypatch):
    """Every result shows this hum."""
    monkeypatch.setattr(scan_hum, "find_hum", lambda image: HUM)


def denoise(*arguments, code=0):
    result = CliRunner().invoke(main, ["denoise", *map(str, arguments), "--backend", "ort"])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def given(noisy, tmp_path, model_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_frame("noisy.tif", noisy)
    return ["noisy.tif", "-m", model_path, "-o"]


def test_a_files_rows_are_put_straight_and_that_is_told(given, hummed):
    plain = denoise(*given, "plain.tif", "--no-repair", "--std", "plain-std.tif")
    told = denoise(*given, "straight.tif", "--std", "straight-std.tif")
    assert "put straight" not in plain.stderr
    assert f"{HUM.describe()}: put straight" in told.stderr
    before, after = read_frame("plain.tif"), read_frame("straight.tif")
    assert np.array_equal(after.pixels, straightened(before.pixels, HUM))
    assert f"{HUM.describe()}: put straight" in after.history
    assert Hum.from_dict(after.metadata["n2sr"]["hum"]) == HUM
    assert before.metadata["n2sr"]["hum"] is None
    std = straightened(read_frame("plain-std.tif").pixels, HUM)
    assert np.array_equal(read_frame("straight-std.tif").pixels, np.maximum(std, 0))


@pytest.mark.parametrize("repaired", [True, False])
def test_a_frame_in_python_becomes_what_the_command_makes_of_a_file(
    given, noisy, model_path, hummed, repaired
):
    """With a blank border, a hot pixel, and rows to put straight."""
    pixels = np.pad(noisy.pixels, ((0, 9), (5, 0)))
    pixels[40, 50] = 60 * pixels.max()
    write_frame("bordered.tif", Frame(pixels=pixels))
    options = [] if repaired else ["--no-repair"]
    denoise("bordered.tif", "-m", model_path, "-o", "bordered_out.tif", "-M", 3, *options)
    written = read_frame("bordered_out.tif").pixels
    with Denoiser.open(model_path, backend="ort") as denoiser:
        done = denoise_frame(pixels, denoiser, 3, repaired=repaired)
        plain = denoiser.denoise(pixels, 3)
        assert done.mean.tobytes() == written.tobytes()
        assert not np.array_equal(done.mean, plain.mean)
        blank = pixels == 0
        assert not done.std[blank].any()
        assert (done.std[~blank] > 0).mean() > 0.99
        other = denoise_frame(pixels, denoiser, 3, frame_index=1, repaired=repaired)
        assert not np.array_equal(other.mean, done.mean)
    with pytest.raises(SettingError, match=r"must be one, as Denoiser\.open"):
        denoise_frame(pixels, str(model_path))


def test_a_report_judges_the_rows_where_they_were_scanned(given, hummed, monkeypatch):
    judged = []

    def report_on(output, noisy, denoised, **known):
        judged.append((denoised, known["lines"]))
        raise KeyboardInterrupt

    monkeypatch.setattr("n2sr_deploy.report.report_on", report_on)
    denoise(*given, "plain.tif", "--no-repair")
    denoise(*given, "straight.tif")
    for name in ("plain.tif", "straight.tif"):
        CliRunner().invoke(main, ["report", "noisy.tif", name, "-o", "a.html"])
    (plain, _), (back, lines) = judged
    assert np.array_equal(plain, read_frame("plain.tif").pixels)
    assert "judged with its rows where they were scanned" in lines
    assert np.array_equal(back, displaced(read_frame("straight.tif").pixels, HUM))


def test_a_report_takes_the_standard_error_where_rows_were_scanned(given, hummed, monkeypatch):
    told = []

    def report_on(output, noisy, denoised, **known):
        told.append(known["known"].standard_error)
        raise KeyboardInterrupt

    monkeypatch.setattr("n2sr_deploy.report.report_on", report_on)
    denoise(*given, "a.tif", "--std", "std.tif")
    CliRunner().invoke(main, ["report", "noisy.tif", "a.tif", "--std", "std.tif", "-o", "a.html"])
    expected = np.maximum(displaced(read_frame("std.tif").pixels, HUM), 0)
    assert np.array_equal(told[0], expected)


@pytest.mark.parametrize(
    "values",
    [
        "yes",
        {"frequency": 0.2},
        {"frequency": 0.2, "down": [1], "aside": [0, 0]},
        {"frequency": 0.2, "down": [1, None], "aside": [0, 0]},
        {"frequency": float("nan"), "down": [1, 0], "aside": [0, 0]},
        {"frequency": 0.2, "down": [1e9, 0], "aside": [0, 0]},
        {"frequency": 0.2, "down": [1, 0], "aside": [0, float("nan")]},
    ],
)
def test_a_record_of_no_hum_is_refused_in_words(values):
    with pytest.raises(FileFormatError, match="denoise again"):
        Hum.from_dict(values)


def test_each_frame_of_a_stack_has_its_own(noisy, model_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = [HUM, None, Hum(frequency=0.3, down=(0.5, 0.5), aside=(0.0, 0.2))]
    write_frames("a.tif", [Frame(pixels=noisy.pixels * k) for k in (1, 2, 3)], (AXIS,))
    denoise("a.tif", "--stack", "-m", model_path, "-o", "plain.tif", "--no-repair")
    waiting = iter(found)
    monkeypatch.setattr(scan_hum, "find_hum", lambda image: next(waiting))
    told = denoise("a.tif", "--stack", "-m", model_path, "-o", "b.tif")
    assert "put straight: rows that hum displaced in 2 of 3 frames" in told.stderr
    with open_frames("plain.tif") as plain, open_frames("b.tif") as results:
        for hum, before, after in zip(found, plain, results, strict=True):
            expected = straightened(before.pixels, hum) if hum else before.pixels
            assert np.array_equal(after.pixels, expected)


AXIS = Axis(name="time", size=3)


def noisy_of(clean, noise=0.7, seed=0):
    """With so much noise, in standard deviations of what it shows."""
    random = np.random.default_rng(seed).normal(size=clean.shape)
    return (clean + noise * clean.std() * random).astype(np.float32)


@pytest.mark.parametrize("strength", [0.4, 1.0, 2.0])
def test_it_is_found_between_the_noisy_frame_and_the_straight_one(strength):
    clean = clean_phantom((700, 256), spacing=14)
    hum = Hum(frequency=0.2131, down=(1.2 * strength, -0.8 * strength), aside=(0.4, 0.3))
    found = find_hum_between(
        noisy_of(displaced(clean, hum)), straightened(displaced(clean, hum), hum)
    )
    assert found is not None
    assert found.frequency == pytest.approx(hum.frequency, abs=1e-4)
    assert (*found.down, *found.aside) == pytest.approx((*hum.down, *hum.aside), abs=0.1)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", ["faithful", "blurred", "noise alone"])
def test_between_frames_without_it_none_is_found(kind, seed):
    clean = clean_phantom((200, 180), spacing=14, seed=seed)
    image = {"faithful": clean, "blurred": ndimage.gaussian_filter(clean, 2.0)}
    denoised = image.get(kind, np.full_like(clean, clean.mean()))
    assert find_hum_between(noisy_of(clean, seed=seed), denoised) is None


def test_a_report_finds_where_the_rows_of_a_stacks_frame_were_scanned(tmp_path, monkeypatch):
    """Its record is written before they are known."""
    monkeypatch.chdir(tmp_path)
    clean = clean_phantom((256, 256), spacing=14)
    hums = [HUM, Hum(frequency=0.2131, down=(-0.7, 1.0), aside=(0.5, 0.0)), None]
    scanned = [clean if hum is None else displaced(clean, hum) for hum in hums]
    write_frames("noisy.tif", [Frame(pixels=noisy_of(image)) for image in scanned], (AXIS,))
    record = {"n2sr": {"result": "mean", "frames": "frames 0 to 2", "repair": True}}
    straight = [Frame(pixels=put_straight(image)[0], metadata=record) for image in scanned]
    write_frames("denoised.tif", straight, (AXIS,))
    judged = []

    def report_on(output, noisy, denoised, **known):
        judged.append((denoised, known["lines"]))
        raise KeyboardInterrupt

    monkeypatch.setattr("n2sr_deploy.report.report_on", report_on)
    for index in range(3):
        report = ["report", "noisy.tif", "denoised.tif", "-o", "a.html", "--frame", str(index)]
        CliRunner().invoke(main, report)
    said = ["judged with its rows where they were scanned" in lines for _, lines in judged]
    assert said == [True, True, False]
    for image, (shown, _) in zip(scanned, judged, strict=True):
        inner = np.s_[8:-8, 8:-8]
        assert np.std((shown - image)[inner]) < 0.15 * image.std()


@pytest.mark.parametrize("frequency", [-0.2, 0.1, 0.6, 3.0])
def test_a_fit_that_ran_away_is_no_hum(monkeypatch, frequency):
    """A frequency above two cycles a row ended in a division by zero."""
    image = displaced(clean_phantom((128, 128), spacing=16), HUM)
    steps = iter([HUM] * 7)
    away = Hum(frequency=frequency, down=HUM.down, aside=HUM.aside)
    monkeypatch.setattr(scan_hum, "_better", lambda *_: next(steps, away))
    assert find_hum(image) is None
