"""The commands of `callboard bench`. They use the public API with the runtime's default settings."""

from functools import partial

import msgspec
import rich_click as click

from config.cli.bench import gateway, processes, requests
from config.cli.bench.measured import Math, Subscriber
from config.cli.common import run_loop, with_json
from config.cli.output import progress


@click.group("bench")
def bench_command() -> None:
    """Measure performance on this machine, in operations per second.

    Compare figures only with others from the same run on the same machine.

    \b
    Examples:
      callboard bench local
      callboard bench mqtt --json
    """


@bench_command.command("local")
@with_json
def local_command(as_json: bool) -> None:
    """Measure sequential requests within one process, with and without encoding.

    \b
    Examples:
      callboard bench local
    """
    for name, zero_copy in (("local_c1", True), ("local_serialized_c1", False)):
        with progress(f"measuring {name}"):
            rate = run_loop(requests.local(zero_copy))
        _print_rate(name, rate, as_json)


@bench_command.command("http")
@with_json
def http_command(as_json: bool) -> None:
    """Measure a REST route through the gateway with `wrk -t1 -c64`. Every request has a valid access token.

    \b
    Examples:
      callboard bench http
    """
    gateway.require_wrk()
    with progress("measuring the gateway with wrk"):
        rate = run_loop(gateway.with_service())
    _print_rate("gateway", rate, as_json)


@bench_command.command("mqtt")
@with_json
def mqtt_command(as_json: bool) -> None:
    """Measure requests between two processes over MQTT, sequential and 64 at a time.

    Uses the broker at $CALLBOARD_BENCH_BROKER, or starts a mosquitto broker.

    \b
    Examples:
      callboard bench mqtt
    """
    for name, callers, count in (("request_c1", 1, 5_000), ("request_c64", 64, 64_000)):
        with progress(f"measuring {name}"):
            measure = partial(requests.concurrently, callers=callers, count=count)
            rate = run_loop(processes.over_mqtt([Math], measure))
        _print_rate(name, rate, as_json)


@bench_command.command("peers")
@with_json
def peers_command(as_json: bool) -> None:
    """Measure requests between two processes over HTTP, sequential and 64 at a time.

    \b
    Examples:
      callboard bench peers
    """
    for name, callers, count in (("peers_c1", 1, 4_000), ("peers_c64", 64, 32_000)):
        with progress(f"measuring {name}"):
            measure = partial(requests.concurrently, callers=callers, count=count)
            rate = run_loop(processes.over_http([Math], measure))
        _print_rate(name, rate, as_json)


@bench_command.command("events")
@with_json
def events_command(as_json: bool) -> None:
    """Measure 100,000 signals between two processes over MQTT.

    The time runs from the first to the last signal received. Uses the same broker as `mqtt`.

    \b
    Examples:
      callboard bench events
    """
    with progress("measuring signals"):
        rate = run_loop(processes.over_mqtt([Subscriber], requests.signals))
    _print_rate("events", rate, as_json)


@bench_command.command("http-mqtt")
@with_json
def http_mqtt_command(as_json: bool) -> None:
    """Measure the same as `http`, with the service in a second process behind an MQTT broker.

    \b
    Examples:
      callboard bench http-mqtt
    """
    gateway.require_wrk()
    with progress("measuring the gateway with wrk and the service behind a broker"):
        rate = run_loop(gateway.behind_broker())
    _print_rate("gateway_mqtt", rate, as_json)


@bench_command.command("serve", hidden=True)
@click.argument("services", nargs=-1)
def serve_command(services: tuple[str, ...]) -> None:
    """Run the second process of a benchmark.

    \b
    Examples:
      callboard bench serve math
    """
    run_loop(processes.serve(services))


def _print_rate(name: str, rate: float, as_json: bool) -> None:
    if as_json:
        click.echo(msgspec.json.encode({"name": name, "rate": round(rate)}).decode())
    else:
        click.echo(f"{name:24} {rate:>12,.0f} per second")
