"""`callboard call`: send one request to a running system through its gateway."""

import sys
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import msgspec
import rich_click as click

from config.cli import candidates
from config.cli.client import Client, with_gateway
from config.cli.common import loaded, with_config
from config.cli.operations import KEY, Operation, fields_of, given_values, operations_of, shown_type
from config.cli.output import json_text, print_error, progress, table
from runtime import CallboardError


@click.command("call")
@click.argument("request", required=False, shell_complete=candidates.requests)
@click.argument("fields", nargs=-1, metavar="[FIELD=VALUE…|JSON]", shell_complete=candidates.fields)
@click.option(
    "--describe", is_flag=True, help="Show the fields, permitted roles, reply, and errors of the request instead of sending it."
)
@click.option("--key", help="The Idempotency-Key to send. A request that is repeated with the same key takes effect only once.")
@click.option("--json", "as_json", is_flag=True, help="Print the reply on one line, and the list or the description as JSON.")
@with_gateway
@with_config
def call_command(
    request: str | None,
    fields: tuple[str, ...],
    describe: bool,
    key: str | None,
    as_json: bool,
    url: str,
    email: str | None,
    roles: tuple[str, ...],
    config_file: Path | None,
) -> None:
    """Send a REQUEST to a running system and print the reply, or list all requests if no REQUEST is given.

    Without `--as`, the access token in $CALLBOARD_TOKEN is used, if it is set. The exit status is 1 if the reply is an error.

    \b
    Examples:
      callboard call wallet.TopUp amount_cents=500 --as rider@example.com
      callboard call StartRide --describe
    """
    client = Client(loaded(config_file).settings, url, email, roles)
    with progress("asking the gateway for its requests"):
        status, openapi = client.ask("GET", "/openapi.json")
    if status != 200 or not isinstance(openapi.get("paths"), dict):
        raise CallboardError(f"{client.url}/openapi.json answered {status} without an OpenAPI document: is that a gateway?")
    operations = operations_of(openapi)
    if request is None:
        _list(operations, as_json)
        return
    operation = _find(operations, request)
    if describe:
        if as_json:
            click.echo(json_text(_document(operation) | _answers(operation[2], openapi)))
        else:
            _describe(operation, openapi)
        return
    values = given_values(fields, {name: schema for name, (schema, _) in fields_of(operation[2]).items()})
    path, headers, body = _parts(operation, values)
    if key is not None:
        headers[KEY] = key
    with progress(f"calling {request}"):
        client.log_in()
        status, answer = client.ask_any(operation[0], path, body, headers)
    if answer is not None:
        click.echo(json_text(answer, indent=not as_json))
    if status == 401:
        print_error("log in first, for example with --as rider@example.com, or act as a user with --role rider")
    elif status == 403:
        print_error(f"{operation[2]['operationId']} is allowed to: {_allow(operation[2])}")
    elif status == 422:
        print_error(f"it takes {_signature(operation[2]) or 'no fields'}")
    if status >= 400:
        sys.exit(1)


# Listing and describing requests


def _document(found: Operation) -> dict[str, Any]:
    method, path, operation = found
    return {
        "request": operation["operationId"],
        "summary": operation.get("summary", ""),
        "method": method,
        "path": path,
        "allow": list(operation.get("x-roles", ())) or ["anyone"],
        "fields": [
            {"name": name, "type": shown_type(schema), "required": required, "default": schema.get("default")}
            for name, (schema, required) in fields_of(operation).items()
        ],
    }


def _answers(operation: dict[str, Any], openapi: dict[str, Any]) -> dict[str, Any]:
    reply, fields = _reply(operation, openapi)
    return {
        "reply": reply,
        "reply_fields": [{"name": name, "type": shown_type(schema)} for name, schema in fields.items()],
        "errors": [{"status": int(status), "code": code} for status, code in _errors(operation, openapi)],
    }


def _list(operations: dict[str, Operation], as_json: bool) -> None:
    if as_json:
        table([_document(operation) for _, operation in sorted(operations.items())], as_json)
        return
    rows = [
        {
            "request": name,
            "fields": _signature(operation),
            "allow": _allow(operation),
            "summary": operation.get("summary", ""),
        }
        for name, (_, _, operation) in sorted(operations.items())
    ]
    table(rows, as_json=False)


def _signature(operation: dict[str, Any]) -> str:
    return " ".join(name if required else f"[{name}]" for name, (_, required) in fields_of(operation).items())


