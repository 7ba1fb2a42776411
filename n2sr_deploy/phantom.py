"""A clean lattice phantom and noisy draws from it, for trying n2sr without data.

A crystalline particle on a crystalline support in vacuum, a wedge in thickness, thin amorphous
film over all: what high-resolution frames are made of, none of it anybody's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from n2sr_deploy.errors import SettingError

if TYPE_CHECKING:
    from n2sr_deploy.backends.base import InputShape
    from n2sr_deploy.pattern import Shape
    from n2sr_deploy.sampling import AnyArray, FloatArray

_EDGE = 6.0  # pixels over which one region gives way to another
_FILM_STRENGTH = 0.03
_LOW, _HIGH = 0.25, 0.65  # intensities of the phantom, of a full-scale count of 1
_FILM_SEED = 0x66696C6D  # beside a seed, so that noise drawn with that seed alone is independent


@dataclass(frozen=True, kw_only=True)
class _Crystal:
    """A two-dimensional lattice with atom columns as Gaussians; lengths in atom spacings."""

    a: float
    b: float
    angle_deg: float
    """Of the first lattice vector against the rows."""
    gamma_deg: float
    """Between the lattice vectors."""
    columns: tuple[tuple[float, float, float, float], ...]
    """Fractional place (u, v), strength, width in spacings."""

    def image(self, y: AnyArray, x: AnyArray, spacing: float) -> AnyArray:
        """Its intensity at the points (y, x), in pixels."""
        angle, gamma = np.deg2rad(self.angle_deg), np.deg2rad(self.angle_deg + self.gamma_deg)
        vectors = spacing * np.array(
            [
                [self.a * np.cos(angle), self.a * np.sin(angle)],
                [self.b * np.cos(gamma), self.b * np.sin(gamma)],
            ]
        )
        inverse = np.linalg.inv(vectors)
        u = x * inverse[0, 0] + y * inverse[1, 0]
        v = x * inverse[0, 1] + y * inverse[1, 1]
        total = np.zeros(np.broadcast_shapes(y.shape, x.shape))
        for at_u, at_v, strength, width in self.columns:
            near_u, near_v = u - at_u - np.round(u - at_u), v - at_v - np.round(v - at_v)
            for i, j in np.ndindex(3, 3):  # the cell and its neighbours
                dx = (near_u + i - 1) * vectors[0, 0] + (near_v + j - 1) * vectors[1, 0]
                dy = (near_u + i - 1) * vectors[0, 1] + (near_v + j - 1) * vectors[1, 1]
                total += strength * np.exp(-(dx**2 + dy**2) / (2 * (width * spacing) ** 2))
        return total


_SUPPORT = _Crystal(
    a=1.25,
    b=1.7,
    angle_deg=11,
    gamma_deg=80,
    columns=((0, 0, 0.9, 0.22), (0.5, 0.45, 0.7, 0.25), (0.25, 0.75, -0.45, 0.2)),
)
_PARTICLE = _Crystal(a=1, b=1, angle_deg=-7, gamma_deg=60, columns=((0, 0, 1.2, 0.21),))


def clean_phantom(shape: Shape = (512, 512), *, spacing: float = 24.0, seed: int = 0) -> FloatArray:
    """The clean phantom.

    Parameters
    ----------
    shape
        (H, W), at least 32 x 32.
    spacing
        Between atom columns, in pixels, at least 4.
    seed
        Of the amorphous film.

    Returns
    -------
    (H, W) float32 between 0.25 and 0.65.

    Raises
    ------
    SettingError
        When the shape or the spacing is too small.
    """
    height, width = shape
    if height < 32 or width < 32:
        raise SettingError(f"shape is {height} x {width}, but a phantom needs at least 32 x 32")
    if not spacing >= 4:
        raise SettingError(f"spacing is {spacing} pixels, but must be at least 4")
    y, x = np.arange(height)[:, None], np.arange(width)[None, :]
    surface = height * (0.58 + 0.04 * np.sin(5 * x / width))
    support = _inside(y - surface)
    from_centre = np.hypot((y / height - 0.38) / 0.24, (x / width - 0.45) / 0.3)
    particle = _inside((1 - from_centre) * 0.24 * height) * (1 - support)
    thickness = 0.7 + 0.6 * x / width
    bulge = np.clip(1.2 - 0.7 * from_centre**2, 0.3, None)
    image = support * thickness * _SUPPORT.image(y, x, spacing)
    image = image + particle * bulge * _PARTICLE.image(y, x, spacing)
    film = _film(shape, spacing, np.random.default_rng([seed, _FILM_SEED]))
    image = image + _FILM_STRENGTH * film
    image = (image - image.min()) / (image.max() - image.min())
    scaled: FloatArray = (_LOW + (_HIGH - _LOW) * image).astype(np.float32)
    return scaled


def noisy_draw(clean: AnyArray, *, gain: float, read_noise: float, seed: int = 0) -> FloatArray:
    """One noisy draw: normal noise of variance gain * clean + read_noise ** 2.

    Parameters
    ----------
    clean
        (H, W), not below zero.
    gain, read_noise
        In units of `clean`; not below zero.
    seed
        Chooses the draw.

    Returns
    -------
    (H, W) float32.

    Raises
    ------
    SettingError
        When a strength is below zero or not finite.
    """
    for name, value in (("gain", gain), ("read_noise", read_noise)):
        if not (value >= 0 and np.isfinite(value)):
            raise SettingError(f"{name} is {value}, but must be 0 or above")
    noise = np.random.default_rng(seed).normal(size=clean.shape)
    noisy: FloatArray = (clean + noise * np.sqrt(gain * clean + read_noise**2)).astype(np.float32)
    return noisy


def counts_to_try(shape: Shape) -> AnyArray:
    """(H, W) uint16: always the same Poisson counts, to try a denoiser on before a frame comes."""
    return np.random.default_rng(0).poisson(100, shape).astype(np.uint16)


def phantom_input(shape: InputShape) -> FloatArray:
    """Of `shape`: what networks are compared on. Of noise alone a good one leaves nothing."""
    n_samples, _, height, width = shape
    whole = clean_phantom((max(height, 32), max(width, 32)), spacing=12)
    top, left = (whole.shape[0] - height) // 2, (whole.shape[1] - width) // 2
    clean = whole[top : top + height, left : left + width]
    noisy = np.stack(
        [noisy_draw(clean, gain=0.02, read_noise=0.02, seed=m) for m in range(n_samples)]
    )
    standardised: FloatArray = (noisy - noisy.mean()) / noisy.std()
    return standardised[:, None]


def _inside(distance: AnyArray) -> AnyArray:
    """A smooth step, 1 well inside."""
    return 1 / (1 + np.exp(-np.clip(distance / _EDGE, -50, 50)))


def _film(shape: Shape, spacing: float, rng: np.random.Generator) -> AnyArray:
    """Band-passed white noise of unit variance."""
    frequency = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None, :])
    band = np.exp(-((frequency * spacing * 0.8 - 1) ** 2) * 4)
    film = np.fft.irfft2(np.fft.rfft2(rng.normal(size=shape)) * band, s=shape)
    result: AnyArray = film / film.std()
    return result
