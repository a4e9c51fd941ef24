"""For people who write services and transports: the conformance kit, fault injection, fakes, and a movable clock."""

from runtime.service.resources import replaced
from runtime.testing.clock import MovableClock
from runtime.testing.conformance import Kit, check_transport
from runtime.testing.expectations import ConformanceError, eventually
from runtime.testing.fakes import FakeService, fake
from runtime.testing.faults import Crash, CrashingDatabase, CrashPoints, Faults, FaultyTransport
from runtime.testing.identities import FakeAuth
from runtime.testing.peer import RecordingReceiver

__all__ = [
    "ConformanceError",
    "Crash",
    "CrashPoints",
    "CrashingDatabase",
    "FakeAuth",
    "FakeService",
    "Faults",
    "FaultyTransport",
    "Kit",
    "MovableClock",
    "RecordingReceiver",
    "check_transport",
    "eventually",
    "fake",
    "replaced",
]
