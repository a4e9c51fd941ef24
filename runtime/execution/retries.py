"""The retry budget of a service, and the attempts of one request. `caller.py` decides whether a retry is safe."""

from runtime.clock import Random
from runtime.contract.errors import Draining, NoInstance, ServiceError, Unreachable
from runtime.tasks import Backoff

_REFUSED_BEFORE_WORK = (Unreachable, Draining, NoInstance)
_PAUSE = Backoff(0.02, 1.0)


class RetryBudget:
    """Bounds the retries to one service: one for every ten requests, saved up to the number that one instance can hold.

    A retry is free if the instance could not be reached, is leaving, or has left, because then it had no work with the request.

    Args:
        earned: the part of a retry that each request earns.
        most: the number of retries that can be saved.
    """

    def __init__(self, earned: float = 0.1, most: float = 1100.0) -> None:
        self._earned = earned
        self._most = most
        self._left = most

    def earn(self) -> None:
        """Add what one request earns."""
        left = self._left + self._earned
        self._left = left if left < self._most else self._most

    def spend(self) -> bool:
        """Take one retry. Return False if there is none left."""
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Tries:
    """The attempts of one request, from the first that has failed.

    Args:
        budget: the retry budget of the service.

    Attributes:
        may_have_run: whether one of the attempts may have reached its handler.
    """

    def __init__(self, budget: RetryBudget) -> None:
        self.may_have_run: bool = False
        self._budget = budget
        self._count = 0
        self._lost_one = False
        self._cut_once = False

    def failed(self, error: ServiceError) -> None:
        """Record an attempt that has failed."""
        self._count += 1
        self.may_have_run = self.may_have_run or error.maybe_delivered

    def may_retry(self, error: ServiceError, *, gone: bool, cut: bool = False) -> bool:
        """Return whether the budget allows another attempt after this error.

        Args:
            gone: whether the instance that had the request is gone.
            cut: whether this node's own link was cut meanwhile. The second time, the request itself may be what breaks the link.
        """
        if cut and self._cut_once:
            return False
        self._cut_once = self._cut_once or cut
        first_loss = gone and not self._lost_one  # a second instance may have been lost because of this request
        self._lost_one = self._lost_one or gone
        return first_loss or isinstance(error, _REFUSED_BEFORE_WORK) or self._budget.spend()

    def pause(self, random: Random) -> float:
        """Return the pause before the next attempt, in seconds."""
        return _PAUSE.delay(min(self._count, 6), random)

    def final_error(self, error: ServiceError) -> ServiceError:
        """Return the error of the last attempt, changed so that it is true of all of them."""
        return error.may_have_run() if self.may_have_run else error
