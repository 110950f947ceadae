"""Runs engine directories: from images and questions to answers.

Needs no torch and no transformers, and knows no model family: an engine directory describes itself.
"""

from __future__ import annotations

from trtprune.runtime.batch import Stream
from trtprune.runtime.conversation import Conversation
from trtprune.runtime.features import Features
from trtprune.runtime.loading import load
from trtprune.runtime.result import Request, Result
from trtprune.runtime.viewing import View
from trtprune.runtime.vlm import Vlm

__all__ = ["Conversation", "Features", "Request", "Result", "Stream", "View", "Vlm", "load"]
