"""The findings in words, and where the lines are drawn between good, caution and bad.

Each limit stands here once, with its reason; docs/report.md tells them to users.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from n2sr_deploy.formats.units import length_told
from n2sr_deploy.report.findings import Level, Verdict
from n2sr_deploy.report.places import MOST_TOLD
from n2sr_deploy.words import are, counted

if TYPE_CHECKING:
    from n2sr_deploy.report.findings import Excess, Place, ReportFindings

SIGNAL_LEFT = 0.2, 0.4
"""Shares of the signal's power, in the worst ring of frequencies, from which it counts as left in
the residual (caution, bad): a fifth of the power is 45 % of the amplitude. Only what exceeds noise
by four standard errors counts."""
LOST_PEAKS = 0.1, 0.3
"""Shares of the Bragg peaks that are weakened below 0.7 or lost."""
FEW_PEAKS = 4
"""Of so few peaks the shares alone are no worse than caution: one or two may be noise."""
NOISE_LEFT = 0.15, 0.3
"""Shares of the noise's standard deviation that stay where no signal is seen. A perfect
result has up to 0.1, since signal too faint to be seen counts as well."""
EMPTY_RESIDUAL = 0.5, 0.1
"""Residuals of a smaller share of the noise's standard deviation (caution, bad) are no evidence:
what a result kept of the noise hides the signal that it may lack. A perfect result leaves 1."""
PLACES = 0, 10
"""Places with a structure that data deny, or lack, beyond chance: more than these."""
SURELY_INVENTED = 8.0
"""Standard errors by which data deny a peak or a place: one suffices for the worst verdict."""
DRIFTED = 0.3, 1.0
"""Pixels by which a second exposure lies off (told, too many): from one on the sharpest detail
does not match, and the error measured is the drift's."""
OTHER_NOISE = 0.05
"""By which share the two exposures' noise may differ in strength; interpolation makes it weaker."""
SHARED_NOISE = 0.1
"""Correlation that noise in common exceeds by three standard errors, which are about 0.1 of frames
of 128 x 128 and 0.3 of 48 x 48. Of two exposures signal too faint to be seen makes up to 0.02."""
_SURE = 4.0  # standard errors
_STRONG = 3.0  # standard errors by which a ring's signal must be seen to speak of its share

SIGNAL, NOISE, INVENTED, SECOND = (
    "Is signal left in the residual?",
    "Is noise left in the result?",
    "Did anything appear that the data do not support?",
    "What does the second exposure say?",
)


class WorstRing(NamedTuple):
    """Where the largest share of the signal stays in the residual."""

    frequency: float
    """Cycles per pixel."""
    share: float
    """Of the signal's power; 0 where none is left for sure."""


def verdicts(findings: ReportFindings) -> tuple[Verdict, ...]:
    """One for each question; the fourth where there is a second exposure."""
    signal = _signal_left(findings)
    lacks_much = signal.level == "bad" and _residual_share(findings) >= EMPTY_RESIDUAL[1]
    answers = [signal, _noise_left(findings), _invented(findings, lacks_much=lacks_much)]
    if findings.excess is not None:
        answers.append(_second(findings.excess))
    return tuple(answers)


def worst_ring(findings: ReportFindings) -> WorstRing:
    """The ring of frequencies with the largest share of its signal left, if noise cannot be it."""
    rings = findings.rings
    share, error = rings.signal_left, rings.signal_left_error
    with np.errstate(invalid="ignore"):
        sure = (share > _SURE * error) & (error < 1 / _STRONG) & (error > 0)
    if not sure.any():
        return WorstRing(0.0, 0.0)
    index = int(np.argmax(np.where(sure, share, -np.inf)))
    return WorstRing(float(rings.frequency[index]), float(share[index]))


def _level(value: float, limits: tuple[float, float]) -> Level:
    return "bad" if value > limits[1] else "caution" if value > limits[0] else "good"


def _peaks_level(damaged: int, n_peaks: int) -> Level:
    level = _level(damaged / max(n_peaks, 1), LOST_PEAKS)
    return "caution" if level == "bad" and n_peaks < FEW_PEAKS else level


