"""`callboard call`: one request to a running system, through its gateway, by the request's name."""

import os
import sys
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlencode
from urllib.request import Request as HttpRequest
from urllib.request import urlopen

import msgspec
import rich_click as click

from config.cli.common import loaded, with_config
from config.settings import Settings
from runtime import CallboardError


@click.command("call")
@click.argument("request")
@click.argument("fields", nargs=-1, metavar="[FIELD=VALUE…|JSON]")
@click.option("--url", default="", help="The gateway (default: $CALLBOARD_URL, else as the settings say).")
@click.option(
    "--as",
    "email",
    help="Log in as this user first; the password is the one of `callboard dev`, or asked for.",
)
@click.option("--key", help="An Idempotency-Key.")
@click.option("--json", "as_json", is_flag=True, help="The reply on one line.")
@with_config
def call_command(
    request: str, fields: tuple[str, ...], url: str, email: str | None, key: str | None, as_json: bool, config_file: Path | None
) -> None:
    """Make a REQUEST, as in `callboard call wallet.TopUp amount_cents=500 --as rider@example.com`.

    An access token is taken from $CALLBOARD_TOKEN if there is one. The exit status is 1 when the answer is an error.
    """
    settings = loaded(config_file).settings
    base = (url or os.environ.get("CALLBOARD_URL") or f"http://{settings.gateway.host}:{settings.gateway.port}").rstrip("/")
    if not base.startswith(("http://", "https://")):
        raise CallboardError(f"--url {base}: expected http:// or https://")
    _, openapi = _http("GET", f"{base}/openapi.json", None, {})
    method, path, operation = _find(openapi, request)
    token = _log_in(base, email, settings) if email else os.environ.get("CALLBOARD_TOKEN")
    values = _values(fields, operation)
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    if key is not None:
        headers["Idempotency-Key"] = key
    status, answer = _http(method, *_address(base, path, operation, values), headers)
    text = b"" if answer is None else msgspec.json.encode(answer)
    if text:
        click.echo((text if as_json else msgspec.json.format(text, indent=2)).decode())
    if status >= 400:
        sys.exit(1)


def _find(openapi: dict[str, Any], request: str) -> tuple[str, str, dict[str, Any]]:
    names: list[str] = []
    for path, methods in openapi["paths"].items():
        for method, operation in methods.items():
            name: str = operation["operationId"]
            if request in (name, name.partition(".")[2]):
                return method.upper(), path, operation
            names.append(name)
    raise CallboardError(f"there is no request {request}: choose from {', '.join(sorted(names))}")


def _values(fields: tuple[str, ...], operation: dict[str, Any]) -> dict[str, Any]:
    if len(fields) == 1 and fields[0].lstrip().startswith("{"):
        try:
            return msgspec.json.decode(fields[0], type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise CallboardError(f"the fields are no JSON object: {error}") from None
    body = _body_fields(operation)
    values: dict[str, Any] = {}
    for field in fields:
        name, equals, text = field.partition("=")
        if not equals:
            raise CallboardError(f"{field!r}: expected FIELD=VALUE")
        values[name] = text
        if name in body and not _takes_text(body[name]):
            try:
                values[name] = msgspec.json.decode(text)
            except msgspec.DecodeError:
                pass  # the service says what it expected
    return values


def _body_fields(operation: dict[str, Any]) -> dict[str, Any]:
    content = operation.get("requestBody", {}).get("content", {})
    properties: dict[str, Any] = content.get("application/json", {}).get("schema", {}).get("properties", {})
    return properties


def _takes_text(schema: dict[str, Any]) -> bool:
    variants: list[dict[str, Any]] = schema.get("anyOf", [schema])
    return any(variant.get("type") == "string" or "enum" in variant for variant in variants)


def _address(base: str, path: str, operation: dict[str, Any], values: dict[str, Any]) -> tuple[str, bytes | None]:
    """The URL and the body."""
    left = dict(values)
    known = {parameter["name"] for parameter in operation.get("parameters", ())} | _body_fields(operation).keys()
    for name in left:
        if name not in known:
            raise CallboardError(
                f"{operation['operationId']} has no field {name}: it takes {', '.join(sorted(known - {'Idempotency-Key'})) or 'none'}"
            )
    query: dict[str, Any] = {}
    for parameter in operation.get("parameters", ()):
        name = parameter["name"]
        if parameter["in"] == "path":
            if name not in left:
                raise CallboardError(f"{operation['operationId']} needs {name}=…")
            path = path.replace(f"{{{name}}}", quote(str(left.pop(name)), safe=""))
        elif parameter["in"] == "query" and name in left:
            query[name] = left.pop(name)
    if "requestBody" not in operation:
        query |= left
    url = f"{base}{path}" + (f"?{urlencode(query)}" if query else "")
    return url, msgspec.json.encode(left) if "requestBody" in operation else None


def _log_in(base: str, email: str, settings: Settings) -> str:
    password: str = settings.dev.password or _kept_password(settings) or click.prompt("Password", hide_input=True, err=True)
    status, answer = _http("POST", f"{base}/sessions", msgspec.json.encode({"email": email, "password": password}), {})
    if status != 201:
        raise CallboardError(f"cannot log in as {email}: {answer.get('title', status)}")
    token: str = answer["access_token"]
    return token


def _kept_password(settings: Settings) -> str | None:
    try:
        return (Path(settings.database.folder) / "password").read_text(encoding="utf-8").strip()
    except OSError:
        return None


def _http(method: str, url: str, body: bytes | None, headers: dict[str, str]) -> tuple[int, Any]:
    sent = HttpRequest(url, data=body, method=method, headers={**headers, "Content-Type": "application/json"})  # noqa: S310
    try:
        with urlopen(sent, timeout=60) as response:  # noqa: S310
            text, status = response.read(), response.status
    except HTTPError as error:
        text, status = error.read(), error.code
    except (URLError, OSError) as error:
        reason = error.reason if isinstance(error, URLError) else error
        raise CallboardError(f"{url} cannot be reached ({reason}): is the system running? (make dev)") from None
    try:
        return status, msgspec.json.decode(text) if text else None
    except msgspec.DecodeError:
        raise CallboardError(f"{url} answered {status} with something that is no JSON") from None
