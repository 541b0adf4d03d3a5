"""Names of this machine that no other one reaches."""

import ipaddress


def is_loopback(host: str) -> bool:
    """Return whether a name or an address is of this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
