"""Under which address the other ranks reach this machine, and which network interface that is. IPv4."""

from __future__ import annotations

import fcntl
import socket
import struct

from launcher.runtime.errors import UserError
from launcher.runtime.world import World

_LOOPBACK = "127.0.0.1"
_SIOCGIFADDR = 0x8915
"""Asks the kernel for an interface's IPv4 address (netdevice(7), linux/sockios.h)."""
_FAR_AWAY = "198.51.100.1"
"""An address that is nobody's (RFC 5737): the route to it is the route to the outside. Nothing is sent."""


class Machine:
    """What this machine's network says of itself. Tests put another in its place."""

    def addresses_of(self, name: str) -> list[str]:
        """IPv4 addresses that ``name`` resolves to; none where it does not resolve."""
        try:
            found = socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            return []
        return [str(address[0]) for *_, address in found]

    def owns(self, address: str) -> bool:
        """Whether ``address`` is one of this machine's: a socket can be bound to it."""
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
                probe.bind((address, 0))
        except OSError:
            return False
        return True

    def interfaces(self) -> dict[str, str]:
        """Each network interface that has an IPv4 address, and the address."""
        found = {}
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            for _, name in socket.if_nameindex():
                request = struct.pack("256s", name.encode()[:15])
                try:
                    answer = fcntl.ioctl(asking.fileno(), _SIOCGIFADDR, request)
                except OSError:  # it has none
                    continue
                found[name] = socket.inet_ntoa(answer[20:24])
        return found

    def source_to(self, address: str) -> str | None:
        """The own address from which packets to ``address`` would leave; None where no route leads there."""
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                probe.connect((address, 9))  # a datagram socket only looks up the route (connect(2))
                return str(probe.getsockname()[0])
        except OSError:
            return None


def own_address(world: World, interface: str | None, machine: Machine) -> str:
    """The address that rank 0 publishes: one that every peer can reach, never one of its own host name's loopbacks.

    Args:
        interface: what the user named (``site.interface``), or None.

    Raises:
        UserError: there is no such interface, or none of the addresses is fit.
    """
    if interface is not None:
        here = machine.interfaces()
        if interface not in here:
            raise UserError(f"site.interface={interface!r}: has no address on {world.node}; there are: {_listed(here)}")
        return here[interface]
    if world.nodes == 1:
        return _LOOPBACK
    for address in _candidates(world, machine):
        if not address.startswith("127.") and machine.owns(address):
            return address
    if world.launch_address == _LOOPBACK:  # a cluster whose nodes all stand on this machine
        return _LOOPBACK
    raise UserError(
        f"{world.node}: none of its addresses can be reached by the {world.nodes} nodes of this job; "
        f"set site.interface to one of its network interfaces ({_listed(machine.interfaces())})"
    )


def interface_to(address: str, machine: Machine) -> str | None:
    """Name of the interface by which this machine reaches ``address``, its own one included.

    Where that is hidden (a second address of an interface), the one that leads to the outside; None without any.
    """
    names = {mine: name for name, mine in machine.interfaces().items()}
    sources = (machine.source_to(address), machine.source_to(_FAR_AWAY))
    return next((names[source] for source in sources if source in names), None)


def _candidates(world: World, machine: Machine) -> list[str]:
    named = [address for name in (world.node_name, world.host) if name for address in machine.addresses_of(name)]
    outward = machine.source_to(_FAR_AWAY)
    return [*filter(None, [world.launch_address]), *named, *filter(None, [outward])]


def _listed(interfaces: dict[str, str]) -> str:
    return ", ".join(f"{name} {address}" for name, address in interfaces.items()) or "none"
