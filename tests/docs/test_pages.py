"""The programs on the pages work: concepts.md, writing-a-transport.md, and migrating.md."""

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from runtime import Event, Invalid, Node
from runtime.storage.sqlite import SqliteFolder
from runtime.testing import FakeService, eventually, fake
from tests.docs.test_examples import run
from tests.system.process import ROOT
from transports.memory import MemoryTransport

FILE = re.compile(
    r"^```(?:python|sql|js)\n(?:#|--|//) (?P<framework>\w+: )?(?P<name>\S+)\n(?P<text>.*?)^```", re.MULTILINE | re.DOTALL
)
"""A file on a page: its first line is a comment with its name. Those of other frameworks name the framework, or are not Python."""
PYTEST = ("pytest", "-p", "no:cacheprovider", "-o", "asyncio_mode=auto", "-o", "asyncio_default_fixture_loop_scope=function")
PAGES = {
    "concepts": {"system.py"},
    "writing-a-transport": {"counting.py", "test_counting.py"},
    "migrating": {"orders.py", "migrations/0001_orders.sql", "mailer.py", "shipping.py"},
}


def write(page: str, folder: Path) -> set[str]:
    """Write the files of a page into a folder, and return their names."""
    names: set[str] = set()
    for found in FILE.finditer((ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")):
        if found["framework"] is None and not found["name"].endswith(".js"):
            path = folder / found["name"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(found["text"], encoding="utf-8")
            names.add(found["name"])
    return names


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"page_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def migrating(tmp_path: Path) -> Iterator[Path]:
    write("migrating", tmp_path)
    yield tmp_path
    for name in ("page_orders", "page_mailer"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("page", PAGES)
def test_every_program_of_a_page_is_a_known_file(page: str, tmp_path: Path) -> None:
    assert write(page, tmp_path) == PAGES[page]
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    assert text.count("\n```python\n") == len(re.findall(r"\n```python\n# (?:\w+: )?\S+\n", text)), "each block names its file"


def test_the_programs_are_fully_typed(tmp_path: Path) -> None:
    names = sorted({name for page in PAGES for name in write(page, tmp_path) if name.endswith(".py")})
    options = ["--strict", "--follow-imports", "silent", "--cache-dir", str(tmp_path / "mypy")]
    run(tmp_path, "mypy", *options, *names, MYPYPATH=str(ROOT))


def test_the_system_in_one_file_runs(tmp_path: Path) -> None:
    write("concepts", tmp_path)
    assert run(tmp_path, "system", PYTHONPATH=str(ROOT)) == "here is your tea\none less: tea\n"


def test_the_transport_of_the_page_conforms(tmp_path: Path) -> None:
    write("writing-a-transport", tmp_path)
    assert "1 passed" in run(tmp_path, *PYTEST, "test_counting.py", PYTHONPATH=f"{ROOT}:{tmp_path}")


async def test_the_orders_work_as_in_moleculer(migrating: Path) -> None:
    orders = load(migrating / "orders.py")
    wallet: type[FakeService] = fake(orders.wallet, {orders.Hold: lambda message: f"held {message.cents}"})
    async with Node([wallet, orders.Orders], MemoryTransport(), databases=SqliteFolder(migrating)) as node:
        ctx = node.client("test", (orders.orders,))
        order = await ctx.request(orders.Place("tea", 300))
        assert (order.item, order.hold, order.paid) == ("tea", "held 300", False)
        with pytest.raises(Invalid):
            await ctx.request(orders.Place("tea", -300))
        await publish(node, wallet, orders.Paid(order.id))

        running: Any = node.service(orders.Orders)

        async def is_paid() -> bool:
            row = await running.db.fetch_one("SELECT paid FROM orders WHERE id = $1", order.id)
            return bool(row["paid"])

        await eventually(is_paid, "the order is paid")


async def test_the_mailer_works_as_in_nameko(migrating: Path) -> None:
    mailer = load(migrating / "mailer.py")
    users: type[FakeService] = fake(mailer.users, {mailer.GetEmail: lambda message: f"{message.user_id}@example.com"})
    orders: type[FakeService] = fake(mailer.orders, {})
    async with Node([users, orders, mailer.Mailer], MemoryTransport(), databases=SqliteFolder(migrating)) as node:
        running: Any = node.service(mailer.Mailer)
        await publish(node, orders, mailer.Placed("ada"))
        await eventually(lambda: running.outbox == [("ada@example.com", "Thank you!")], "the mail is sent")
        assert await node.client("test", (mailer.mailer,)).request(mailer.Count()) == 1


def test_the_shipping_works_as_in_faststream(migrating: Path) -> None:
    assert "1 passed" in run(migrating, *PYTEST, "shipping.py", PYTHONPATH=str(ROOT))


async def publish(node: Node, publisher: type[FakeService], event: Event) -> None:
    service = node.service(publisher)
    assert service is not None
    await service.publish(event)
