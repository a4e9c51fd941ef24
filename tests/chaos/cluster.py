"""PostgreSQL with a standby that confirms every commit, so that nothing that was answered is lost when it takes over."""

import asyncio
from pathlib import Path

from tests.postgres import Postgres
from tests.transports.proxy import Proxy

_OPTIONS = (
    "max_connections=400",
    "shared_buffers=32MB",
    "max_wal_size=96MB",
    "wal_level=replica",
    "hot_standby=on",
    "wal_retrieve_retry_interval=200ms",
)


class Cluster:
    """A primary, its standby, and the address that leads to the primary.

    Attributes:
        url: the URL of the database at the primary itself, for the account.
        link: the address that the services know.
    """

    def __init__(self, folder: Path) -> None:
        self.link = Proxy(0)
        self._folder = folder
        self._made = 0
        self._primary = Postgres(*_OPTIONS, folder=self._new_folder())
        self._primary.start()
        self.url = self._primary.new_database()
        self._lead()
        self._primary.run("ALTER SYSTEM SET synchronous_standby_names = '*'")  # the standby copies it
        self._primary.run("SELECT pg_reload_conf()")
        self._standby = self._new_standby()

    @property
    def services_url(self) -> str:
        """The URL by way of the link."""
        return self.url.replace(f":{self._primary.port}/", f":{self.link.port}/")

    def kill(self) -> None:
        """End the primary as a crash would."""
        if self._primary.is_running:
            self._primary.kill()

    def start(self) -> None:
        """Start what has ended."""
        for server in (self._primary, self._standby):
            if not server.is_running:
                server.start()

    def end_connections(self) -> None:
        """End all connections of services."""
        self._primary.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'callboard%'")

    async def fail_over(self) -> None:
        """Kill the primary, promote its standby, and give this one a standby."""
        async with asyncio.timeout(20):  # operators promote a standby that has what the primary has answered
            while await asyncio.to_thread(self._primary.run, "SELECT sync_state FROM pg_stat_replication") != "sync":
                await asyncio.sleep(0.05)
        lost, self._primary = self._primary, self._standby
        await asyncio.to_thread(lost.kill)
        await asyncio.to_thread(self._primary.run, "SELECT pg_promote()")
        self.url = self.url.replace(f":{lost.port}/", f":{self._primary.port}/")
        self._lead()
        self.link.cut()
        lost.stop()
        self._standby = await asyncio.to_thread(self._new_standby)

    def stop(self) -> None:
        """End both servers."""
        self._primary.stop()
        self._standby.stop()

    def _lead(self) -> None:
        self.link.to = self._primary.port

    def _new_standby(self) -> Postgres:
        standby = Postgres(*_OPTIONS, folder=self._new_folder(), of=self._primary)
        standby.start()
        return standby

    def _new_folder(self) -> Path:
        self._made += 1
        folder = self._folder / f"pg{self._made}"
        folder.mkdir(mode=0o700)
        return folder
