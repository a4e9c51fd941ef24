"""The address of a client, behind trusted proxies and without any."""

import pytest

from gateway.addresses import Addresses, source
from gateway.service import Gateway
from gateway.settings import GatewaySettings
from runtime import StartError

PROXIES = Addresses(("10.0.0.0/8", "192.0.2.1", "fd00::/8"))


def client(peer: str, *fields: tuple[str, str]) -> str:
    return PROXIES.client(peer, [(name.encode(), value.encode("latin-1")) for name, value in fields])


@pytest.mark.parametrize("peer", ["203.0.113.9", "10.0.0.1.evil", "", "2001:db8::1"])
@pytest.mark.parametrize("name", ["forwarded", "x-forwarded-for"])
def test_the_fields_of_an_untrusted_peer_do_not_count(peer: str, name: str) -> None:
    value = "for=198.51.100.1" if name == "forwarded" else "198.51.100.1"
    assert client(peer, (name, value)) == peer
    assert Addresses(()).client("10.0.0.1", [(name.encode(), value.encode())]) == "10.0.0.1"


@pytest.mark.parametrize(
    ("chain", "expected"),
    [
        ("198.51.100.1", "198.51.100.1"),
        ("1.1.1.1, 198.51.100.1", "198.51.100.1"),
        ("10.9.9.9, 198.51.100.1, 10.0.0.7, 192.0.2.1", "198.51.100.1"),
        ("10.0.0.7", "10.0.0.7"),
        ("198.51.100.1:4711", "198.51.100.1"),
        ("[2001:db8::5]:443", "2001:db8::5"),
        ("2001:db8::5", "2001:db8::5"),
        ("::ffff:198.51.100.1", "198.51.100.1"),
        ("198.51.100.1, unknown", "10.0.0.1"),
        ("198.51.100.1, ", "198.51.100.1"),
        (" ,, 198.51.100.1 ,10.0.0.7,", "198.51.100.1"),
        (" , ", "10.0.0.1"),
        ("999.1.1.1", "10.0.0.1"),
    ],
)
def test_x_forwarded_for_is_read_from_right_to_left_over_trusted_hops(chain: str, expected: str) -> None:
    assert client("10.0.0.1", ("x-forwarded-for", chain)) == expected
    *before, last = chain.split(",")
    fields = ([("x-forwarded-for", ",".join(before))] if before else []) + [("x-forwarded-for", last)]
    assert client("10.0.0.1", *fields) == expected, "several fields are one list"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("for=198.51.100.1", "198.51.100.1"),
        ('For="[2001:db8:cafe::17]:4711"', "2001:db8:cafe::17"),
        ("for=198.51.100.1;proto=http;by=203.0.113.43", "198.51.100.1"),
        ('for=1.1.1.1, for=198.51.100.1;host="a,b;c\\"d", for=10.0.0.7', "198.51.100.1"),
        ('proto=https;for="198.51.100.1:80"', "198.51.100.1"),
        ("for=198.51.100.1, for=_hidden", "10.0.0.1"),
        ("for=198.51.100.1, for=unknown, for=10.0.0.7", "10.0.0.7"),
        ("for=198.51.100.1, proto=https", "10.0.0.1"),
        ('for="198.51.100.1', "10.0.0.1"),
        (",, for=198.51.100.1 ,", "198.51.100.1"),
        ("for=198.51.100.1;", "198.51.100.1"),
        ('for=", for=198.51.100.1', "198.51.100.1"),
        ('for="x, for="[2001:db8::5]"', "2001:db8::5"),
        ('for="\\, for="198.51.100.1:80";host="a,for=1.1.1.1"', "198.51.100.1"),
        ("nonsense, for=10.0.0.7", "10.0.0.7"),
        ("198.51.100.1", "10.0.0.1"),
    ],
)
def test_forwarded_is_read_in_the_same_way(value: str, expected: str) -> None:
    assert client("10.0.0.1", ("forwarded", value)) == expected


def test_a_field_that_the_proxy_passed_on_from_the_client_chooses_no_address() -> None:
    """A proxy that writes one of the two fields passes the other on as the client sent it."""
    given = ("x-forwarded-for", "198.51.100.1")
    assert client("10.0.0.1", given, ("forwarded", "for=1.2.3.4")) == "10.0.0.1"
    assert client("10.0.0.1", given, ("forwarded", "for=198.51.100.1")) == "198.51.100.1"


@pytest.mark.parametrize("value", [",", " , ,", "nonsense", 'for="', "for=1.2.3.4 for=1.2.3.4", "=", 'for="1.2.3.4"x'])
def test_a_field_of_the_client_that_says_nothing_does_not_hide_the_client(value: str) -> None:
    assert client("10.0.0.1", ("x-forwarded-for", "198.51.100.1"), ("forwarded", value)) == "198.51.100.1"


def test_a_client_that_the_proxy_keeps_secret_is_not_replaced_by_the_field_of_the_client() -> None:
    for value in ("for=unknown", "for=_hidden", "proto=https"):
        assert client("10.0.0.1", ("forwarded", value), ("x-forwarded-for", "1.2.3.4")) == "10.0.0.1"


def test_a_long_chain_is_cut_off() -> None:
    assert client("10.0.0.1", ("x-forwarded-for", ",".join(["1.1.1.1", *["10.0.0.2"] * 40]))) == "10.0.0.2"


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("198.51.100.1", "198.51.100.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:DB8:1:2::", "2001:db8:1:2::/64"),
        ("::ffff:198.51.100.1", "198.51.100.1"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_the_addresses_of_one_client_are_one_source(address: str, expected: str) -> None:
    assert source(address) == expected


@pytest.mark.parametrize("text", ["10.0.0.1/8", "proxy.example.com", "", "10.0.0.0/33"])
def test_a_network_that_cannot_be_read_stops_the_start(text: str) -> None:
    with pytest.raises(StartError, match=r"gateway\.trusted_proxies: .* expected an address or a network"):
        Gateway(GatewaySettings(trusted_proxies=(text,)))
