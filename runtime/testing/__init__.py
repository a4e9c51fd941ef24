"""For whoever writes services and transports: the conformance kit, and faults to test with."""

from runtime.testing.conformance import ConformanceError, Kit, check_transport, eventually
from runtime.testing.faults import Crash, CrashingDatabase, CrashPoints, Faults, FaultyTransport
from runtime.testing.identities import FakeAuth

__all__ = [
    "ConformanceError",
    "Crash",
    "CrashPoints",
    "CrashingDatabase",
    "FakeAuth",
    "Faults",
    "FaultyTransport",
    "Kit",
    "check_transport",
    "eventually",
]
