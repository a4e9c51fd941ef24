from pathlib import Path

import pytest
from runtime import Node
from runtime.storage.sqlite import SqliteFolder
from transports.memory import MemoryTransport

from greeter.messages import Greet, TooRude, greeter
from greeter.service import Greeter


async def test_greetings_are_counted(tmp_path: Path) -> None:
    async with Node([Greeter], MemoryTransport(), databases=SqliteFolder(tmp_path)) as node:
        ctx = node.client("test", calls=(greeter,))
        assert (await ctx.request(Greet("Ada"))).count == 1
        assert (await ctx.request(Greet("Ada"))).count == 2
        with pytest.raises(TooRude):
            await ctx.request(Greet("Voldemort"))
