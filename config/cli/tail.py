"""`callboard tail`: follow the events and signals of a running system."""

import re
import time
import zlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, NamedTuple, cast
from urllib.parse import urlencode

import msgspec
import rich_click as click

from config import compose
from config.cli import candidates
from config.cli.client import Client, NotAllowed, with_gateway
from config.cli.common import loaded, with_config, with_json
from config.cli.output import json_text, print_error, progress
from config.settings import Settings
from runtime import CallboardError
from runtime.clock import rfc3339
from runtime.telemetry import printable

_KINDS = ("event", "signal")
_COLOURS = {"event": "green", "signal": "cyan"}
_SERVICE_COLOURS = ("yellow", "blue", "magenta", "bright_green", "bright_blue", "bright_magenta", "bright_cyan", "bright_yellow")
_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")
_LONGEST_PAUSE = 15.0
"""Seconds between two attempts to connect again, at most."""
_RECENT = 60.0
"""A publisher of which nothing came for so many seconds has nothing to catch up on."""


def _moment(_: click.Context, __: click.Parameter, value: str | None) -> datetime | None:
    """Return a time, or the time that a duration ago was."""
    if value is None:
        return None
    try:
        match = _DURATION.fullmatch(value)
        if match is not None and value:
            days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
            return datetime.now(UTC) - timedelta(days, hours=hours, minutes=minutes, seconds=seconds)
        moment: datetime = msgspec.convert(value, Annotated[datetime, msgspec.Meta(tz=True)])
        return moment
    except (msgspec.ValidationError, OverflowError):
        raise CallboardError(
            f"--since {value}: expected a duration such as 10m or 1h30m, or an RFC 3339 time such as 2026-11-30T08:00:00Z"
        ) from None


class _Condition(NamedTuple):
    """What a field of a body has to be. A path leads into objects and arrays: `spot.lat`, `items.0`."""

    path: tuple[str, ...]
    text: str

    def holds(self, body: Any) -> bool:
        for name in self.path:
            if isinstance(body, dict) and name in body:
                body = cast("dict[str, Any]", body)[name]
            elif isinstance(body, list) and name.isdecimal() and int(name) < len(cast("list[Any]", body)):
                body = cast("list[Any]", body)[int(name)]
            else:
                return False
        if isinstance(body, str):
            return body == self.text
        try:
            wanted = msgspec.json.decode(self.text)
        except msgspec.DecodeError:
            return False
        return bool(body == wanted) and isinstance(body, bool) == isinstance(wanted, bool)


