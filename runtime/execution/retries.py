"""When a request is tried again, and what may be said of all its tries in the end."""

from runtime.clock import Random
from runtime.contract.errors import ServiceError, Unreachable

_LONGEST_PAUSE = 1.0


class RetryBudget:
    """How many retries are allowed: one for every ten requests, and as many saved up as one instance can have under way.

    Nothing is spent where nobody could be reached, or the instance that had the request is gone.
    """

    def __init__(self, earned: float = 0.1, most: float = 1100.0) -> None:
        self._earned = earned
        self._most = most
        self._left = most

    def earn(self) -> None:
        """A request was made."""
        self._left = min(self._most, self._left + self._earned)

    def spend(self) -> bool:
        """Takes a retry, if there is one."""
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Tries:
    """The tries of one request, which has earned its service's budget a part of a retry."""

    def __init__(self, budget: RetryBudget) -> None:
        budget.earn()
        self.may_have_run = False
        """Whether one of them may have reached its handler."""
        self._budget = budget
        self._count = 0
        self._outlived = False

    def failed(self, error: ServiceError) -> None:
        """One of them has."""
        self._count += 1
        self.may_have_run = self.may_have_run or error.maybe_delivered

    def another(self, error: ServiceError, *, gone: bool) -> bool:
        """Whether the budget allows one more after this error. `gone`: the instance that had the request is."""
        first_loss = gone and not self._outlived  # a second may be lost because of this request
        self._outlived = self._outlived or gone
        return first_loss or isinstance(error, Unreachable) or self._budget.spend()

    def pause(self, random: Random) -> float:
        """Seconds to wait before the next."""
        return random.jitter(min(0.02 * 2 ** min(self._count, 6), _LONGEST_PAUSE))

    def ended(self, error: ServiceError) -> ServiceError:
        """The error of the last, as it is true of all of them."""
        return error.may_have_run() if self.may_have_run else error
