"""The report of ``doctor``: one line per check."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from trtprune.reports.tables import wrap

__all__ = ["INFO", "MISSING", "OK", "PROBLEM", "Check", "Report"]

OK, MISSING, PROBLEM, INFO = "ok", "missing", "problem", "info"
MARKS = {OK: "ok     ", MISSING: "missing", PROBLEM: "PROBLEM", INFO: "       "}


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
        name: Name of the examined part.
        status: ``ok``, ``missing`` (optional, not installed), ``problem`` (must be fixed) or ``info``.
        text: The finding.
        fix: The command that installs or repairs it.
        enables: The features that it would enable.
    """

    name: str
    status: str
    text: str
    fix: str | None = None
    enables: str | None = None


@dataclass(frozen=True)
class Report:
    """All checks, in order."""

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether no check found a problem; optional parts may be missing."""
        return all(check.status != PROBLEM for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """The data of ``doctor --json``."""
        return {"ok": self.ok, "checks": [dataclasses.asdict(check) for check in self.checks]}

    def render(self, columns: int | None = None) -> str:
        """The report as lines of text, at most ``columns`` wide if lines can break; commands stay whole."""
        width = max((len(check.name) for check in self.checks), default=0)
        lines = []
        for check in self.checks:
            indent = " " * (len(MARKS[OK]) + width + 4)
            lines += wrap(f"{MARKS[check.status]}  {check.name:<{width}}  {check.text}", columns, indent)
            if check.fix:
                lines.append(f"{indent}-> {check.fix}")
            if check.enables:
                lines += wrap(f"{indent}   enables {check.enables}", columns, f"{indent}   ")
        problems = [check.name for check in self.checks if check.status == PROBLEM]
        lines.append("")
        lines.append(f"problems: {', '.join(problems)}" if problems else "no problems; what is missing is optional")
        return "\n".join(lines)