def _worst(*levels: Level) -> Level:
    return max(levels, key=("good", "caution", "bad").index)


def _signal_left(findings: ReportFindings) -> Verdict:
    ring = worst_ring(findings)
    real = [peak for peak in findings.peaks if peak.state != "unsupported"]
    damaged = sum(peak.state != "kept" for peak in real)
    lacking = [place for place in findings.places if not place.is_invented]
    share = _residual_share(findings)
    level = _worst(
        _level(-share, (-EMPTY_RESIDUAL[0], -EMPTY_RESIDUAL[1])),
        _level(ring.share, SIGNAL_LEFT),
        _peaks_level(damaged, len(real)),
        _level(len(lacking), PLACES),
    )
    told = []
    if ring.share > SIGNAL_LEFT[0]:
        how_much = f"{ring.share:.0%}" if ring.share < 1 else "all"  # of a noisy estimate of it
        told.append(
            f"{how_much} of the signal's power at {_length(ring.frequency, findings)} "
            "stays in the residual"
        )
    if damaged:
        told.append(
            f"{damaged} of {counted(len(real), 'Bragg peak')} {are(damaged)} weakened or lost"
        )
    if lacking:
        told.append(f"{_places(lacking)} the residual shows structure that noise does not make")
    if share < EMPTY_RESIDUAL[1]:
        told.insert(0, f"{_share_of_noise(share)}: the result is hardly another than the frame")
    elif share < EMPTY_RESIDUAL[0]:
        told.insert(0, f"{_share_of_noise(share)}: most of the noise stayed in the result")
    if share < EMPTY_RESIDUAL[0]:
        return Verdict(
            question=SIGNAL, level=level, answer=f"That cannot be told: {'; '.join(told)}."
        )
    if not told:
        peaks = _all_kept(len(real))
        return Verdict(
            question=SIGNAL,
            level=level,
            answer=f"None is seen: the residual rises above the noise at no frequency; {peaks}.",
        )
    beginning = {"good": "Hardly", "caution": "Some", "bad": "Yes"}[level]
    return Verdict(question=SIGNAL, level=level, answer=f"{beginning}: {'; '.join(told)}.")


def _all_kept(n_peaks: int) -> str:
    few = "no Bragg peaks are seen", "the one Bragg peak seen is kept", "both Bragg peaks are kept"
    return few[n_peaks] if n_peaks < len(few) else f"all {n_peaks} Bragg peaks are kept"


def _residual_share(findings: ReportFindings) -> float:
    """The residual's standard deviation over the noise's; 1 of a perfect result."""
    return findings.residual_std / max(findings.noise.std, 1e-30)


def _share_of_noise(share: float) -> str:
    if share == 0:
        return "the residual is empty"
    return f"the residual has only {share:.1%} of the noise's standard deviation"


def _noise_left(findings: ReportFindings) -> Verdict:
    share = findings.noise_left
    level = _level(share, NOISE_LEFT)
    beginning = {"good": "Hardly any", "caution": "Some", "bad": "Yes"}[level]
    return Verdict(
        question=NOISE,
        level=level,
        answer=f"{beginning}: {share:.1%} of the noise's standard deviation stays at frequencies "
        "where the frame shows no signal.",
    )


def _invented(findings: ReportFindings, *, lacks_much: bool) -> Verdict:
    peaks = findings.counted("unsupported")
    invented = [place for place in findings.places if place.is_invented]
    level = _worst(_level(peaks, (0, 2)), _level(len(invented), PLACES))
    denials = [peak.denial for peak in findings.peaks if peak.state == "unsupported"]
    denials += [abs(place.sigmas) for place in invented]
    if max(denials, default=0.0) > SURELY_INVENTED:
        level = "bad"
    if 2 * len(invented) < len(findings.places) and not peaks and level == "bad":
        level = "caution"  # what is blurred lacks more than it adds
    told = []
    if level == "good" and _residual_share(findings) < EMPTY_RESIDUAL[1]:
        return Verdict(
            question=INVENTED,
            level="caution",
            answer=f"That cannot be told: {_share_of_noise(_residual_share(findings))}.",
        )
    if level == "good":
        none = "no peak and no local structure of the result is denied by the residual"
        if not lacks_much:
            return Verdict(
                question=INVENTED,
                level=level,
                answer=f"Nothing that this frame could contradict: {none}.",
            )
        level = "caution"
        told.append(none)
    if peaks:
        told.append(
            f"{counted(peaks, 'peak')} of the result's spectrum {are(peaks)} not in the data"
        )
    if invented:
        told.append(f"{_places(invented)} the result shows a structure that the data deny")
    if lacks_much:  # what is drawn instead is too much like what is missing to be denied
        told.append(
            "with so much signal left in the residual, the network has not learned this frame (it "
            "was trained too shortly, or on another specimen), or the result is blurred"
        )
    return Verdict(
        question=INVENTED,
        level=level,
        answer=f"{'Yes' if level == 'bad' else 'Perhaps'}: {'; '.join(told)}.",
    )


