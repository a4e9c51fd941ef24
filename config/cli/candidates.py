"""What a shell offers for the next word: names of services, requests, fields, and messages.

They come from the running system, or else from the project's classes. Whatever fails, nothing is offered and nothing is printed.
"""

import os
from collections.abc import Callable, Iterable
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

import msgspec
import rich_click as click

from config import compose
from config.cli.common import loaded
from config.cli.operations import Operation, fields_of, operations_of, project_openapi, signal_fields
from config.settings import Settings
from runtime import CallboardError

Complete = Callable[[click.Context, click.Parameter, str], list[str]]

_PATIENCE = 1.0
"""Seconds for which a running system may be slow to answer."""


def _quietly(find: Callable[[click.Context, str], Iterable[str]]) -> Complete:
    """Return what click asks for words. Code of the project may print or fail when it is imported."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
        try:
            with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
                found = list(find(ctx, incomplete))
        except Exception:  # of the project's own code, too: a shell that completes must print nothing
            return []
        taken = ctx.params.get(param.name or "") if param.nargs == -1 else None
        return [word for word in found if word.startswith(incomplete) and word not in (taken or ())]

    return complete


def _services(ctx: click.Context, _: str) -> Iterable[str]:
    return compose.catalogue(_settings(ctx))


def _requests(ctx: click.Context, incomplete: str) -> Iterable[str]:
    names = sorted(_operations(ctx))
    short = [name.partition(".")[2] for name in names]
    return names + [name for name in short if incomplete and short.count(name) == 1]


def _fields(ctx: click.Context, incomplete: str) -> Iterable[str]:
    wanted = str(ctx.params["request"]).casefold()
    [operation] = [
        operation
        for name, (_, _, operation) in _operations(ctx).items()
        if wanted in (name.casefold(), name.partition(".")[2].casefold())
    ]
    known = fields_of(operation)
    typed = [str(field) for field in ctx.params.get("fields") or ()]
    if typed[-1:] == ["="]:  # bash splits words at this sign
        return _values(known[typed[-2]][0])
    name, equals, _ = incomplete.partition("=")
    if equals:
        return [f"{name}={value}" for value in _values(known[name][0])]
    given = {field.partition("=")[0] for field in typed}
    return [f"{name}=" for name in known if name not in given]


def _events(ctx: click.Context, _: str) -> Iterable[str]:
    return sorted(name for manifest in compose.manifests(_settings(ctx)) for name in manifest.events)


def _signals(ctx: click.Context, _: str) -> Iterable[str]:
    return sorted(name for manifest in compose.manifests(_settings(ctx)) for name in manifest.signals)


def _fields_of_signal(ctx: click.Context, incomplete: str) -> Iterable[str]:
    wanted = str(ctx.params["signal"]).casefold()
    [spec] = [
        spec
        for cls in compose.catalogue(_settings(ctx)).values()
        for spec in cls.contract.messages.values()
        if spec.kind == "signal" and wanted in (spec.full_name.casefold(), spec.name.casefold())
    ]
    given = {str(field).partition("=")[0] for field in ctx.params.get("fields") or ()}
    return [f"{name}=" for name in signal_fields(spec) if name not in given]


def _messages(ctx: click.Context, _: str) -> Iterable[str]:
    return [*_events(ctx, _), *_signals(ctx, _)]


def _values(schema: dict[str, Any]) -> list[str]:
    """Return the values of a field of which there are only a few."""
    variants: list[dict[str, Any]] = schema.get("anyOf", [schema])
    found = [str(value) for variant in variants for value in variant.get("enum", ())]
    return found + ["true", "false"] * any(variant.get("type") == "boolean" for variant in variants)


def _operations(ctx: click.Context) -> dict[str, Operation]:
    """Return the requests of the running system, or else of the project."""
    from config.cli.client import Client  # every command imports this module, and few of them need an HTTP client

    settings = _settings(ctx)
    try:
        status, openapi = Client(settings, ctx.params.get("url") or "", None, timeout=_PATIENCE).ask("GET", "/openapi.json")
        if status == 200:
            return operations_of(openapi)
    except CallboardError:
        pass
    return operations_of(msgspec.json.decode(project_openapi(settings)))


def _settings(ctx: click.Context) -> Settings:
    return loaded(ctx.params.get("config_file")).settings


services: Complete = _quietly(_services)
"""Offers the services of the project."""
requests: Complete = _quietly(_requests)
"""Offers the requests that clients can make."""
fields: Complete = _quietly(_fields)
"""Offers the fields of the request that was named before, and their values where there are only a few."""
fields_of_signal: Complete = _quietly(_fields_of_signal)
"""Offers the fields of the signal that was named before."""
events: Complete = _quietly(_events)
"""Offers the events of all services."""
signals: Complete = _quietly(_signals)
"""Offers the signals of all services."""
messages: Complete = _quietly(_messages)
"""Offers the events and signals of all services."""
