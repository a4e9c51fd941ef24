"""What an envelope shows of itself."""

from runtime.network import Envelope


def test_the_repr_of_an_envelope_shows_neither_body_nor_token() -> None:
    assert (
        repr(Envelope("request", "1", "shop.Pay", b"secret", token="secret", caller="x"))
        == "<Envelope request shop.Pay 1 from x>"
    )
