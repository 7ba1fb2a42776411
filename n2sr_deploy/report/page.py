"""The report as one page of HTML that needs nothing beside it."""

from __future__ import annotations

import base64
from html import escape
from typing import TYPE_CHECKING

from n2sr_deploy.report.drawing import LEVELS, columns_of, panel_png
from n2sr_deploy.report.panels import panels
from n2sr_deploy.version import VERSION

if TYPE_CHECKING:
    from n2sr_deploy.report.findings import ReportFindings, Verdict
    from n2sr_deploy.report.panels import Panel

_STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 1840px; padding: 28px 32px 48px; background: #f6f7f9;
  color: #1b2430; font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif;
  overflow-wrap: anywhere; }
h1 { font-size: 26px; margin: 0 0 2px; } h2 { font-size: 16px; margin: 0 0 6px; }
p { margin: 0; } .small { color: #5b6673; font-size: 13.5px; }
.verdicts { display: grid; gap: 10px; margin: 16px 0 14px; }
.verdict { display: grid; grid-template-columns: 40px 330px 1fr; align-items: center; gap: 12px;
  background: white; border-radius: 10px; padding: 12px 16px; border-left: 6px solid; }
.mark { color: white; border-radius: 50%; width: 32px; height: 32px; text-align: center;
  font: bold 18px/32px system-ui, "DejaVu Sans", sans-serif; }
.panels { display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: 14px;
  margin-top: 14px; }
.over2 { grid-column: span 2; } .over4 { grid-column: 1 / -1; }
figure { background: white; border-radius: 10px; margin: 0; padding: 14px 16px; }
figure img { width: 100%; display: block; } figcaption { color: #5b6673; font-size: 13.5px;
  margin-top: 4px; }
@media (max-width: 1200px) { .panels { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .over2 { grid-column: 1 / -1; } }
@media (max-width: 650px) { .panels { grid-template-columns: minmax(0, 1fr); } }
@media (max-width: 900px) { .verdict { grid-template-columns: 40px 1fr; }
  .verdict p:last-child { grid-column: 2; } }
"""


def page(findings: ReportFindings, title: str, lines: tuple[str, ...] = ()) -> str:
    """The whole page.

    Parameters
    ----------
    findings
        What was measured.
    title
        The heading: what was denoised.
    lines
        Told below the heading: files, model, draws.

    Raises
    ------
    MissingExtraError
        When matplotlib is not installed.
    """
    told = [*lines, f"found in the noisy frame: {findings.noise.describe()}"]
    if findings.mended:
        told.append(f"mended first: {findings.mended}")
    verdicts = "\n".join(_verdict(verdict) for verdict in findings.verdicts)
    figures = "\n".join(_figure(panel, findings) for panel in panels(findings))
    below = "".join(f'<p class="small">{escape(line)}</p>' for line in told)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width">\n<title>{escape(title)}</title>\n'
        f"<style>{_STYLE}</style></head>\n<body>\n<h1>{escape(title)}</h1>\n"
        f'<div class="verdicts">\n{verdicts}\n</div>\n{below}\n'
        f'<div class="panels">\n{figures}\n</div>\n'
        f'<p class="small" style="margin-top:22px">Made by n2sr {VERSION}. A report judges what '
        "this frame can tell: structure weaker than its noise can neither be confirmed nor "
        "denied by it.</p>\n</body></html>\n"
    )


def _figure(panel: Panel, findings: ReportFindings) -> str:
    columns = columns_of(findings.noisy.shape) if panel.is_picture else 1
    return (
        f'<figure class="over{columns}"><h2>{escape(panel.title)}</h2>'
        f'<img alt="{escape(panel.title)}" src="data:image/png;base64,'
        f'{base64.b64encode(panel_png(panel, findings)).decode()}">'
        f"<figcaption>{escape(panel.caption)}</figcaption></figure>"
    )


def _verdict(verdict: Verdict) -> str:
    mark, colour = LEVELS[verdict.level]
    return (
        f'<div class="verdict" style="border-color:{colour}"><span class="mark" '
        f'style="background:{colour}" title="{verdict.level}">{mark}</span>'
        f"<p><b>{escape(verdict.question)}</b></p><p>{escape(verdict.answer)}</p></div>"
    )
