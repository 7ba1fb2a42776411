"""Judges a denoised frame by the noisy one, in pictures, numbers and words.

`measure` is what is true, `panels`, `drawing` and `page` are how it looks, `verdicts` says
what it means; `report_on` writes it. Drawing needs the extra ``report`` (matplotlib); measuring
does not.
"""

from __future__ import annotations

from n2sr_deploy.report.cross_validation import HalfResult, Halves
from n2sr_deploy.report.findings import ReportFindings, Verdict
from n2sr_deploy.report.measuring import check_size, measure
from n2sr_deploy.report.reporting import Known, check_report, known, picture_of, report_on

__all__ = [
    "HalfResult",
    "Halves",
    "Known",
    "ReportFindings",
    "Verdict",
    "check_report",
    "check_size",
    "known",
    "measure",
    "picture_of",
    "report_on",
]
