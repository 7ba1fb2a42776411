"""What a report tells: numbers, curves and pictures, without a word of how they are drawn."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

if TYPE_CHECKING:
    from n2sr_deploy.noise import Noise
    from n2sr_deploy.sampling import AnyArray, FloatArray

LineAxis = Literal["row", "column"]
PeakState = Literal["kept", "weakened", "lost", "unsupported"]
Level = Literal["good", "caution", "bad"]


@dataclass(frozen=True, kw_only=True)
class Peak:
    """A sharp peak of the noisy or the denoised frame's power spectrum: a Bragg reflection.

    Speckle of a diffuse spectrum, streaks of edges and periodic offsets of lines are none.
    """

    frequency: tuple[float, float]
    """Cycles per pixel along rows' and columns' index, (f_y, f_x); one of the two of a pair."""
    strength: float
    """Its power in the noisy frame, in units of the noise's at that frequency."""
    kept: float
    """Share of its amplitude that the denoised frame has; 1: all."""
    state: PeakState
    """Kept from 0.7 of the amplitude, lost below 0.3; unsupported: not in the noisy frame."""
    denial: float
    """By how many standard errors the residual contradicts it; 0: it does not."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the residual is not noise."""

    row: int
    column: int
    size: float
    """Radius (standard deviation of the Gaussian window) it is most significant at, in pixels."""
    sigmas: float
    """The residual there, locally averaged, in standard errors of the noise."""
    is_invented: bool
    """Whether the denoised frame has a structure there that the data contradict; else data have
    one that it lacks."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Rings:
    """Means over rings of spatial frequency; powers in units of the noise's in that ring."""

    frequency: AnyArray
    """(N,), cycles per pixel."""
    noisy: AnyArray
    denoised: AnyArray
    residual: AnyArray
    residual_error: AnyArray
    """Standard error of `residual` if it is noise."""
    signal_left: AnyArray
    """Share of the signal's power that stays in the residual; NaN where no signal is seen."""
    signal_left_error: AnyArray
    noise_left: AnyArray
    """Share of the noise's power that the denoised frame has where no signal is seen; NaN where
    the ring has no such frequency."""


@dataclass(frozen=True, kw_only=True, eq=False)
class VarianceCurve:
    """The residual's variance over the denoised intensity; counts, counts squared."""

    intensity: AnyArray
    variance: AnyArray
    error: AnyArray
    expected: AnyArray
    """By the noise model."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Confirmation:
    """How much of what half-results show is in the pixels they never saw; by frequency."""

    frequency: AnyArray
    """(N,), cycles per pixel: the middles of rings; the ring and those beside it are summed."""
    along: LineAxis | None
    """The axis whose frequency it is, of any across it; None: of rings around zero frequency."""
    share: AnyArray
    """1 where all that is shown is in the frame, 0 where nothing is; above 1 where the frame has
    more of it."""
    error: AnyArray
    """Standard error of `share`."""
    is_confirmed: AnyArray
    """(N,) bool: whether it surely is above 0, and at least a half."""
    resolution: float | None
    """The highest frequency that is confirmed; None: there is none."""


class Correlation(NamedTuple):
    """0 of what is independent, at most 1."""

    value: float
    error: float
    """Standard error, of what is independent."""


@dataclass(frozen=True, kw_only=True)
class Excess:
    """What a second exposure tells, in variances of the noisy frame."""

    noisy: float
    """The noise of the noisy frame: half the mean squared difference of the two."""
    denoised: float
    """The true squared error that the second exposure implies for the denoised frame."""
    error: float
    """Standard error of `denoised`, from the scatter between blocks of 32 x 32 pixels."""
    reported: float | None
    """What the standard error says it should be: the mean of its square; None without one."""
    shift: tuple[float, float] | None
    """By how many pixels, rows and columns, the second lies off the noisy frame; of a lattice the
    shortest such way. 0 where it cannot be told from none, None where nothing can be told."""
    shared_noise: Correlation | None
    """Of the two frames' noise: 0 of two exposures, 1 of copies; None, here and below, where too
    few frequencies show no signal."""
    own_noise: Correlation | None
    """Of the denoised frame with the noisy one's noise, where no signal is seen."""
    other_noise: Correlation | None
    """Likewise with the second's, which it cannot know of unless it was made from it."""
    noise_ratio: float
    """The standard deviation of the second's noise over that of the noisy frame's."""
    noise_ratio_error: float


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The answer to one question."""

    question: str
    level: Level
    answer: str
    """In a sentence, with its numbers."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ReportFindings:
    """All that a report shows of one frame; intensities in counts."""

    noisy: FloatArray
    """(H, W), mended as `n2sr denoise` mends it."""
    denoised: FloatArray
    """(H, W)."""
    residual: FloatArray
    """(H, W): noisy - denoised; 0 where a hot pixel was."""
    standard_error: FloatArray | None
    """(H, W): calibrated standard error of `denoised`, where it is known."""
    noise: Noise
    """Measured from the noisy frame alone."""
    mended: str
    """What was mended, in words; empty when nothing was."""
    residual_std: float
    autocorrelation: AnyArray
    """(2 R + 1, 2 R + 1), of the residual; its middle is 1."""
    noise_autocorrelation: AnyArray
    """The same of the noise, as its spectrum's floor has it."""
    autocorrelation_error: float
    """Standard error of `autocorrelation`."""
    noisy_spectrum: AnyArray
    """(h, w): power over the noise's, zero frequency in the middle; of the frame's middle."""
    denoised_spectrum: AnyArray
    rings: Rings
    noise_left: float
    """Share of the noise's standard deviation that the denoised frame has where no signal is."""
    variance: VarianceCurve
    peaks: tuple[Peak, ...]
    places: tuple[Place, ...]
    """The most significant first."""
    confirmation: Confirmation | None
    """None where the network is not known."""
    excess: Excess | None
    pixel_size: tuple[float, float] | None
    """(height, width), in `unit`; None when unknown."""
    unit: str | None
    verdicts: tuple[Verdict, ...] = field(default=())

    def describe(self) -> str:
        """The verdicts in words, on a few lines."""
        return "\n".join(
            f"{verdict.question} [{verdict.level}]\n  {verdict.answer}" for verdict in self.verdicts
        )

    def to_dict(self) -> dict[str, Any]:
        """The verdicts and the numbers behind them, as JSON keeps them; no pictures or curves."""
        resolution = self.confirmation.resolution if self.confirmation else None
        return {
            "verdicts": [asdict(verdict) for verdict in self.verdicts],
            "noise": self.noise.to_dict(),
            "mended": self.mended,
            "residual_std": self.residual_std,
            "noise_left": self.noise_left,
            "peaks": {state: self.counted(state) for state in get_args(PeakState)},
            "places": [asdict(place) for place in self.places],
            "confirmed_cycles_per_pixel": resolution,
            "excess": None if self.excess is None else asdict(self.excess),
        }

    def length_of(self, n_pixels: float, along: LineAxis | None = None) -> float | None:
        """In `unit`, along a column or, as of all directions, along a row; None when unknown."""
        if self.pixel_size is None:
            return None
        height, width = self.pixel_size
        return n_pixels * (height if along == "column" else width)

    def counted(self, state: PeakState) -> int:
        """How many peaks are in this state."""
        return sum(peak.state == state for peak in self.peaks)
