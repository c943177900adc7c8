"""The tearsheet: one HTML file that tells how a run went, reads in any browser, and loads nothing.

A source (`from_ledger`, `from_folder`) gives `ReportData`, `figures` computes, `write_report` writes the page.
"""

from agent.report.data import IncidentRow, NotMeasured, ReportData, ReportError
from agent.report.figures import Figures, figures
from agent.report.page import render, write_report
from agent.report.sources import from_folder, from_ledger

__all__ = [
    "Figures",
    "IncidentRow",
    "NotMeasured",
    "ReportData",
    "ReportError",
    "figures",
    "from_folder",
    "from_ledger",
    "render",
    "write_report",
]
