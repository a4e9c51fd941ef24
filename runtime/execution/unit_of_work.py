"""What a handler with a transaction has under way: the keys of its calls, and the signals that wait for its commit."""

from runtime.contract.messages import Signal
from runtime.durable.idempotency import Claim, derived_key
from runtime.durable.subscription import Source
from runtime.storage.database import Transaction


class EventKeys:
    """Idempotency keys for the calls of an event's handler: the same whenever the event is applied again."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._calls: dict[str, int] = {}

    def key_for(self, request: str) -> str:
        self._calls[request] = ordinal = self._calls.get(request, 0) + 1
        return derived_key(self._source.publisher, self._source.epoch, self._source.seq, request, ordinal)


class UnitOfWork:
    """What a handler with `tx` has under way."""

    __slots__ = ("_keys", "_tx", "signals")

    def __init__(self, tx: Transaction, keys: Claim | EventKeys | None) -> None:
        self._tx = tx
        self._keys = keys
        self.signals: list[Signal] = []

    @property
    def begun(self) -> bool:
        return self._tx.begun

    def key_for(self, request: str) -> str | None:
        return None if self._keys is None else self._keys.key_for(request)

    def publish(self, signal: Signal) -> None:
        self.signals.append(signal)
