"""The frames that quality is measured on, and the measures."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage
from skimage.feature import peak_local_max
from skimage.metrics import structural_similarity

from benchmarks.simulation import simulated_frame
from n2sr_deploy import Frame, read_frame
from n2sr_deploy.phantom import clean_phantom

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = Path(__file__).parents[1]
DATA = REPOSITORY.parent / "shared" / "data"
GAUSSIAN = ((0.02, 0.02), (0.05, 0.02), (0.1, 0.02))  # gain, read noise
DOSES = (0.5, 2.0, 10.0)  # electrons a pixel
_ROWS_TOGETHER = 8  # standard deviation, rows
_ROWS_REACH = 6  # pixels about the whole frame's drift
_ROW_BLURS = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)  # standard deviations, pixels
PAPER_PSNR = {"PtCeO2_5, gain 0.05": 31.56, "PtCeO2_4, gain 0.05": 34.13}


@dataclass(frozen=True)
class Simulated:
    """A frame whose truth is known."""

    name: str
    clean: np.ndarray
    noisy: Frame

    @cached_property
    def columns(self) -> tuple[np.ndarray, int]:
        """Round atom columns of the truth, (N, 2) in pixels, and the radius they are fitted in."""
        return atom_columns(self.clean.astype(np.float64))

    def scores(self, image: np.ndarray) -> dict[str, float]:
        """PSNR, SSIM, resolution in cycles per pixel, error of the columns in pixels."""
        clean = self.clean.astype(np.float64)
        image = image.astype(np.float64)
        span = float(clean.max() - clean.min())
        mse = float(np.mean((image - clean) ** 2))
        columns, radius = self.columns
        distance = np.hypot(*(fitted(image, columns, radius) - columns).T)
        return {
            "psnr_db": 10 * np.log10(span**2 / mse),
            "ssim": float(structural_similarity(clean, image, data_range=span)),
            "frc_half": frc_half(clean, image),
            "columns_px": float(np.sqrt(np.mean(distance**2))),
        }


@dataclass(frozen=True)
class Pair:
    """A frame and other exposures of the same area, that nobody learns from."""

    name: str
    noisy: Frame
    others: tuple[np.ndarray, ...]
    """Standardised by the frame's mean and standard deviation; NaN where they do not overlap."""

    def scores(self, image: np.ndarray) -> dict[str, float]:
        """The true squared error that the other exposures imply, in variances of the frame.

        And the same after the rows were blurred into each other, by the width that makes it least:
        rows displaced otherwise in each exposure are signal of one, and no longer in the way.
        """
        mean, std = self.noisy.mean_and_std()
        noisy, image = ((x.astype(np.float64) - mean) / std for x in (self.noisy.pixels, image))

        def excess(result: np.ndarray) -> float:
            errors = [
                np.nanmean((result - other) ** 2) - np.nanmean((noisy - other) ** 2) / 2
                for other in self.others
            ]
            return float(np.mean(errors))

        blurred = (ndimage.gaussian_filter1d(image, width, axis=0) for width in _ROW_BLURS)
        as_it_is = excess(image)
        return {
            "excess_error": as_it_is,
            "excess_error_rows_blurred": min(as_it_is, *map(excess, blurred)),
        }


Case = Simulated | Pair


def cases(data: Path = DATA) -> Iterator[Case]:
    """What there is to measure here, ours first."""
    ours = {
        "phantom, 12 px": clean_phantom((512, 512), spacing=12, seed=5),
        "simulated HRTEM": 0.4
        * simulated_frame((512, 512), np.random.default_rng([77, 12]), "hrtem"),
    }
    for name, clean in ours.items():
        yield gaussian(name, clean, 0.05, 0.02)
    for name in ("PtCeO2_5", "PtCeO2_4"):
        path = data / "simulated" / f"{name}.tif"
        if path.exists():
            clean = read_frame(path).pixels
            for gain, read_noise in GAUSSIAN:
                yield gaussian(name, clean, gain, read_noise)
            for dose in DOSES:
                yield poisson(name, clean, dose)
    pair = data / "real" / "nist_haadf_pair.mrc"
    if not pair.exists():
        pair = REPOSITORY / "examples" / "nist_haadf_pair_512.mrc"
    for first, second in ((0, 1), (1, 0)):
        yield exposures(f"nist HAADF pair, {first} to {second}", pair, first, second)
    drifting = data / "real" / "abf_SrTiO3_5frames.hspy"
    if drifting.exists():
        yield from drifting_series("ABF SrTiO3, 5 frames", drifting)


