"""Settings of the job `serve`: what a request may ask for."""

from dataclasses import dataclass

from configs.bounds import positive


@dataclass(frozen=True)
class LimitsConfig:
    """What is refused, so that no client can take all memory or time. The files and pixels of a
    medium have their limits in `data.media`."""

    body_bytes: int = 32 << 20
    """Bytes of a request's body; with more the answer is 413. Media in it are a third larger than
    their files."""
    media_bytes: int = 128 << 20
    """Bytes of all media of a request together, without files under `media_root`; with more the
    answer is 413."""
    items: int = 256
    """Items of a request; with more the answer is 400."""
    requests: int = 128
    """Requests that wait or are worked on at the same time; a further one is answered 429."""
    timeout_s: float = 120.0
    """Seconds of a request, its body's way included; later the answer is 504. At the end of the
    job, running requests have as long to finish."""
    remote_timeout_s: float = 10.0
    """Seconds in which a medium named by an http URL must be there."""


SERVING_CHECKS = {
    LimitsConfig: lambda n: positive(
        n, "body_bytes", "media_bytes", "items", "requests", "timeout_s", "remote_timeout_s"
    ),
}
"""What is wrong in each section by itself, by its class."""
