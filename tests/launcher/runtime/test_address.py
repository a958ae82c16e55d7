"""Which address rank 0 publishes, on machines whose name resolves to what machines' names resolve to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.runtime.address import Machine, interface_to, own_address
from launcher.runtime.errors import UserError
from launcher.runtime.world import World


class Pretend(Machine):
    """A machine with these interfaces, names and one route to the outside."""

    def __init__(self, interfaces, names=(), outward=None) -> None:
        self._interfaces = {"lo": "127.0.0.1"} | interfaces
        self._names = dict(names)
        self._outward = outward

    def addresses_of(self, name):
        return self._names.get(name, [])

    def owns(self, address):
        return address.startswith("127.") or address in self._interfaces.values()

    def interfaces(self):
        return self._interfaces

    def source_to(self, address):
        return address if address in self._interfaces.values() else self._outward


def world(nodes=2, launch="", node_name="n1"):
    return World(size=4, nodes=nodes, host="n1.cluster", node_name=node_name, launch_address=launch)


TWO = {"eth0": "10.0.0.1", "ib0": "10.1.0.1"}
DEBIAN = {"n1": ["127.0.1.1"], "n1.cluster": ["127.0.1.1"]}


@pytest.mark.parametrize(
    ("machine", "its_world", "interface", "address"),
    [
        (Pretend(TWO), world(), "ib0", "10.1.0.1"),
        (Pretend(TWO), world(nodes=1), "ib0", "10.1.0.1"),
        (Pretend(TWO), world(nodes=1), None, "127.0.0.1"),
        (Pretend(TWO, DEBIAN), world(launch="10.1.0.1"), None, "10.1.0.1"),
        (Pretend(TWO, DEBIAN, "10.0.0.1"), world(launch="10.9.9.9"), None, "10.0.0.1"),  # srun ran elsewhere
        (Pretend(TWO, DEBIAN, "10.0.0.1"), world(), None, "10.0.0.1"),
        (Pretend(TWO, {"n1": ["127.0.1.1", "10.1.0.1"]}, "10.0.0.1"), world(), None, "10.1.0.1"),
        (Pretend(TWO, {"n1.cluster": ["10.1.0.1"]}, "10.0.0.1"), world(node_name=""), None, "10.1.0.1"),
        (Pretend(TWO, {"n1": ["192.0.2.7"]}, "10.0.0.1"), world(), None, "10.0.0.1"),  # a stale name
        (Pretend({}, DEBIAN), world(launch="127.0.0.1"), None, "127.0.0.1"),  # a cluster on one machine
    ],
)
def test_the_address_is_one_that_peers_can_reach(machine, its_world, interface, address):
    assert own_address(its_world, interface, machine) == address


def test_without_an_address_the_user_is_told_what_to_set():
    with pytest.raises(UserError, match=r"set site\.interface to one of its network interfaces \(lo 127\.0\.0\.1, br0"):
        own_address(world(), None, Pretend({"br0": "10.5.0.1"}, DEBIAN))


def test_an_interface_that_is_not_there_is_told_with_those_that_are():
    with pytest.raises(UserError, match=r"^site\.interface='ib7': .*eth0 10\.0\.0\.1"):
        own_address(world(), "ib7", Pretend(TWO))


_ADDRESS = st.sampled_from(["127.0.0.1", "127.0.1.1", "10.0.0.1", "10.1.0.1", "10.9.9.9"])


@given(st.lists(_ADDRESS, max_size=3), st.lists(_ADDRESS, max_size=3), st.none() | _ADDRESS, st.just("") | _ADDRESS)
def test_no_cluster_is_ever_told_a_loopback_that_slurm_did_not_name(node, host, outward, launch):
    machine = Pretend(TWO, {"n1": node, "n1.cluster": host}, outward)
    try:
        address = own_address(world(launch=launch), None, machine)
    except UserError:
        assert not {*node, *host, outward, launch} & set(TWO.values()) and launch != "127.0.0.1"
        return
    assert address in TWO.values() or (address == launch == "127.0.0.1")


def test_gloo_is_told_the_interface_that_leads_to_rank_0():
    assert interface_to("10.1.0.1", Pretend(TWO)) == "ib0"
    assert interface_to("10.7.7.7", Pretend(TWO, outward="10.0.0.1")) == "eth0"
    assert interface_to("10.7.7.7", Pretend({})) is None


def test_this_machine_has_a_loopback_and_owns_no_foreign_address():
    machine = Machine()
    assert machine.interfaces()["lo"] == "127.0.0.1"
    assert machine.owns("127.0.0.1") and not machine.owns("192.0.2.77")
    assert interface_to("127.0.0.1", machine) == "lo"
    assert machine.addresses_of("no-such-host.invalid") == [] and machine.addresses_of("127.0.0.1") == ["127.0.0.1"]
