"""The report of ``doctor``: one line for each thing looked at."""

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
        name: What was looked at.
        status: ``ok``, ``missing`` (optional, not there), ``problem`` (must be mended) or ``info``.
        text: What was found.
        fix: The command that installs or mends it.
        enables: What that would enable.
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
        """No check found a problem; optional parts may be missing."""
        return all(check.status != PROBLEM for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """For ``doctor --json``."""
        return {"ok": self.ok, "checks": [dataclasses.asdict(check) for check in self.checks]}

    def render(self, columns: int | None = None) -> str:
        """The report as lines of text, at most ``columns`` wide where words can be parted; commands stay whole."""
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
