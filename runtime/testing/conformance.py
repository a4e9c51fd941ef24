"""The conformance kit: what every transport must do, as the docstrings of `runtime.network.Transport` say.

Transport authors run it in a test::

    async def test_conformance() -> None:
        await check_transport(lambda: MyTransport(...))

The factory makes transports that can reach each other; each becomes a node.
"""

from runtime.testing.kit import Crash, TransportFactory
from runtime.testing.membership_cases import MembershipCases
from runtime.testing.multicast_cases import MulticastCases
from runtime.testing.request_cases import RequestCases


class Kit(RequestCases, MembershipCases, MulticastCases):
    """All cases of the conformance kit.

    Args:
        factory: makes transports that can reach each other.
        crash: ends a transport without a goodbye, as if its process were killed; None leaves out the cases that need it.
    """


async def check_transport(factory: TransportFactory, crash: Crash | None = None) -> None:
    """Run every case.

    Args:
        factory: makes transports that can reach each other.
        crash: ends a transport without a goodbye, as if its process were killed.

    Raises:
        ConformanceError: the first case that fails, and what does not hold.
    """
    for case in Kit.cases():
        await Kit(factory, crash).run(case)