def _describe(found: Operation, openapi: dict[str, Any]) -> None:
    method, path, operation = found
    click.echo(
        f"{operation['operationId']}: {operation.get('summary', '')}\n\n  {method} {path}\n  allowed to: {_allow(operation)}\n"
    )
    for name, (schema, required) in fields_of(operation).items():
        default = f", by default {msgspec.json.encode(schema['default']).decode()}" if schema.get("default") is not None else ""
        click.echo(f"  {name}: {shown_type(schema)}{'' if required else ' (optional' + default + ')'}")
    reply, fields = _reply(operation, openapi)
    click.echo(f"\n  answers {reply or 'nothing'}")
    for field, part in fields.items():
        click.echo(f"    {field}: {shown_type(part)}")
    for status, code in _errors(operation, openapi):
        click.echo(f"  or {status} {code}")


def _reply(operation: dict[str, Any], openapi: dict[str, Any]) -> tuple[str | None, dict[str, dict[str, Any]]]:
    """Return the type of the reply, or None if there is none, and the schemas of its fields."""
    success = next(answer for status, answer in operation["responses"].items() if status < "400")
    schema = success.get("content", {}).get("application/json", {}).get("schema")
    if not schema:
        return None, {}
    name = schema.get("$ref", "").rpartition("/")[2]
    return shown_type(schema), openapi["components"]["schemas"].get(name, {}).get("properties", {})


def _errors(operation: dict[str, Any], openapi: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the status and the code of each error."""
    for status, answer in operation["responses"].items():
        for problem in answer["content"].values() if status >= "400" else ():
            for variant in problem["schema"].get("anyOf", [problem["schema"]]):
                error = openapi["components"]["schemas"].get(variant.get("$ref", "").rpartition("/")[2], {})
                codes = error.get("properties", {}).get("code", {}).get("enum", ())
                if codes:
                    yield status, codes[0]


def _allow(operation: dict[str, Any]) -> str:
    return ", ".join(operation.get("x-roles", ())) or "anyone"


# Sending a request


def _find(operations: dict[str, Operation], request: str) -> Operation:
    wanted = request.casefold()
    matching = [name for name in operations if wanted in (name.casefold(), name.partition(".")[2].casefold())]
    exact = [name for name in matching if name.casefold() == wanted]
    if len(matching) == 1 or exact:
        return operations[(exact or matching)[0]]
    if matching:
        raise CallboardError(f"several services have a request {request}: choose from {', '.join(matching)}")
    of_service = [name for name in operations if name.startswith(f"{wanted}.")]
    if of_service:
        raise CallboardError(f"{request} is a service: choose from {', '.join(of_service)}")
    short = [name.partition(".")[2] for name in operations]
    near = get_close_matches(request.rpartition(".")[2], dict.fromkeys(short), 3)
    if any(short.count(name) > 1 for name in near):
        near = [name for name in operations if name.partition(".")[2] in near]
    meant = f"did you mean {' or '.join(near)}? " if near else ""
    raise CallboardError(f"there is no request {request} for clients: {meant}`callboard call` lists all requests")


def _parts(found: Operation, values: dict[str, Any]) -> tuple[str, dict[str, str], bytes | None]:
    """Return the path with its query string, the header fields, and the body or None."""
    _, path, operation = found
    remaining = dict(values)
    content = operation.get("requestBody", {}).get("content", {})
    if content and "application/json" not in content:
        raise CallboardError(
            f"{operation['operationId']} takes a body of {', '.join(content)}, which this command cannot send: use curl"
        )
    known = fields_of(operation)
    for name in remaining:
        if name not in known:
            raise CallboardError(f"{operation['operationId']} has no field {name}: it takes {', '.join(sorted(known)) or 'none'}")
    query: dict[str, Any] = {}
    headers: dict[str, str] = {}
    cookies: dict[str, Any] = {}
    for parameter in operation.get("parameters", ()):
        name = parameter["name"]
        if parameter["in"] == "path":
            if name not in remaining:
                raise CallboardError(f"{operation['operationId']} needs {name}=…")
            path = path.replace(f"{{{name}}}", quote(str(remaining.pop(name)), safe=""))
        elif parameter["in"] == "query" and name in remaining:
            query[name] = remaining.pop(name)
        elif parameter["in"] == "header" and name in remaining:
            headers[name] = str(remaining.pop(name))
        elif parameter["in"] == "cookie" and name in remaining:
            cookies[name] = remaining.pop(name)
    if cookies:
        headers["Cookie"] = "; ".join(f"{name}={value}" for name, value in cookies.items())
    address = path + (f"?{urlencode(query)}" if query else "")
    return address, headers, msgspec.json.encode(remaining) if content else None
