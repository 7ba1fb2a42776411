"""Clean frames of many kinds, made from nothing but random numbers, and noise as detectors make it.

A specimen is a list of point-like atom columns: crystals of any two-dimensional lattice in
particles, half-planes and grains, with vacancies, foreign atoms and strain, amorphous film,
vacuum. A microscope makes a frame of it: HRTEM (a phase object in a few slices, seen through the
transfer function of a lens), dark field (columns as bright as heavy, under a probe) or bright
field. Lengths are in pixels.

The starting weights are trained on these frames and the presets were chosen on them; no frame
that quality is reported on has a part in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Shape = tuple[int, int]
Rng = np.random.Generator

KINDS = ("hrtem", "dark field", "bright field")


@dataclass(frozen=True)
class Specimen:
    """Atom columns, and how much film lies over them."""

    columns: Array
    """(N, 3): row, column, strength of each atom column."""
    film: Array
    """(H, W): projected amorphous matter, 0 where there is none."""
    spacing: float
    """Between neighbouring columns."""


def simulated_frame(shape: Shape, rng: Rng, kind: str | None = None) -> Array:
    """A clean frame (H, W) float32, not below zero, its mean 1."""
    specimen = simulated_specimen(shape, rng)
    kind = kind or str(rng.choice(KINDS, p=(0.5, 0.3, 0.2)))
    frame = image(specimen, shape, kind, rng)
    return np.asarray(frame / frame.mean(), np.float32)


def simulated_specimen(shape: Shape, rng: Rng) -> Specimen:
    """One to three regions, crystalline or amorphous, beside vacuum."""
    spacing = float(np.exp(rng.uniform(np.log(5), np.log(48))))
    y, x = np.mgrid[: shape[0], : shape[1]].astype(float)
    free = np.ones(shape)  # where no region lies yet
    film = np.zeros(shape)
    columns = [np.zeros((0, 3))]
    for _ in range(rng.integers(1, 4)):
        mask = region(y, x, rng) * free
        free = free * (1 - mask)
        thickness = mask * _thickness(y, x, rng)
        if rng.random() < 0.15:
            film += thickness * rng.uniform(0.5, 2)
        else:
            columns.append(crystal(shape, thickness, spacing * rng.uniform(0.8, 1.3), rng))
    if rng.random() < 0.6:
        film += rng.uniform(0.02, 0.5)
    return Specimen(np.concatenate(columns), film, spacing)


def region(y: Array, x: Array, rng: Rng) -> Array:
    """Everything, a half-plane, a particle or a polygon: 1 inside, 0 outside."""
    height, width = y.shape
    kind = rng.choice(["all", "half-plane", "particle", "polygon"], p=(0.3, 0.25, 0.25, 0.2))
    if kind == "all":
        return np.ones(y.shape)
    centre = rng.uniform(0.2, 0.8, 2) * y.shape
    if kind == "particle":
        radii = rng.uniform(0.12, 0.45, 2) * min(height, width)
        angle = rng.uniform(0, np.pi)
        u = (y - centre[0]) * np.cos(angle) + (x - centre[1]) * np.sin(angle)
        v = (x - centre[1]) * np.cos(angle) - (y - centre[0]) * np.sin(angle)
        return np.asarray(np.hypot(u / radii[0], v / radii[1]) < 1, float)
    inside = np.ones(y.shape)
    for _ in range(1 if kind == "half-plane" else rng.integers(3, 7)):
        angle = rng.uniform(0, 2 * np.pi)
        distance = 0 if kind == "half-plane" else rng.uniform(0.1, 0.4) * min(height, width)
        along = (y - centre[0]) * np.sin(angle) + (x - centre[1]) * np.cos(angle)
        inside = inside * (along < distance)
    return inside


def _thickness(y: Array, x: Array, rng: Rng) -> Array:
    """Flat, or a wedge; around 1."""
    angle, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.9) * (rng.random() < 0.6)
    along = (y / y.shape[0] - 0.5) * np.sin(angle) + (x / x.shape[1] - 0.5) * np.cos(angle)
    return np.asarray(1 + slope * along)


def crystal(shape: Shape, thickness: Array, spacing: float, rng: Rng) -> Array:
    """Columns (N, 3) of a random lattice where `thickness` is above zero."""
    a = spacing
    b = spacing * rng.uniform(1, 1.8)
    angle = rng.uniform(0, 2 * np.pi)
    gamma = rng.choice([np.pi / 2, np.pi / 3, rng.uniform(1.0, 1.9)])
    vectors = np.array(
        [[a * np.sin(angle), a * np.cos(angle)],
         [b * np.sin(angle + gamma), b * np.cos(angle + gamma)]]
    )  # fmt: skip
    n_basis = rng.integers(1, 4)
    if n_basis > 1:
        vectors *= np.sqrt(n_basis)
    reach = int(np.hypot(*shape) / spacing * 1.2) + 2
    i, j = np.mgrid[-reach : reach + 1, -reach : reach + 1].reshape(2, -1)
    corners = np.stack([i, j], 1) @ vectors + np.array(shape) / 2 + rng.uniform(0, spacing, 2)
    parts = []
    for _ in range(n_basis):
        at = corners + rng.uniform(0, 1, 2) @ vectors
        parts.append(np.column_stack([at, np.full(len(at), rng.uniform(0.3, 1.0))]))
    columns = np.concatenate(parts)
    columns = columns[_lie_within(columns, shape)]
    at = columns[:, :2].astype(int)
    columns[:, 2] *= thickness[at[:, 0], at[:, 1]]
    columns = columns[columns[:, 2] > 0]
    return _disordered(columns, shape, spacing, rng)


def _lie_within(columns: Array, shape: Shape) -> Array:
    at = columns[:, :2]
    return np.asarray(((at >= 0) & (at < np.array(shape))).all(axis=1))


def _disordered(columns: Array, shape: Shape, spacing: float, rng: Rng) -> Array:
    """With strain, vacancies and foreign atoms, each in some frames only."""
    if rng.random() < 0.4:  # smooth strain
        for axis in range(2):
            wave = rng.uniform(-2, 2, 2) * 2 * np.pi / np.array(shape)
            phase = columns[:, :2] @ wave + rng.uniform(0, 2 * np.pi)
            columns[:, axis] += rng.uniform(0, 0.15) * spacing * np.sin(phase)
    if rng.random() < 0.3:  # thermal, static
        columns[:, :2] += rng.normal(size=(len(columns), 2)) * rng.uniform(0, 0.05) * spacing
    if rng.random() < 0.5:  # vacancies
        columns = columns[rng.random(len(columns)) > rng.uniform(0, 0.05)]
    if rng.random() < 0.5:  # foreign atoms
        foreign = rng.random(len(columns)) < rng.uniform(0, 0.1)
        columns[foreign, 2] *= rng.uniform(0.3, 2.0)
    return columns[_lie_within(columns, shape)]


def image(specimen: Specimen, shape: Shape, kind: str, rng: Rng) -> Array:
    """What the microscope makes of a specimen: (H, W), not below zero."""
    points = np.fft.fft2(_splatted(specimen.columns, shape))
    fy, fx = np.fft.fftfreq(shape[0])[:, None], np.fft.fftfreq(shape[1])[None, :]
    q2 = fy**2 + fx**2
    spacing = specimen.spacing
    film = np.fft.fft2(specimen.film * rng.normal(size=shape))
    if kind == "hrtem":
        width = max(rng.uniform(0.08, 0.16) * spacing, 0.7)
        matter = points * np.exp(-2 * np.pi**2 * width**2 * q2) * spacing**2
        matter += film * np.exp(-2 * np.pi**2 * (0.15 * spacing) ** 2 * q2) * spacing * 0.25
        phase = np.fft.ifft2(matter).real * rng.uniform(0.1, 1.2)
        n_slices = int(rng.integers(1, 4))
        wave = np.ones(shape, complex)
        step = np.exp(-1j * np.pi * q2 * spacing**2 * rng.uniform(0, 0.4))
        for _ in range(n_slices):
            wave = np.fft.ifft2(np.fft.fft2(wave * np.exp(1j * phase / n_slices)) * step)
        defocus, spherical = rng.uniform(-1.2, 1.2), rng.uniform(-0.05, 0.05)
        chi = np.pi * q2 * spacing**2 * defocus + np.pi * (q2 * spacing**2) ** 2 * spherical
        limit = rng.uniform(1.0, 2.5) / spacing  # where the lens transfers nothing any more
        lens = np.exp(-1j * chi - (q2 / limit**2) ** 2)
        return np.asarray(np.abs(np.fft.ifft2(np.fft.fft2(wave) * lens)) ** 2)
    width = max(rng.uniform(0.12, 0.3) * spacing, 1.0)
    probe = np.exp(-2 * np.pi**2 * width**2 * q2)
    matter = np.fft.ifft2((points * spacing**2 + film * spacing * 0.2) * probe).real
    matter += specimen.film
    matter /= np.percentile(matter, 99) + 1e-9
    if kind == "dark field":
        return np.asarray(np.clip(matter, 0, None) + rng.uniform(0.02, 1.0))
    return np.asarray(np.clip(1 - rng.uniform(0.1, 0.7) * matter, 0.02, None))


def _splatted(columns: Array, shape: Shape) -> Array:
    """Points as bilinear deltas on a (H, W) grid."""
    grid = np.zeros(shape)
    floor = np.floor(columns[:, :2]).astype(int)
    part = columns[:, :2] - floor
    for dy, dx in np.ndindex(2, 2):
        weight = np.abs(1 - dy - part[:, 0]) * np.abs(1 - dx - part[:, 1])
        np.add.at(
            grid,
            ((floor[:, 0] + dy) % shape[0], (floor[:, 1] + dx) % shape[1]),
            weight * columns[:, 2],
        )
    return grid


def unit_noise(
    shape: Shape, rng: Rng, along_rows: float = 0.0, along_columns: float = 0.0
) -> Array:
    """Normal noise of unit variance whose neighbours correlate by these numbers, 0 to 0.6.

    Along rows means between left and right, as in a scanning detector. Correlations fall
    exponentially with the distance.
    """
    noise = rng.normal(size=shape)
    for axis, correlation in ((1, along_rows), (0, along_columns)):
        if correlation:
            noise = _exponentially_correlated(noise, correlation, axis)
    return noise


def _exponentially_correlated(noise: Array, correlation: float, axis: int) -> Array:
    """A first-order autoregression along an axis, made stationary, on a ring."""
    n = noise.shape[axis]
    angle = 2 * np.pi * np.fft.fftfreq(n)
    response = np.sqrt(1 - correlation**2) / np.abs(1 - correlation * np.exp(-1j * angle))
    response = response.reshape((-1, 1) if axis == 0 else (1, -1))
    return np.asarray(np.fft.ifft(np.fft.fft(noise, axis=axis) * response, axis=axis).real)