def _second(excess: Excess) -> Verdict:
    reason = _meaningless(excess)
    if reason is not None:
        return Verdict(question=SECOND, level="caution", answer=f"That cannot be told: {reason}.")
    times = excess.noisy / excess.denoised if excess.denoised > 2 * excess.error else None
    level: Level = "good" if excess.denoised < excess.noisy / 4 else "caution"
    level = "bad" if excess.denoised >= excess.noisy else level
    answer = (
        f"The error left is {excess.denoised:.4f} ± {excess.error:.4f} of the frame's variance, "
        f"the noise was {excess.noisy:.4f}"
    )
    if times is not None:
        answer += f": {times:.3g} times less" if times > 1 else ": no better than the noisy frame"
    if excess.reported is not None:
        answer += f"; the standard error says {excess.reported:.4f}"
    if _drift(excess) > DRIFTED[0]:
        answer += f"; a drift of {_drift(excess):.1f} px between the two counts as error"
    return Verdict(question=SECOND, level=level, answer=answer + ".")


def _meaningless(excess: Excess) -> str | None:
    """Why the excess error tells nothing; None where it does."""
    shared, own, other = excess.shared_noise, excess.own_noise, excess.other_noise
    if shared is not None and shared.value > SHARED_NOISE + 3 * shared.error:
        return (
            f"the second exposure has the noise of the noisy frame (correlation "
            f"{shared.value:.2f}), so one was made from the other; give another exposure"
        )
    if (
        own is not None
        and other is not None
        and other.value - own.value > SHARED_NOISE + 3 * math.hypot(own.error, other.error)
    ):
        return (
            f"the result has noise of the second exposure (correlation {other.value:.2f}; "
            f"with that of the noisy frame {own.value:.2f}), so it was made from that one; "
            "judge it by the frame it was made from"
        )
    if abs(excess.noise_ratio - 1) > OTHER_NOISE + 3 * excess.noise_ratio_error:
        return (
            f"the second exposure's noise is {excess.noise_ratio:.2f} times as strong as the noisy "
            "frame's, but would have to be as strong; give an exposure of the same dose and gain, "
            "as it came or moved by whole pixels"
        )
    if _drift(excess) > DRIFTED[1]:
        return (
            f"the second exposure has drifted by {_drift(excess):.1f} px, which would count as "
            "error of the result; move one by whole pixels first, or give two that follow each "
            "other"
        )
    return None


def _drift(excess: Excess) -> float:
    """Pixels; 0 where it is not known."""
    return math.hypot(*(excess.shift or (0.0, 0.0)))


def _places(places: list[Place]) -> str:
    first = places[0]
    at = f"row {first.row}, column {first.column} ({abs(first.sigmas):.1f} sigma)"
    if len(places) == 1:
        return f"at {at}"
    more = "or more " if len(places) >= MOST_TOLD else ""
    return f"at {len(places)} {more}places, first {at},"


def _length(frequency: float, findings: ReportFindings) -> str:
    """A spatial frequency as a length."""
    pixels = 1 / frequency
    length = findings.length_of(pixels)
    if length is None:
        return f"{pixels:.3g} px"
    return f"{length_told(length, findings.unit or 'units')} ({pixels:.3g} px)"
