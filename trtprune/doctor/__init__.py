"""``trtprune doctor``: what this machine has, what works, and what is missing."""

from __future__ import annotations

from trtprune.doctor.examining import Check, Report, examine

__all__ = ["Check", "Report", "examine"]
