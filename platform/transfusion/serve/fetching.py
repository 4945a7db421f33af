"""Pictures from other hosts: only from those that are allowed, and never from inside our own network.

A name can lead anywhere, and somewhere else when it is asked again. So addresses are checked between the look-up
and the connection: the client is given those that were checked and asks for no others.
"""

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from functools import cached_property

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from transfusion.serve.errors import ApiError

Lookup = Callable[[str], Awaitable[Sequence[str]]]
"""The IP addresses of a host."""

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_IETF = ipaddress.IPv4Network("192.0.0.0/24")
"""Protocol assignments (RFC 6890), some of them local; `ipaddress` takes a part for global."""


def is_public(address: str) -> bool:
    """Whether an address is somebody's on the internet, also as the IPv4 inside an IPv6."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        inside = ip.ipv4_mapped or ip.sixtofour
        if ip in _NAT64:
            inside = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inside is not None:
            return is_public(str(inside))
        if ip.is_site_local:
            return False
    elif ip in _IETF:
        return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


async def look_up(host: str) -> list[str]:
    """Asks the system."""
    found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


class PictureFetcher:
    """Gets pictures for requests."""

    def __init__(
        self, hosts: Sequence[str], *, timeout_s: float, lookup: Lookup | None = None
    ) -> None:
        """Connects to nothing yet.

        Args:
            hosts: Names, with a port where it is not the scheme's. Nothing else is asked.
            lookup: The system's, unless told.
            timeout_s: Of a picture, from the look-up of its host to its last byte.
        """
        self._hosts = frozenset(hosts)
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._lookup = lookup or look_up

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        """Of the system's authorities, or those of SSL_CERT_FILE; reading them takes 50 ms, once."""
        return ssl.create_default_context()

    async def fetch(self, address: str, *, max_bytes: int, param: str) -> bytes:
        """What is at an address; whether it is a picture is for its reader to see.

        Args:
            max_bytes: More is refused before it is read whole.

        Raises:
            ApiError: It is not allowed, leads inside, or did not answer with a file of a size that is allowed.
        """
        url = self._checked(address, param)
        # A connection of its own: nothing of one caller is there for the next.
        connector = aiohttp.TCPConnector(
            resolver=_CheckedResolver(self._lookup),
            use_dns_cache=False,
            force_close=True,
            ssl=self._tls if url.scheme == "https" else True,
        )
        try:
            async with (
                aiohttp.ClientSession(
                    connector=connector,
                    timeout=self._timeout,
                    cookie_jar=aiohttp.DummyCookieJar(),
                    auto_decompress=False,
                    headers={"Accept": "image/*", "Accept-Encoding": "identity"},
                ) as session,
                session.get(url, allow_redirects=False) as answer,
            ):
                if answer.status != 200:
                    raise _refused(
                        param,
                        f"{url.host} answered {answer.status}: must be 200, redirects are not "
                        "followed; give the picture's own address, or send it as data:image/...",
                    )
                return await _read(answer, max_bytes, param)
        except _InsideError as error:
            raise _refused(
                param, f"{url.host} is no public host; send the picture as data:image/..."
            ) from error
        except (aiohttp.ClientError, OSError) as error:
            # What went wrong at the other end is told in general: an answer is no port scanner.
            raise _refused(
                param, f"{url.host} did not send it; see its address, or send it as data:image/..."
            ) from error

    def _checked(self, address: str, param: str) -> URL:
        if not self._hosts:
            raise _refused(
                param,
                "must be data:image/...;base64,...: this server fetches no addresses "
                "(the endpoint's image_hosts names none)",
            )
        try:
            # The same reading of the address is checked and asked.
            url = URL(address)
            authority = url.raw_host if url.is_default_port() else f"{url.raw_host}:{url.port}"
        except ValueError as error:
            raise _refused(
                param, "is no address of a picture; send it as data:image/..."
            ) from error
        if not (address.isascii() and address.isprintable() and " " not in address):
            raise _refused(param, "an address must be of printable ASCII, the rest %-encoded")
        if url.scheme not in ("http", "https"):
            raise _refused(param, "an address must be http, https or data:image/...;base64,...")
        if url.user is not None or url.password is not None:
            raise _refused(param, "an address must hold no user or password")
        if authority not in self._hosts:
            raise _refused(
                param,
                f"pictures are fetched from {', '.join(sorted(self._hosts))} only; "
                "send others as data:image/...;base64,...",
            )
        return url


async def _read(answer: aiohttp.ClientResponse, max_bytes: int, param: str) -> bytes:
    content = bytearray()
    async for chunk in answer.content.iter_any():
        content += chunk
        if len(content) > max_bytes:
            raise _refused(
                param,
                f"the picture at {answer.url.host} is too long: at most {max_bytes} bytes of the request are "
                "left for it; send a smaller one",
            )
    return bytes(content)


class _InsideError(Exception):
    """A name that leads to an address that is not public."""


class _CheckedResolver(AbstractResolver):
    def __init__(self, lookup: Lookup) -> None:
        self._lookup = lookup

    async def resolve(
        self,
        host: str,
        port: int = 0,
        family: socket.AddressFamily = socket.AF_INET,  # noqa: ARG002  both are looked up
    ) -> list[ResolveResult]:
        addresses = await self._lookup(host)
        # One address inside condemns the name: whoever keeps it mixes them on purpose.
        if not addresses or not all(map(is_public, addresses)):
            raise _InsideError(host)
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address in addresses
        ]

    async def close(self) -> None:
        """Holds nothing."""


def _refused(param: str, message: str) -> ApiError:
    return ApiError(400, f"{param}: {message}", param=param)
