"""Another instance of a service, which applies the events of a subscription: this one leaves them to it while it makes progress.

This only saves work. Each instance may apply events at any time, because the cursor is advanced by compare-and-set.
"""

from runtime.clock import Clock, Random
from runtime.durable.cursor import Cursors
from runtime.durable.progress import Progress
from runtime.storage.database import DatabaseError

_OVERTAKEN_SECONDS = 0.05
"""The pause of an instance that another one was faster than."""
_LOOK_SECONDS = 0.3
"""The pause between two looks at what the other instance has applied."""


class OtherInstance:
    """The instance that has applied the last events, if that was another one."""

    def __init__(self, cursors: Cursors, progress: Progress, clock: Clock, random: Random) -> None:
        self._cursors = cursors
        self._progress = progress
        self._clock = clock
        self._random = random
        self._leads = False

    def __repr__(self) -> str:
        return f"<OtherInstance [{'LEADS' if self._leads else 'NONE'}]>"

    async def was_faster(self) -> None:
        """Record that it was faster, and let it go on."""
        self._leads = True
        await self._clock.sleep(self._random.jitter(_OVERTAKEN_SECONDS))

    async def applies(self) -> bool:
        """Watch the cursor. Return True once it has applied all that is known of, and False if it makes no progress."""
        seen = -1
        while self._leads:
            await self._clock.sleep(self._random.jitter(_LOOK_SECONDS))
            try:
                cursor = await self._cursors.read()
            except DatabaseError:
                return False
            if cursor is None or cursor.stopped is not None or cursor.position.seq == seen:
                self._leads = False
                return False
            seen = cursor.position.seq
            self._progress.reached(seen)
            if self._progress.lag == 0:
                return True
        return False
