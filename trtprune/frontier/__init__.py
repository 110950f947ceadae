"""Accuracy and time together: the cost and the gain of each budget, and a recommendation."""

from __future__ import annotations

from trtprune.frontier.choosing import Rule, front, recommend
from trtprune.frontier.joining import Joined, Point, join, read_report

__all__ = ["Joined", "Point", "Rule", "front", "join", "read_report", "recommend"]
