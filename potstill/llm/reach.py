"""Addresses where no teacher can be: link-local ones, and those of the clouds' metadata services.

A server there hands out the credentials of the machine to whoever asks from it. A recipe may name the address in digits, or
by a name that resolves to it; `GuardedResolver` looks at what the name turns out to be when a connection is made.
"""

import ipaddress
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import aiohttp

METADATA = frozenset(
    map(
        ipaddress.ip_address,
        ("169.254.169.254", "fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "168.63.129.16", "192.0.0.192"),
    )
)
"""AWS, Google, Azure and others; AWS in IPv6; Google in IPv6; Alibaba; Azure's wire server; Oracle."""


def is_forbidden(host: str) -> bool:
    """Whether a host in digits is such an address; False for a name."""
    try:
        address = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None) or getattr(address, "sixtofour", None) or address
    return any(found.is_link_local or found in METADATA for found in (address, mapped))


def guarded_resolver() -> "aiohttp.ThreadedResolver":
    """Resolves as the system does, but does not find such addresses, however they are written."""
    from aiohttp import ThreadedResolver
    from aiohttp.abc import ResolveResult

    class GuardedResolver(ThreadedResolver):
        async def resolve(
            self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
        ) -> list[ResolveResult]:
            found = [one for one in await super().resolve(host, port, family) if not is_forbidden(one["host"])]
            if not found:
                raise socket.gaierror(socket.EAI_NONAME, "a link-local address, where no teacher can be")
            return found

    return GuardedResolver()