def gaussian(name: str, clean: np.ndarray, gain: float, read_noise: float) -> Simulated:
    """The fixed draw of variance gain * clean + read_noise ** 2."""
    noise = np.random.default_rng(0).normal(size=clean.shape)
    noisy = (clean + noise * np.sqrt(gain * clean + read_noise**2)).astype(np.float32)
    return Simulated(f"{name}, gain {gain:g}", clean, Frame(pixels=noisy))


def poisson(name: str, clean: np.ndarray, dose: float) -> Simulated:
    """The fixed draw of counts, `dose` a pixel on average."""
    scaled = clean * (dose / clean.mean())
    counts = np.random.default_rng(0).poisson(scaled).astype(np.uint16)
    return Simulated(f"{name}, {dose:g} e/px", scaled, Frame(pixels=counts))


def exposures(name: str, path: Path, first: int, second: int) -> Pair:
    """Two frames of a stack that show the same area."""
    noisy, other = read_frame(path, first), read_frame(path, second)
    mean, std = noisy.mean_and_std()
    return Pair(name, noisy, (((other.pixels - mean) / std).astype(np.float64),))


def drifting_series(name: str, path: Path) -> Iterator[Pair]:
    """The middle frame of a series, the others moved onto it by whole pixels, row by row."""
    import h5py

    with h5py.File(path) as file:
        stack = np.asarray(next(_datasets(file)), np.float64)
    middle = len(stack) // 2
    noisy = Frame(pixels=stack[middle].astype(np.float32))
    mean, std = noisy.mean_and_std()
    others = []
    for index, frame in enumerate(stack):
        if index == middle:
            continue
        others.append((followed(stack[middle], frame) - mean) / std)
    yield Pair(name, noisy, tuple(others))


