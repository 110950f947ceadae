"""Accuracy and time put together: what a budget costs, what it brings, and which one to take."""

from __future__ import annotations

from trtprune.frontier.choosing import Rule, front, recommend
from trtprune.frontier.joining import Joined, Point, join, read_report

__all__ = ["Joined", "Point", "Rule", "front", "join", "read_report", "recommend"]
