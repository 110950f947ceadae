"""Errors as OpenAI's API gives them: a status and one JSON object, with nothing of the server's files in it."""

from __future__ import annotations

from typing import Any

from trtprune.errors import BudgetError, InputError, TrtpruneError

__all__ = ["ApiError", "Busy", "api_error"]

HIDDEN = "the server failed at this request; its log says why"


class ApiError(Exception):
    """A request that is refused.

    Args:
        status: The HTTP status.
        message: One line.
        kind: OpenAI's ``type``.
        param: The field at fault.
        code: OpenAI's ``code``.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.param, self.code = status, message, kind, param, code

    def body(self) -> dict[str, Any]:
        """The JSON object."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """Headers that belong to the status."""
        if self.status == 401:
            return {"WWW-Authenticate": "Bearer"}
        return {"Retry-After": "1"} if self.status in (429, 503) else {}


class Busy(ApiError):
    """More requests are here than may be."""

    def __init__(self, limit: int) -> None:
        super().__init__(
            429,
            f"the server has {limit} requests already; try again later",
            kind="rate_limit_error",
            code="queue_full",
        )


def api_error(error: Exception) -> ApiError:
    """The answer to a failed request; only faults of the request itself are described."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, BudgetError):
        return ApiError(400, str(error), param="keep")
    if isinstance(error, InputError):
        return ApiError(400, str(error))
    kind = "engine_error" if isinstance(error, TrtpruneError) else "internal_error"
    return ApiError(500, HIDDEN, kind="server_error", code=kind)
