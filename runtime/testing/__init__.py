"""For people who write services and transports: the conformance kit, fault injection, and fake identities."""

from runtime.service.resources import replaced
from runtime.testing.conformance import Kit, check_transport
from runtime.testing.expectations import ConformanceError, eventually
from runtime.testing.faults import Crash, CrashingDatabase, CrashPoints, Faults, FaultyTransport
from runtime.testing.identities import FakeAuth
from runtime.testing.peer import RecordingReceiver

__all__ = [
    "ConformanceError",
    "Crash",
    "CrashPoints",
    "CrashingDatabase",
    "FakeAuth",
    "Faults",
    "FaultyTransport",
    "Kit",
    "RecordingReceiver",
    "check_transport",
    "eventually",
    "replaced",
]
