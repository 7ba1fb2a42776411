"""A report's pictures can be read: no words are cut off or lie on others, no space is wasted."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pytest

from n2sr_deploy.frame import Frame
from n2sr_deploy.report import drawing as drawing_module
from n2sr_deploy.report import measure
from n2sr_deploy.report.findings import Peak, Place
from n2sr_deploy.report.page import page
from n2sr_deploy.report.panels import panels


def findings_of(shape=(192, 224), counts=1.0, *, with_standard_error=True, **known):
    """Of a lattice whose values are about three times `counts`; noise of std 0.6 of them."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    clean = np.cos(2 * np.pi * y / 12) * np.cos(2 * np.pi * x / 12) / 2 + 3
    noisy = clean + 0.6 * np.random.default_rng(3).normal(size=shape)
    return measure(
        Frame(pixels=(counts * noisy).astype("f"), **known),
        (counts * clean).astype("f"),
        standard_error=np.full(shape, 0.1 * counts, "f") if with_standard_error else None,
    )


@pytest.fixture
def drawn(monkeypatch):
    """The figures of all that is drawn, and of each the words with their boxes in pixels."""
    from matplotlib.text import Text

    figures, words = [], []
    draw = Text.draw

    def noted(text, renderer):
        if text.get_visible() and text.get_text().strip():
            words.append((text.get_text(), text.get_window_extent(renderer)))
        draw(text, renderer)

    def finished(figure, dpi):
        words.clear()
        figure.draw_without_rendering()
        figures.append((figure, list(words)))
        return b""

    monkeypatch.setattr(Text, "draw", noted)
    monkeypatch.setattr(drawing_module, "_png", finished)
    return figures


def check_words(drawn):
    for figure, words in drawn:
        whole = figure.bbox
        for text, box in words:
            assert box.x0 >= whole.x0, f"{text!r} is cut off at the left"
            assert box.x1 <= whole.x1, f"{text!r} is cut off at the right"
            assert box.y0 >= whole.y0, f"{text!r} is cut off below"
            assert box.y1 <= whole.y1, f"{text!r} is cut off above"
        for (text, box), (other, its) in combinations(words, 2):
            apart = max(its.x0 - box.x1, box.x0 - its.x1, its.y0 - box.y1, box.y0 - its.y1)
            assert apart > -1, f"{text!r} lies on {other!r}"
            if all(each.height > 2.5 * each.width for each in (box, its)):  # upright words
                assert apart > 0.15 * figure.dpi, f"{text!r} is read with {other!r}"


@pytest.mark.parametrize(
    ("shape", "counts"),
    [
        ((192, 224), 1), ((192, 224), 2e-8), ((192, 224), 900), ((192, 224), 3e4),
        ((192, 224), 7e7),
        ((64, 64), 300), ((160, 1300), 1), ((64, 1300), 1), ((1300, 160), 1), ((96, 300), 100),
    ],
)  # fmt: skip
def test_no_words_are_cut_off_or_lie_on_others(drawn, shape, counts):
    """`beyond the noise's correlation` was read across two panels; a label of variance was cut."""
    findings = findings_of(shape, counts, pixel_size=(0.02, 0.02), unit="nm")
    states = "kept", "weakened", "lost", "unsupported"
    peaks = [
        Peak(frequency=(0.1 * n, 0.1), strength=50, kept=0.5, state=state, denial=9)
        for n, state in enumerate(states)
    ]
    findings = replace(findings, peaks=tuple(peaks * 9))
    page(findings, "a title")
    drawing_module.overview_png(findings, "a title")
    assert len(drawn) == 13
    check_words(drawn)


@pytest.mark.parametrize("shape", [(192, 224), (64, 1300), (1300, 160)])
def test_what_a_report_lacks_is_told_where_it_would_stand(drawn, shape):
    findings = findings_of(shape, with_standard_error=False)
    page(findings, "a title")
    drawing_module.overview_png(findings, "a title")
    check_words(drawn)


@pytest.mark.parametrize("shape", [(96, 300), (160, 1300), (64, 1300), (1300, 160), (192, 224)])
def test_pictures_of_oblong_frames_are_large(drawn, shape):
    """They were a line in a square of white."""
    findings = findings_of(shape)
    for panel in panels(findings)[:4]:
        drawing_module.panel_png(panel, findings)
    drawing_module.overview_png(findings, "a title")
    high = drawing_module._HIGH
    for figure, _ in drawn:
        pictures = figure.subfigs[1] if figure.subfigs else figure
        box = pictures.axes[0].get_window_extent()
        assert box.height / box.width == pytest.approx(shape[0] / shape[1], rel=0.02)
        assert max(box.width, box.height) / figure.dpi > (0.9 if shape[1] < 300 else 1.8) * high
        assert min(box.width, box.height) / figure.dpi > 0.6
    corners = [axis.get_window_extent() for axis in drawn[-1][0].subfigs[1].axes[:4]]
    assert all(a.x1 < b.x0 or a.y0 > b.y1 for a, b in pairwise(corners))


@pytest.mark.parametrize(("counts", "power"), [(2e-8, -18), (1, None), (900, 3), (3e4, 6)])
def test_variances_that_would_be_long_numbers_are_in_powers_of_ten(counts, power):
    findings = findings_of(counts=counts)
    axis = drawing_module._figure((4, 4)).add_subplot()
    panels(findings)[10].draw(axis, findings)
    written = "" if power is None else f"$10^{{{power}}}$ "
    assert axis.get_ylabel() == f"variance / {written}counts²"
    assert 0.3 < axis.get_ylim()[1] < 3000


def test_verdicts_stand_before_details(monkeypatch):
    monkeypatch.setattr(drawing_module, "_png", lambda figure, dpi: b"")
    text = page(findings_of(), "a title", ("how it was made",))
    order = [
        text.index(words)
        for words in ("a title</h1>", "Is signal left", "how it was made", "<h2>Noisy")
    ]
    assert order == sorted(order)


def test_the_colours_of_an_autocorrelation_reach_as_far_as_it():
    """What was ten times the scale's end looked like what just reached it."""
    findings = findings_of()
    excess = findings.autocorrelation.copy()
    excess[10, 10] = 0.7
    axis = drawing_module._figure((4, 4)).add_subplot()
    panels(findings)[6].draw(axis, replace(findings, autocorrelation=excess))
    assert axis.images[0].norm.vmax >= 0.6
    assert axis.images[0].norm.vmin == -axis.images[0].norm.vmax


def test_words_are_those_that_one_would_say():
    """`all 2 Bragg peaks`, and correlations of -0.00."""
    findings = findings_of()
    assert "both Bragg peaks are kept" in findings.verdicts[0].answer
    found = replace(findings.noise, along_rows=(-0.001, 0.0, 0.0), along_columns=(-0.004, 0.0, 0.0))
    assert "correlation of neighbours 0.00 along rows and 0.00 along columns" in found.describe()


def test_every_place_that_a_verdict_counts_has_its_ring():
    """Only the first 20 had: the others looked as if they were noise."""
    findings = findings_of()
    place = Place(row=50, column=60, size=3, sigmas=9, is_invented=False)
    axis = drawing_module._figure((4, 4)).add_subplot()
    panels(findings)[3].draw(axis, replace(findings, places=(place,) * 49))
    assert len(axis.patches) == 49
