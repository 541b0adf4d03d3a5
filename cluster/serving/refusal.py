"""Why a request is refused, as the bodies of OpenAI's errors say it."""

from typing import Any

_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}
"""The `type` of an error by its status; of all others `invalid_request_error`."""


class Refused(Exception):
    """A request gets no vectors; ``status`` is the HTTP status.

    Args:
        param: the field at fault, as in `messages[0].content[1]`.
        code: a word for programs.
        retry: whether clients that try again by themselves may do so.
        retry_after_s: seconds until a client may try again; None: the same request fails again.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        retry: bool = True,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.retry, self.retry_after_s = retry, retry_after_s

    def body(self) -> dict[str, Any]:
        """Return the answer's JSON."""
        kind = _TYPES.get(self.status, "invalid_request_error")
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": error}

    def headers(self) -> dict[str, str]:
        """Return the answer's own headers."""
        headers = {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}
        if not self.retry:
            headers["x-should-retry"] = "false"  # OpenAI's clients try again after each 5xx
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(self.retry_after_s)
        return headers


def wrong(where: str, expected: str, actual: str, advice: str = "") -> Refused:
    """Return the refusal of one field of a request."""
    more = f"; {advice}" if advice else ""
    return Refused(f"{where}: expected {expected}, found {actual}{more}", param=where)
