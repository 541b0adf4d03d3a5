"""Media from http and https, of public addresses only.

A URL of a client's may name what only this machine can reach: itself, its network, the metadata
service of a cloud. So a host is refused if any of its addresses is not public, and each connection
checks once more the address that it connects to; no name is looked up twice, no redirect is
followed, and no proxy of the environment is used.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Callable
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from cluster.serving.refusal import Refused, wrong

_READ_BYTES = 1 << 16


class NotPublic(Exception):
    """A host has an address that must not be connected to."""


def is_public(address: str) -> bool:
    """Return whether an IP address is one of the public internet.

    Private, loopback, link-local, shared, multicast and reserved addresses are not, nor are IPv6
    addresses that stand for an IPv4 address: a gateway may turn these into any of the others.
    """
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if not ip.is_global or ip.is_multicast or ip.is_reserved:
        return False
    return ip.version == 4 or (ip.sixtofour is None and not ip.is_site_local)


class Remote:
    """Fetches media.

    Args:
        timeout_s: for one medium in all.
        allowed: says of an IP address whether it may be connected to.
    """

    def __init__(self, *, timeout_s: float, allowed: Callable[[str], bool] = is_public) -> None:
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._allowed = allowed

    async def fetch(
        self, url: str, where: str, *, max_bytes: int, take: Callable[[bytes], None]
    ) -> bytes:
        """Return what a URL names.

        Args:
            take: gets each part before it is kept; what it raises ends the fetch.

        Raises:
            Refused: it is not to be fetched, or cannot be; ``where`` is its field, for the message.
        """
        try:
            target = URL(url)
            usable = target.scheme in ("http", "https") and target.host and target.port
        except ValueError:
            usable = False
        if not usable or target.user is not None or target.password is not None:
            raise wrong(where, "http(s)://HOST/PATH without a user name", "another URL")
        connector = aiohttp.TCPConnector(
            resolver=_Resolver(self._allowed),
            socket_factory=self._socket,
            use_dns_cache=False,
            force_close=True,
        )
        try:
            async with (
                aiohttp.ClientSession(
                    connector=connector,
                    timeout=self._timeout,
                    auto_decompress=False,
                    trust_env=False,
                    cookie_jar=aiohttp.DummyCookieJar(),
                ) as session,
                session.get(
                    target, allow_redirects=False, headers={"Accept-Encoding": "identity"}
                ) as response,
            ):
                if response.status != 200:
                    raise wrong(where, "a URL that answers 200, no redirect", f"{response.status}")
                return await _body(response, where, max_bytes, take)
        except NotPublic:
            raise wrong(where, "a host with public addresses only", "another") from None
        except TimeoutError:
            raise wrong(where, f"an answer within {self._timeout.total:g} s", "none") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            # Its text may name addresses of our network.
            raise wrong(where, "a URL that can be fetched", type(error).__name__) from None

    def _socket(self, address: Any) -> socket.socket:
        """Return the socket of a connection; aiohttp asks for one for each address that it tries.

        Raises:
            NotPublic: it must not connect there.
        """
        family, kind, protocol, _, place = address
        if not self._allowed(place[0]):
            raise NotPublic(place[0])
        return socket.socket(family, kind, protocol)


class _Resolver(AbstractResolver):
    """Looks a host up and refuses it if one of its addresses is not allowed."""

    def __init__(self, allowed: Callable[[str], bool]) -> None:
        self._allowed = allowed

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        loop = asyncio.get_running_loop()
        answers = await loop.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
        for *_, place in answers:
            if not self._allowed(place[0]):
                raise NotPublic(place[0])
        return [
            ResolveResult(
                hostname=host,
                host=place[0],
                port=port,
                family=kind,
                proto=protocol,
                flags=socket.AI_NUMERICHOST,
            )
            for kind, _, protocol, _, place in answers
        ]

    async def close(self) -> None:
        """Nothing is open."""


async def _body(
    response: aiohttp.ClientResponse, where: str, max_bytes: int, take: Callable[[bytes], None]
) -> bytes:
    """Return an answer's bytes, without reading more than is allowed."""
    content = bytearray()
    async for part in response.content.iter_chunked(_READ_BYTES):
        take(part)
        content += part
        if len(content) > max_bytes:
            raise Refused(
                f"{where}: expected a medium of at most {max_bytes} bytes, found more; send a "
                "smaller one",
                status=413,
                param=where,
            )
    if not content:
        raise wrong(where, "a medium", "an empty answer")
    return bytes(content)