def _conditions(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> list[_Condition]:
    found: list[_Condition] = []
    for value in values:
        field, equals, text = value.partition("=")
        if not equals or not field:
            raise CallboardError(f"--where {value}: expected FIELD=VALUE, such as user_id=u1 or spot.lat=52.5")
        found.append(_Condition(tuple(field.split(".")), text))
    return found


class _Selection(NamedTuple):
    """Which messages are shown.

    Attributes:
        kinds: `event`, `signal`, or both.
        origins: the services that have published them; all, if empty.
    """

    patterns: Sequence[str]
    kinds: Sequence[str]
    origins: Sequence[str]
    conditions: Sequence[_Condition]

    def __str__(self) -> str:
        kinds = " and ".join(f"{kind}s" for kind in self.kinds)
        parts = [", ".join(self.patterns) or "everything", kinds]
        parts += [f"from {' or '.join(self.origins)}"] * bool(self.origins)
        parts += [f"where {'.'.join(one.path)}={one.text}" for one in self.conditions]
        return printable(", ".join(parts))

    def path(self, since: str) -> str:
        query = [("match", pattern) for pattern in self.patterns] + [("kind", kind) for kind in self.kinds]
        return f"/console/tail?{urlencode(query + [('since', since)] * bool(since))}"

    def has(self, kind: str, data: dict[str, Any]) -> bool:
        """Return whether a message is shown, or a line about messages."""
        if self.origins and data.get("from", self.origins[0]) not in self.origins:
            return False
        return kind not in _KINDS or all(one.holds(data["body"]) for one in self.conditions)


class _Shown:
    """The events that have come, so that a new connection resumes there, with no gaps or duplicates.

    Args:
        since: the time of the first events to show, as streams store it; empty for none from before.

    Attributes:
        connected: whether a gateway has accepted the last request.
        ever_connected: whether one has accepted any.
    """

    def __init__(self, since: str) -> None:
        self.connected = False
        self.ever_connected = False
        self._first = since
        self._last: dict[str, tuple[int, str, float]] = {}

    @property
    def since(self) -> str:
        """The time from which on events may be missing; empty if nothing has come yet, and nothing from before is wanted."""
        if not self._last:
            return self._first
        now = time.monotonic()
        recent = [at for _, at, came in self._last.values() if now - came < _RECENT]
        return min(recent) if recent else max(at for _, at, _ in self._last.values())

    def is_new(self, data: dict[str, Any]) -> bool:
        """Return whether an event has not come before, and remember it."""
        seq, at, _ = self._last.get(data["from"], (0, "", 0.0))
        if data["seq"] <= seq and data["at"] <= at:
            return False
        self._last[data["from"]] = data["seq"], data["at"], time.monotonic()
        return True


@click.command("tail")
@click.argument("patterns", nargs=-1, metavar="[PATTERN…]", shell_complete=candidates.messages)
@click.option("--kind", type=click.Choice(_KINDS), help="Show events only, or signals only.")
@click.option("--events", "only_events", is_flag=True, help="The same as --kind event.")
@click.option("--signals", "only_signals", is_flag=True, help="The same as --kind signal.")
@click.option(
    "--from",
    "origins",
    multiple=True,
    metavar="SERVICE",
    shell_complete=candidates.services,
    help="Show only what this service has published. May be repeated.",
)
@click.option(
    "--where",
    "conditions",
    callback=_conditions,
    multiple=True,
    metavar="FIELD=VALUE",
    help="Show only messages with this value in a field of their body. May be repeated: then all have to fit.",
)
@click.option(
    "--since",
    callback=_moment,
    metavar="TIME",
    help="Begin with the events since an RFC 3339 time, or for a duration such as 10m or 1h30m. Signals are not retained, so only new ones are shown.",
)
@with_json
@with_gateway
@with_config
def tail_command(
    patterns: tuple[str, ...],
    kind: str | None,
    only_events: bool,
    only_signals: bool,
    origins: tuple[str, ...],
    conditions: list[_Condition],
    since: datetime | None,
    as_json: bool,
    url: str,
    email: str | None,
    roles: tuple[str, ...],
    config_file: Path | None,
) -> None:
    """Show events and signals as they happen. Stop with Ctrl-C.

    Shows only messages whose name matches a PATTERN, such as `rides.*` or `fleet.Telemetry`, or all messages if no PATTERN
    is given. Operators and admins may use this command. If `dev` or `up` runs in this folder, no login is needed.

    If the connection is lost, it is opened again, and the events that were published meanwhile are shown.

    \b
    Examples:
      callboard tail 'rides.*' --as operator@example.com
      callboard tail --kind event --since 1h --where user_id=u1
    """
    kinds = {*([kind] if kind else []), *["event"] * only_events, *["signal"] * only_signals} or {*_KINDS}
    if since is not None and "event" not in kinds:
        raise CallboardError("--since: signals are not retained, so none from before can be shown: leave it out, or show events")
    selection = _Selection(patterns, sorted(kinds), origins, conditions)
    settings = loaded(config_file).settings
    _warn_of_unknown(settings, selection)
    client = Client(settings, url, email, roles)
    shown = _Shown(rfc3339(since) if since is not None else "")
    try:
        said, pause = "", 1.0
        while True:
            shown.connected = False
            try:
                _show(client, selection, shown, as_json)
            except CallboardError as error:
                if not shown.ever_connected or isinstance(error, NotAllowed):
                    raise
                said, pause = ("", 1.0) if shown.connected else (said, pause)
                if str(error) != said:
                    print_error(f"{error}; trying again")
                    said = str(error)
            time.sleep(pause)  # the token has expired, or the system is restarting
            pause = 1.0 if shown.connected else min(2 * pause, _LONGEST_PAUSE)
    except KeyboardInterrupt:
        return


def _warn_of_unknown(settings: Settings, selection: _Selection) -> None:
    """Say which patterns and services fit nothing that the project has. It may be another system's, or come later, so this is not an error."""
    try:
        manifests = compose.manifests(settings)
    except CallboardError:
        return
    names = {name for manifest in manifests for name in (*manifest.events, *manifest.signals)}
    if not names:
        return  # no project here
    services = {manifest.service for manifest in manifests}
    wrong = [pattern for pattern in selection.patterns if not any(fnmatchcase(name, pattern) for name in names)]
    unknown = [(pattern, {*names, *(f"{service}.*" for service in services)}) for pattern in wrong]
    unknown += [(service, services) for service in selection.origins if service not in services]
    for given, known in unknown:
        [near, *_] = [*get_close_matches(given, sorted(known), 1), ""]
        hint = f": did you mean {near}?" if near else ""
        print_error(f"the project in this folder has nothing called {given}{hint}")


def _show(client: Client, selection: _Selection, shown: _Shown, as_json: bool) -> None:
    """Show messages until the server ends the stream.

    Raises:
        CallboardError: if the gateway cannot be reached or refuses the request.
    """
    since = shown.since

    def connected() -> None:
        shown.connected = shown.ever_connected = True
        begin = "" if not since else f", since {since}" if len(selection.kinds) == 1 else f", those events since {since}"
        click.echo(f"listening to {selection}{begin}, at {client.url}; Ctrl-C stops", err=True)

    with progress("logging in"):
        client.log_in(as_operator=True)
    for kind, data in client.follow(selection.path(since), connected):
        if kind == "event" and not shown.is_new(data):
            continue
        if kind == "end":
            print_error(f"the stream has ended: {data['reason']}")
        elif not selection.has(kind, data):
            continue
        elif as_json:
            click.echo(json_text({"kind": kind, **data}))
        elif kind == "dropped":
            print_error(f"{data['signals']} signals arrived too fast and are not shown")
        elif kind == "gap":
            print_error(f"events of {data['from']} are missing here: {data['why']}")
        else:
            click.echo(_line(kind, data))


def _line(kind: str, data: dict[str, Any]) -> str:
    now = datetime.now().astimezone()
    at = datetime.fromisoformat(data["at"]).astimezone() if "at" in data else now
    day = "" if at.date() == now.date() else f"{at:%Y-%m-%d} "
    number = f"#{data['seq']} " if "seq" in data else ""
    service, _, name = printable(data["name"]).partition(".")
    colour = _SERVICE_COLOURS[zlib.crc32(service.encode()) % len(_SERVICE_COLOURS)]
    name = click.style(service, fg=colour) + click.style(f".{name:{max(23 - len(service), 0)}}", bold=kind == "event")
    return (
        f"{day}{at:%H:%M:%S.%f}"[:-3] + f" {click.style(f'{kind:6}', fg=_COLOURS[kind])} {name} {number}{json_text(data['body'])}"
    )
