"""The report as pictures, drawn with matplotlib (extra ``report``)."""

from __future__ import annotations

import io
import textwrap
from typing import TYPE_CHECKING, Any

from n2sr_deploy.errors import MissingExtraError
from n2sr_deploy.report.panels import BESIDE, GREEN, INK, ORANGE, panels

if TYPE_CHECKING:
    from n2sr_deploy.pattern import Shape
    from n2sr_deploy.report.findings import ReportFindings
    from n2sr_deploy.report.panels import Panel

LEVELS = {
    "good": ("\N{CHECK MARK}", GREEN),
    "caution": ("!", "#B8860B"),
    "bad": ("\N{MULTIPLICATION X}", ORANGE),
}
_WIDTH, _HIGH = 18, 2.77  # of all and of a panel; inches, as are all lengths here
_LEFT, _RIGHT, _BOTTOM, _TOP = 0.8, 0.75, 0.55, 0.35  # around the panels
_ASIDE, _APART = 1.65, 1.1  # between them
_BARE = 0.3  # below pictures, which have no axis
_PANEL = 3.7, 3.4  # as narrow as a page shows them, so that letters stay readable
_EDGE, _UNDER, _OVER = 0.04, 0.1, 0.2  # around one without an axis; half a number stands outside
_LEAST, _MOST = 1.1, 2 * _HIGH  # heights of a picture; "std of the noise" fits beside the lowest
_WIDE, _WIDEST = 3, 10  # widths over heights from which pictures get two columns, and four
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
    shape = findings.noisy.shape
    width, height = _PANEL
    if panel.is_picture:
        width *= columns_of(shape)
        height = _picture_height(width - _EDGE - _RIGHT, shape) + _OVER + _UNDER
    with _styled():
        figure = _figure((width, height))
        axis = figure.add_subplot()
        panel.draw(axis, findings)
        left, bottom = (_LEFT, _BOTTOM) if axis.axison else (_EDGE, _UNDER)
        right = _RIGHT if panel.is_picture or len(figure.axes) > 1 else 0.12  # a colour bar's
        figure.subplots_adjust(left / width, bottom / height, 1 - right / width, 1 - _OVER / height)
        return _png(figure, 200)


def overview_png(findings: ReportFindings, title: str) -> bytes:
    """All panels and the verdicts in one PNG file, for a talk."""
    heading = textwrap.wrap(title, _TITLE_LETTERS)
    answers = [textwrap.wrap(verdict.answer, _ANSWER_LETTERS) for verdict in findings.verdicts]
    shape = findings.noisy.shape
    n_rows = columns_of(shape)
    high = _picture_height(_panel_width(4 // n_rows), shape)
    heights = (
        _TITLE_LINE * len(heading) + _GAP + sum(map(_height, answers)) + _BELOW,
        n_rows * (_TOP + high + _BARE),
        _TOP + 2 * _HIGH + _APART + _BOTTOM,
    )
    with _styled():
        figure = _figure((_WIDTH, sum(heights)))
        header, pictures, others = figure.subfigures(3, 1, height_ratios=heights, hspace=0.0)
        _draw_header(header, heights[0], findings, heading, answers)
        axes = [
            *_axes(pictures, n_rows, 4 // n_rows, high, heights[1], _BARE, _TOP + _BARE),
            *_axes(others, 2, 4, _HIGH, heights[2], _BOTTOM, _APART),
        ]
        for axis, panel in zip(axes, panels(findings), strict=True):
            axis.set_title(panel.title)
            panel.draw(axis, findings)
        return _png(figure, 72)


def columns_of(shape: Shape) -> int:
    """How many columns, 1, 2 or 4, a picture of this shape gets of the four: wide ones more."""
    ratio = shape[1] / shape[0]
    return 1 if ratio < _WIDE else 2 if ratio < _WIDEST else 4


def _picture_height(width: float, shape: Shape) -> float:
    """Of one that shares this width with its colour bar."""
    return min(max((width - BESIDE) * shape[0] / shape[1], _LEAST), _MOST)


def _panel_width(n_columns: int) -> float:
    return (_WIDTH - _LEFT - _RIGHT - (n_columns - 1) * _ASIDE) / n_columns


def _axes(
    part: Any, n_rows: int, n_columns: int, high: float, height: float, bottom: float, apart: float
) -> Any:
    """Of rows of panels, in reading order."""
    axes = part.subplots(n_rows, n_columns, squeeze=False)
    part.subplots_adjust(
        _LEFT / _WIDTH, bottom / height, 1 - _RIGHT / _WIDTH, 1 - _TOP / height,
        wspace=_ASIDE / _panel_width(n_columns), hspace=apart / high,
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
    top += _TITLE_LINE * len(heading) + _GAP
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
