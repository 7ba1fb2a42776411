"""The report as pictures, drawn with matplotlib (extra ``report``)."""

from __future__ import annotations

import io
import textwrap
from typing import TYPE_CHECKING, Any

from n2sr_deploy.errors import MissingExtraError
from n2sr_deploy.report.panels import GREEN, INK, ORANGE, panels

if TYPE_CHECKING:
    from n2sr_deploy.report.findings import ReportFindings
    from n2sr_deploy.report.panels import Panel

LEVELS = {
    "good": ("\N{CHECK MARK}", GREEN),
    "caution": ("!", "#B8860B"),
    "bad": ("\N{MULTIPLICATION X}", ORANGE),
}
_WIDTH, _HIGH = 17, 2.77  # of all and of a panel; inches, as are all lengths here
_LEFT, _RIGHT, _BOTTOM, _TOP = 0.75, 0.75, 0.55, 0.35  # around the panels
_ASIDE, _APART = 1.4, 1.1  # between them
_BARE = 0.15  # below pictures, which have no axis
_PANEL = 4.9, 4.45
_TITLE_LETTERS, _ANSWER_LETTERS = 92, 120  # that fit on a line
_TITLE_LINE, _LINE, _GAP, _BELOW = 0.36, 0.21, 0.12, 0.25  # inches
_STYLE: Any = {
    "font.size": 9.5, "axes.titlesize": 11, "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": "#b7bec7", "axes.labelcolor": INK, "text.color": INK, "axes.titlecolor": INK,
    "xtick.color": "#5b6673", "ytick.color": "#5b6673", "axes.spines.top": False,
    "axes.spines.right": False, "grid.color": "#e6e9ed", "legend.frameon": False,
    "legend.fontsize": 8.5, "font.family": "DejaVu Sans",
    "axes.formatter.limits": (-3, 6),  # numbers that fit beside a panel
}  # fmt: skip


def check_drawing() -> None:
    """Raise MissingExtraError unless matplotlib is installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("drawing a report", "matplotlib", "report") from error


def panel_png(panel: Panel, findings: ReportFindings) -> bytes:
    """One panel as a PNG file."""
    width, height = _PANEL
    with _styled():
        figure = _figure(_PANEL)
        axis = figure.add_subplot()
        panel.draw(axis, findings)
        left, bottom = (_LEFT, _BOTTOM) if axis.axison else (0.04, 0.04)
        right = _RIGHT if len(figure.axes) > 1 else 0.12  # of a colour bar's numbers
        figure.subplots_adjust(left / width, bottom / height, 1 - right / width, 1 - 0.2 / height)
        return _png(figure, 150)


def overview_png(findings: ReportFindings, title: str) -> bytes:
    """All panels and the verdicts in one PNG file, for a talk."""
    heading = textwrap.wrap(title, _TITLE_LETTERS)
    answers = [textwrap.wrap(verdict.answer, _ANSWER_LETTERS) for verdict in findings.verdicts]
    heights = (
        _TITLE_LINE * len(heading) + sum(map(_height, answers)) + _BELOW,
        _TOP + _HIGH + _BARE,
        _TOP + 2 * _HIGH + _APART + _BOTTOM,
    )
    with _styled():
        figure = _figure((_WIDTH, sum(heights)))
        header, pictures, others = figure.subfigures(3, 1, height_ratios=heights, hspace=0.0)
        _draw_header(header, heights[0], findings, heading, answers)
        axes = [*_axes(pictures, 1, heights[1], _BARE), *_axes(others, 2, heights[2], _BOTTOM)]
        for axis, panel in zip(axes, panels(findings), strict=True):
            axis.set_title(panel.title)
            panel.draw(axis, findings)
        return _png(figure, 72)


def _axes(part: Any, n_rows: int, height: float, bottom: float) -> Any:
    """Of rows of four panels, in reading order."""
    axes = part.subplots(n_rows, 4)
    part.subplots_adjust(
        _LEFT / _WIDTH, bottom / height, 1 - _RIGHT / _WIDTH, 1 - _TOP / height,
        wspace=4 * _ASIDE / (_WIDTH - _LEFT - _RIGHT - 3 * _ASIDE), hspace=_APART / _HIGH,
    )  # fmt: skip
    return axes.flat


def _height(answer: list[str]) -> float:
    return _LINE * len(answer) + _GAP


def _figure(size: tuple[float, float]) -> Any:
    check_drawing()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # No automatic layout: it moves each panel by what is written beside it.
    figure = Figure(figsize=size, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _styled() -> Any:
    check_drawing()
    import matplotlib as mpl

    return mpl.rc_context(_STYLE)


def _png(figure: Any, dpi: int) -> bytes:
    """As a PNG file."""
    written = io.BytesIO()
    figure.savefig(written, format="png", dpi=dpi, metadata={"Software": None})
    return written.getvalue()


def _draw_header(
    header: Any,
    height: float,
    findings: ReportFindings,
    heading: list[str],
    answers: list[list[str]],
) -> None:
    """As high as it is long: no verdict is cut."""
    top = 0.1
    header.text(
        0.012, 1 - top / height, "\n".join(heading), fontsize=17, weight="bold", va="top",
        linespacing=1.2,
    )  # fmt: skip
    top += _TITLE_LINE * len(heading)
    for verdict, answer in zip(findings.verdicts, answers, strict=True):
        mark, colour = LEVELS[verdict.level]
        y = 1 - (top + _LINE / 2) / height
        header.text(
            0.018, y, mark, fontsize=13, weight="bold", color="white", va="center", ha="center",
            bbox={"boxstyle": "circle,pad=0.25", "facecolor": colour, "edgecolor": "none"},
        )  # fmt: skip
        header.text(0.034, y, verdict.question, fontsize=12, weight="bold", va="center")
        for index, line in enumerate(answer):
            header.text(0.33, y - index * _LINE / height, line, fontsize=11, va="center")
        top += _height(answer)
