"""`callboard backup` and `callboard restore`: copy a service's database while it runs, and put a copy back."""

from pathlib import Path

import rich_click as click

from config import backups, compose
from config.cli import candidates
from config.cli.common import loaded, run_loop, with_config, with_json
from config.cli.output import json_text, progress


@click.command("backup")
@click.argument("service", shell_complete=candidates.services)
@click.argument("file", type=click.Path(path_type=Path))
@with_json
@with_config
def backup_command(service: str, file: Path, as_json: bool, config_file: Path | None) -> None:
    """Write a backup of SERVICE's database to FILE, which must not exist yet. Run it where the service runs. The service need not be stopped.

    The backup is the database as it was at one moment. On PostgreSQL, `pg_dump` writes it.

    \b
    Examples:
      callboard backup wallet wallet-2026-11-30.backup
    """
    settings = loaded(config_file).settings
    compose.definitions(settings, [service])  # names a service that does not exist
    with progress(f"copying the database of {service}") as done:
        made = run_loop(backups.back_up(settings, service, file, done))
    if as_json:
        click.echo(json_text({"service": service, "file": str(file), **made._asdict()}))
        return
    click.echo(f"{service} is in {file}: {made.size / 1e6:.1f} MB, with its events up to {made.head}.")


@click.command("restore")
@click.argument("service", shell_complete=candidates.services)
@click.argument("file", type=click.Path(path_type=Path))
@with_json
@with_config
def restore_command(service: str, file: Path, as_json: bool, config_file: Path | None) -> None:
    """Put a backup of SERVICE's database back, which `callboard backup` has written. The service must not be running.

    A new epoch of its stream begins: when the service is started, its subscribers move to it without help, and each logs
    the range of events that it has applied and that the service has lost. The database that was there before is kept under another name.

    \b
    Examples:
      callboard restore wallet wallet-2026-11-30.backup
    """
    settings = loaded(config_file).settings
    with progress(f"putting {file} back") as done:
        restored = run_loop(backups.restore(settings, service, file, done))
    if as_json:
        click.echo(json_text({"service": service, "file": str(file), **restored._asdict()}))
        return
    lost = restored.lost
    if lost is not None and lost > restored.head:
        click.echo(f"{service} has lost its events {restored.head + 1} to {lost}, which others may have applied.")
    kept = f" What was there before is kept in {restored.kept}." if restored.kept is not None else ""
    click.echo(f"{service} is restored, with its events up to {restored.head}. A new epoch begins.{kept}")
