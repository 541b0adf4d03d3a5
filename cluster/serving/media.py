"""The media of a request to what an `Encoder` takes: bytes, frames, or a path under the root."""

import asyncio
import base64
import binascii
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from cluster.serving.refusal import Refused, wrong
from cluster.serving.remote import Remote
from cluster.serving.request import Medium, RequestItem
from data.containers.addresses import parse_address

FETCHES = 8
"""Media of one request that are fetched at a time."""
DATA_TYPES = {
    "image": ("image/",),
    "page": ("image/", "application/pdf"),
    "video": ("video/",),
}
"""How the media type of a data URL begins, by what it shows."""
FRAMES_TYPE = "video/jpeg"
"""vLLM's type of a video whose frames are JPEG files, each in base64, with commas between them."""


class Media:
    """Reads the media of requests.

    Args:
        root: folder that paths are under; None: paths are refused.
        remote: fetches http and https; None: such URLs are refused.
        max_file_bytes: of one medium.
        max_bytes: of all media of a request that are not paths.
    """

    def __init__(
        self, *, root: Path | None, remote: Remote | None, max_file_bytes: int, max_bytes: int
    ) -> None:
        self._root = root.resolve() if root else None
        self._remote = remote
        self._max_file_bytes, self._max_bytes = max_file_bytes, max_bytes

    async def inputs(self, items: Sequence[RequestItem]) -> list[dict[str, Any]]:
        """Return what an `Encoder` takes for each item.

        Raises:
            Refused: a medium cannot be read; the message names its field.
        """
        budget = _Budget(self._max_bytes)
        turn = asyncio.Semaphore(FETCHES)

        async def read(item: RequestItem) -> dict[str, Any]:
            return item.as_input(item.medium and await self._read(item.medium, budget, turn))

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(read(item)) for item in items]
        except* Refused as refusals:
            first = refusals.exceptions[0]
        else:
            return [task.result() for task in tasks]
        raise first

    async def _read(
        self, medium: Medium, budget: "_Budget", turn: asyncio.Semaphore
    ) -> str | bytes | list[bytes]:
        url, where = medium.url, medium.where
        scheme = url.partition(":")[0].lower() if ":" in url else ""
        if scheme == "data":
            content = await asyncio.to_thread(_decoded, medium, self._max_file_bytes)
            budget.take(content if isinstance(content, list) else [content], where)
            return content
        if scheme in ("http", "https"):
            if self._remote is None:
                advice = "send the medium itself as a data URL; the setting `remote` is off"
                raise wrong(where, "no http URL", scheme, advice)
            async with turn:
                # Counted as it comes: what others fetch at the same time has the same budget.
                return await self._remote.fetch(
                    url,
                    where,
                    max_bytes=self._max_file_bytes,
                    take=lambda part: budget.take([part], where),
                )
        return self._path(medium)

    def _path(self, medium: Medium) -> str:
        """Return the path of a file under the root, with the page behind it."""
        url, where = medium.url, medium.where
        if self._root is None:
            expected = "a data URL" if self._remote is None else "a data URL or an http URL"
            raise wrong(where, expected, "another", "paths need the setting `media_root`")
        if url[:5].lower() == "file:":
            parts = urlsplit(url)
            if parts.netloc not in ("", "localhost") or parts.query:
                raise wrong(where, "file:///PATH", "a host or a query in it")
            page = f"#{parts.fragment}" if parts.fragment else ""
            url = unquote(parts.path) + page
        address = parse_address(url)
        page = "" if address.page is None else f"#page={address.page}"
        if address.frame is not None or address.row is not None or (page and medium.kind != "page"):
            raise wrong(where, f"the path of a file with one {medium.kind}", "a place in a file")
        if "\0" in url or ".." in Path(address.path).parts:
            raise wrong(where, "a path under media_root", "'..' or a zero byte in it")
        try:
            path = (self._root / address.path).resolve()
            usable = path.is_relative_to(self._root) and path.is_file()
        except (OSError, RuntimeError):  # too long, or links in a circle
            usable = False
        if not usable:
            # What is outside and what is not there look the same from here.
            raise wrong(where, "a file under media_root", "none there; check the path")
        return f"{path}{page}"


class _Budget:
    """Bytes that the media of one request may still have."""

    def __init__(self, most: int) -> None:
        self._most = self.rest = most

    def take(self, contents: Sequence[bytes], where: str) -> None:
        """Count media.

        Raises:
            Refused: all together are too large.
        """
        self.rest -= sum(map(len, contents))
        if self.rest < 0:
            raise too_large(where, f"media of at most {self._most} bytes in a request")


def too_large(where: str, expected: str) -> Refused:
    """Return the refusal of what has too many bytes."""
    return Refused(
        f"{where}: expected {expected}, found more; send less at once, or raise limits.media_bytes "
        "or data.media.max_file_bytes of the server",
        status=413,
        param=where,
    )


def _decoded(medium: Medium, max_bytes: int) -> bytes | list[bytes]:
    """Return the bytes of a data URL, or of each frame in it."""
    head, comma, content = medium.url.partition(",")
    kind, *parameters = head[len("data:") :].lower().split(";")
    if not comma or "base64" not in parameters:
        raise wrong(medium.where, "data:TYPE;base64,CONTENT", "a data URL of another form")
    if not kind.startswith(DATA_TYPES[medium.kind]):
        expected = " or ".join(f"{name}..." for name in DATA_TYPES[medium.kind])
        raise wrong(medium.where, f"a type of {expected}", ascii(kind[:60]))
    if len(content) // 4 * 3 > max_bytes:
        raise too_large(medium.where, f"at most {max_bytes} bytes")
    if kind == FRAMES_TYPE:
        return [_from_base64(frame, medium.where) for frame in content.split(",")]
    return _from_base64(content, medium.where)


def _from_base64(content: str, where: str) -> bytes:
    try:
        decoded = base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError) as error:  # ValueError: characters beyond ASCII
        raise wrong(where, "base64", str(error)) from None
    if not decoded:
        raise wrong(where, "base64 of a file", "none")
    return decoded
