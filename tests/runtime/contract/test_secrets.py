"""Secret fields: what they hold is an ordinary value that is not shown."""

from dataclasses import dataclass
from typing import Annotated, NamedTuple, TypedDict

import msgspec
import pytest
from msgspec import Meta

from runtime import Contract, Request, Secret, Struct

Password = Annotated[str, Meta(min_length=8)]


class Account(Struct, rename="camel"):
    name: str
    password: Secret[Password]
    pin_code: Annotated[Secret[int], Meta(ge=0)] | None = None
    recovery: "Secret[str] | None" = None


class Older(Struct):
    __secret__ = frozenset({"key"})

    key: str


def test_a_secret_is_hidden_where_a_struct_is_shown() -> None:
    account = Account("ada", "correct horse", 1234, "battery")
    shown = repr([{"account": account}])
    assert "ada" in shown
    assert not [secret for secret in ("correct horse", "1234", "battery") if secret in shown]
    assert "staple" not in repr(Older("staple"))


def test_a_secret_is_encoded_and_validated_like_any_value() -> None:
    account = Account("ada", "correct horse", 1234)
    text = msgspec.json.encode(account)
    assert b'"password":"correct horse","pinCode":1234' in text
    assert msgspec.json.decode(text, type=Account) == account
    with pytest.raises(msgspec.ValidationError, match="length >= 8"):
        msgspec.convert({"name": "ada", "password": "short"}, Account)


class Key(NamedTuple):
    name: str
    key: Secret[str]


@dataclass
class Door:
    key: Secret[str]
    next: "Door | None" = None


class Lock(TypedDict):
    key: Secret[str]


class Plain(msgspec.Struct):
    key: Secret[str]
    keys: tuple[Key, ...] = ()


class Open(NamedTuple):
    name: str


class Holder(Struct):
    pair: Key | None = None
    door: Door | None = None
    locks: tuple[Lock, ...] = ()
    plain: dict[str, Plain] = {}
    open: Open | None = None


def test_a_record_of_another_kind_with_a_secret_is_hidden_as_a_whole() -> None:
    found = Holder(Key("a", "HUSH"), Door("HUSH", Door("HUSH")), ({"key": "HUSH"},), {"a": Plain("HUSH")}, Open("seen"))
    assert repr(found) == "Holder(pair='***', door='***', locks='***', plain='***', open=Open(name='seen'))"


def test_messages_may_have_secrets() -> None:
    contract = Contract("accounts")

    @contract.message
    class LogIn(Request[Account]):
        password: Secret[str]

    assert repr(LogIn("correct horse")).endswith("LogIn(password='***')")
