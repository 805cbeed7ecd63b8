"""S32: where a message may go. A name is resolved once, its address is judged, and that address is connected to.

Targets come from config.toml only, so the owner's own network is allowed. A *name* must not lead to this machine, to link-local
addresses or to a cloud's metadata, whatever its DNS says; who wants the loopback writes it as such.
"""

import ipaddress
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

#: Metadata services outside the link-local networks: of AWS (IPv6), of Alibaba, of Oracle.
METADATA = frozenset(map(ipaddress.ip_address, ("fd00:ec2::254", "100.100.100.200", "192.0.0.192")))
NAT64 = ipaddress.ip_network("64:ff9b::/96")


class Forbidden(OSError):
    """The address is none that a message is sent to."""


def connect(host: str, port: int, *, timeout_s: float) -> socket.socket:
    """A connection to the host. Raises OSError; Forbidden where its name leads to where no message goes."""
    named = is_address(host) or host.lower().rstrip(".") == "localhost"
    problem: OSError = Forbidden(f"{host} has no address")
    for family, kind, protocol, _, found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        if not named and (why := forbidden(str(found[0]))):
            raise Forbidden(f"{host} leads to {why}: nothing is sent there")
        connection = socket.socket(family, kind, protocol)
        try:
            connection.settimeout(timeout_s)
            connection.connect(found)
        except OSError as error:
            connection.close()
            problem = error
        else:
            return connection
    raise problem


def is_address(host: str) -> bool:
    """Whether it is written as an address: in one of the usual forms, not 127.1 or 2130706433."""
    try:
        ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return False
    return True


def forbidden(address: str) -> str | None:
    """What a name must not lead to; None for every other address."""
    ip = _inner(ipaddress.ip_address(address.partition("%")[0]))
    if ip.is_loopback:
        return "this machine"
    if ip.is_unspecified or ip.is_multicast or (ip.is_reserved and ip.version == 4):
        return "no machine"
    if ip.is_link_local or ip in METADATA:
        return "a link-local or metadata address"
    return None


def _inner(ip: Address) -> Address:
    """The IPv4 address inside an IPv6 one: mapped, 6to4, NAT64."""
    if isinstance(ip, ipaddress.IPv4Address):
        return ip
    if ip in NAT64:
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour or ip


@contextmanager
def within(connection: socket.socket, seconds: float) -> Iterator[None]:
    """However slowly the other side drips, it ends after so long: with TimeoutError."""
    fired = threading.Event()
    same = connection.dup()  # TLS takes the socket itself over

    def end() -> None:
        fired.set()
        with suppress(OSError):  # it is closed already
            same.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    except Exception as error:  # whatever a reader makes of a connection that we have cut
        if fired.is_set():
            raise TimeoutError(f"no whole answer in time ({seconds:g} s)") from error
        raise
    finally:
        timer.cancel()
        same.close()
    if fired.is_set():
        raise TimeoutError(f"no whole answer in time ({seconds:g} s)")
