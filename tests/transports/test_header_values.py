"""Any text travels in headers: encoded as printable ASCII, and equal on arrival, over MQTT and over HTTP."""

import mqtt5
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.network import Address, Envelope
from transports.header_values import decode_text, encode_json, encode_text
from transports.http import fields
from transports.http.messages import Headers
from transports.mqtt import packets
from transports.mqtt.topics import Topics, key_level, key_of

HOSTILE = (
    "".join(map(chr, (*range(0x20), 0x7F, *range(0x80, 0xA0), 0xFFFD, 0xFDD0, 0xFFFE, 0xFFFF, 0x1FFFE, 0x10FFFF))) + ' %"\\/+#$ü'
)
"""The characters that brokers refuse in MQTT strings, and those that mean something in a header or a topic."""
TEXTS = st.text(st.one_of(st.sampled_from(HOSTILE), st.characters(exclude_categories=["Cs"])))


@given(TEXTS)
@settings(max_examples=100)
def test_any_text_is_encoded_as_printable_ascii_and_comes_back(text: str) -> None:
    header, level = encode_text(text), key_level(text)
    assert header.isascii()
    assert header.isprintable()
    assert " " not in header
    assert decode_text(header) == text
    assert key_of(level) == text
    assert set(level) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.~-%")
    names = encode_json([text, text])
    assert names.isascii()
    assert names.isprintable()


@given(
    st.builds(
        Envelope,
        st.just("request"),
        st.just("1"),
        TEXTS.filter(bool),
        st.just(b"{}"),
        st.just("caller"),
        st.just(Address("caller", "node")),
        st.none(),
        st.none() | TEXTS.filter(bool),
        st.none() | TEXTS.filter(bool),
        st.none() | TEXTS,
        st.none() | st.lists(st.tuples(TEXTS, TEXTS)).map(tuple),
        st.lists(TEXTS).map(tuple),
    )
)
@settings(max_examples=60)
def test_an_envelope_arrives_equal_over_mqtt_and_http(envelope: Envelope) -> None:
    packet, _ = mqtt5.read(memoryview(mqtt5.PublishPacket("t", b"{}", **packets.properties(envelope, "reply")).write()))
    assert isinstance(packet, mqtt5.PublishPacket)
    assert all(value.isascii() and value.isprintable() for _, value in packet.user_properties)
    given_fields = fields.of_route(Address("echo", "node"), envelope.reply_to, "x") | fields.of_request(envelope)
    assert all(value.isascii() and value.isprintable() for value in given_fields.values())
    for arrived in (
        packets.envelope(packet, "request", "", "caller", envelope.reply_to),
        fields.request(Headers(given_fields), envelope.subject, "caller", b"{}"),
    ):
        for name in Envelope.__struct_fields__:
            assert getattr(arrived, name) == getattr(envelope, name), name


def test_what_another_client_has_not_encoded_is_accepted_as_it_is() -> None:
    assert decode_text("für 100€") == "für 100€"
    assert key_of("Käse mit Brot") == "Käse mit Brot"
    assert key_of("K%C3%A4se%20mit%20Brot") == key_of("K%c3%a4se mit Brot") == "Käse mit Brot"
    with pytest.raises(ValueError, match="utf-8"):
        decode_text("%FF")


def test_a_key_is_never_taken_for_no_key() -> None:
    assert [key_level(key) for key in (None, "-", "", "a/b")] == ["-", "%2D", "", "a%2Fb"]
    assert [key_of(level) for level in ("-", "%2D", "")] == [None, "-", ""]
    assert Topics("ns").levels("ns/1/signal/s/N/") == ("signal", "s", "N", "")