def followed(reference: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """A frame, each of its rows moved by whole pixels to where the reference has it, else NaN.

    A scan drifts while it goes on, and its first rows are stretched, otherwise in each exposure.
    Rows find their place together with their neighbours, by the squared difference.
    """
    a, b = (_without_noise(x) for x in (reference, frame))
    whole = drift(reference, frame)
    moved = np.full_like(frame, np.nan)
    least = np.full(len(frame), np.inf)
    for place in np.ndindex(2 * _ROWS_REACH + 1, 2 * _ROWS_REACH + 1):
        move = tuple(near + n - _ROWS_REACH for near, n in zip(whole, place, strict=True))
        difference = np.mean((a - ndimage.shift(b, move, order=0, mode="nearest")) ** 2, axis=1)
        difference = ndimage.gaussian_filter1d(difference, _ROWS_TOGETHER)
        is_less = difference < least
        least[is_less] = difference[is_less]
        moved[is_less] = ndimage.shift(frame, move, order=0, cval=np.nan)[is_less]
    return moved


def drift(reference: np.ndarray, frame: np.ndarray, reach: int = 16) -> tuple[int, int]:
    """Rows and columns by which to move a frame onto another, from their correlation.

    No farther than `reach`: beyond, a lattice lies on itself again.
    """
    a, b = (np.fft.fft2(_smooth(x)) for x in (reference, frame))
    correlation = np.fft.fftshift(np.fft.ifft2(a * b.conj()).real)
    centre = tuple(n // 2 for n in correlation.shape)
    near = correlation[tuple(slice(c - reach, c + reach + 1) for c in centre)]
    row, column = np.unravel_index(near.argmax(), near.shape)
    return int(row) - reach, int(column) - reach


def _smooth(frame: np.ndarray) -> np.ndarray:
    """Without noise, slow changes and edges."""
    return _without_noise(frame) * np.outer(*(np.hanning(n) for n in frame.shape))


def _without_noise(frame: np.ndarray) -> np.ndarray:
    """And without slow changes."""
    smooth: np.ndarray = ndimage.gaussian_filter(frame, 3) - ndimage.gaussian_filter(frame, 30)
    return smooth


def _datasets(group: Any) -> Iterator[Any]:
    """The three-dimensional datasets of an HDF5 file, the largest first."""
    found: list[Any] = []
    group.visititems(lambda _, item: found.append(item) if getattr(item, "ndim", 0) == 3 else None)
    yield from sorted(found, key=lambda item: -item.size)


def frc_half(clean: np.ndarray, image: np.ndarray) -> float:
    """The frequency, in cycles per pixel, up to which the Fourier ring correlation is 0.5."""
    window = np.outer(*(np.hanning(n) for n in clean.shape))
    a, b = (np.fft.fft2((x - x.mean()) * window) for x in (clean, image))
    radius = np.hypot(*np.meshgrid(*(np.fft.fftfreq(n) for n in clean.shape), indexing="ij"))
    ring = np.minimum((radius * 200).astype(int), 100).ravel()  # 0.005 cycles per pixel

    def sums(values: np.ndarray) -> np.ndarray:
        return np.bincount(ring, values.ravel(), minlength=101)

    cross = sums((a * b.conj()).real)
    correlation = cross / np.sqrt(sums(np.abs(a) ** 2) * sums(np.abs(b) ** 2) + 1e-30)
    smooth = ndimage.uniform_filter1d(correlation[2:100], 3)
    above = np.flatnonzero(smooth >= 0.5)  # a lattice leaves rings empty that lie below
    return float((above[-1] + 2.5) / 200 if above.size else 0.0)


def atom_columns(clean: np.ndarray) -> tuple[np.ndarray, int]:
    """Peaks that fall off on all sides: (N, 2), and the radius to fit them in, in pixels."""
    smooth = ndimage.gaussian_filter(clean, 1.0)
    contrast = float(np.quantile(smooth, 0.995) - np.quantile(smooth, 0.005))
    found = {radius: _round_peaks(smooth, radius, contrast) for radius in (2, 3, 4, 6, 8, 12)}
    most = max(len(peaks) for peaks in found.values())
    radius = next(radius for radius in found if len(found[radius]) >= 0.7 * most)
    return fitted(clean, found[radius].astype(np.float64), radius), radius


def _round_peaks(smooth: np.ndarray, radius: int, contrast: float) -> np.ndarray:
    """Peaks (N, 2) that exceed all at this distance by a fifth of the contrast."""
    peaks = peak_local_max(
        smooth, min_distance=radius, threshold_abs=float(smooth.mean()), exclude_border=2 * radius
    )
    if not len(peaks):
        return peaks
    rows, columns = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    ring = np.abs(np.hypot(rows, columns) - radius) < 0.5
    around = _windows(smooth, peaks, radius)[:, ring].max(axis=1)
    return peaks[smooth[tuple(peaks.T)] - around > 0.2 * contrast]


def fitted(image: np.ndarray, places: np.ndarray, radius: int) -> np.ndarray:
    """The tops (N, 2) of paraboloids fitted around places, found within `radius` of them."""
    rows, columns = np.mgrid[-radius : radius + 1, -radius : radius + 1].reshape(2, -1)
    terms = np.stack([np.ones_like(rows), rows, columns, rows**2, columns**2, rows * columns], 1)
    inverse = np.linalg.pinv(terms.astype(np.float64))
    found = places.copy()
    limit = np.array(image.shape) - radius - 1
    for _ in range(4):
        centre = np.clip(np.round(found).astype(int), radius, limit)
        window = _windows(image, centre, radius).reshape(len(places), -1)
        _, gy, gx, hyy, hxx, hxy = (window @ inverse.T).T
        determinant = 4 * hyy * hxx - hxy**2
        is_top = (determinant > 0) & (hyy < 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            step = np.stack([hxy * gx - 2 * hxx * gy, hxy * gy - 2 * hyy * gx], 1)
            step = step / determinant[:, None]
        step[~is_top] = 0.0
        step = np.clip(step, -radius / 2, radius / 2)
        found = np.clip(centre + step, places - radius, places + radius)
    found[~is_top] = places[~is_top] + radius  # no column there: as wrong as can be
    return found


def _windows(image: np.ndarray, centre: np.ndarray, radius: int) -> np.ndarray:
    """(N, 2 radius + 1, 2 radius + 1) around whole-pixel centres."""
    rows, columns = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    y, x = centre.T
    return image[y[:, None, None] + rows, x[:, None, None] + columns]
