"""The part of the OpenAPI document on `/live`: its events by service, and the tickets with which a browser follows them."""

from collections.abc import Iterable
from typing import Any

from gateway.tickets import SECONDS
from runtime.network import Manifest

Json = dict[str, Any]

_REF = "#/components/schemas/"
_POSITION = "The id of the last event that was received, such as `notices=12`. The stream continues after it."
_STREAM = """New items of the user, as server-sent events. The kind of an event is that of its item, its data is the item, and its id is the position at which
the client continues when it connects again. `gap` says that a service was restored from a backup, and `end` why the stream ends."""


def add_live(paths: Json, schemas: Json, manifests: Iterable[Manifest], security: list[Json], problem: Json) -> None:
    """Add what clients can follow, if any service marks something as `live`.

    Args:
        paths: the paths of the document.
        schemas: its schemas, which have those of the services.
        manifests: those of the services.
        security: the security requirements, each of which is enough.
        problem: the content of the responses to errors.
    """
    items = [item for manifest in manifests if (item := _item(manifest, schemas)) is not None]
    if not items:
        return
    replaced = "Whether the user has opened newer streams: wait a minute before you connect again, or it pushes out one of them."
    schemas["LiveEnd"] = _object(
        "The stream ends.", reason={"type": "string"}, replaced={"type": "boolean", "description": replaced}
    )
    gap = {"from": {"type": "string"}, "after": {"type": "integer"}, "why": {"type": "string"}}
    schemas["LiveGap"] = _object("A service was restored from a backup: after this number, its items are others.", **gap)
    ticket = {"ticket": {"type": "string"}, "expires_in": {"type": "integer", "description": "Seconds."}}
    schemas["LiveTicket"] = _object(f"A ticket for `/live`. It works once, for {SECONDS} seconds.", **ticket)
    variants = [*items, {"$ref": f"{_REF}LiveGap"}, {"$ref": f"{_REF}LiveEnd"}]
    paths["/live"] = {
        "get": {
            "operationId": "FollowLive",
            "tags": ["live"],
            "summary": "Follow what is new",
            "description": _STREAM,
            "parameters": [
                _text("query", "ticket", "A ticket, instead of an access token: `EventSource` sends no `Authorization`."),
                _text("query", "last_event_id", f"{_POSITION} For clients that cannot send the header."),
                _text("header", "Last-Event-ID", _POSITION),
            ],
            "responses": {
                "200": {"description": "The events", "content": {"text/event-stream": {"schema": {"anyOf": variants}}}},
                **_errors(problem, {400: "Malformed request", 401: "A valid access token or ticket is needed", 429: "Too many streams", 503: "Unavailable"}),
            },
            "security": [{}, *security],
        }
    }  # fmt: skip
    paths["/live/tickets"] = {
        "post": {
            "operationId": "CreateLiveTicket",
            "tags": ["live"],
            "summary": "Get a ticket for /live",
            "description": "A page passes it on in a URL, as `new EventSource('/live?ticket=…')`. It gets another one for each connection.",
            "responses": {
                "201": {"description": "The ticket", "content": {"application/json": {"schema": {"$ref": f"{_REF}LiveTicket"}}}},
                **_errors(problem, {401: "A valid access token is needed", 503: "Unavailable"}),
            },
            "security": security,
        }
    }


def _item(manifest: Manifest, schemas: Json) -> Json | None:
    """Return the schema of the items that a service marks as `live`, or None."""
    if manifest.live is None:
        return None
    info = next((info for info in manifest.requests if info.name == manifest.live.request), None)
    if info is None:
        return None
    page: Json = schemas.get(str(info.reply.get("$ref")).removeprefix(_REF), info.reply)
    found: Json | None = page.get("properties", {}).get("items", {}).get("items")
    return found


def _object(description: str, **properties: Json) -> Json:
    return {
        "type": "object",
        "description": description,
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _text(place: str, name: str, description: str) -> Json:
    return {"name": name, "in": place, "required": False, "description": description, "schema": {"type": "string"}}


def _errors(content: Json, texts: dict[int, str]) -> Json:
    return {str(status): {"description": text, "content": content} for status, text in texts.items()}
