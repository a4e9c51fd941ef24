"""`callboard provision`: create the credentials with which the services of a project run in containers or on several machines."""

from pathlib import Path

import rich_click as click

from config.cli.common import loaded, with_config
from config.provision import provision
from config.settings import EXAMPLE_USERS
from config.users import has_our_auth


@click.command("provision")
@click.argument("folder", type=click.Path(path_type=Path))
@with_config
def provision_command(folder: Path, config_file: Path | None) -> None:
    """Create certificates, keys, and passwords for the services of the project in FOLDER, unless they are there.

    Each service has a folder in it for `…_FILE` settings, and so has the broker. What all may see is in `shared`.

    \b
    Examples:
      callboard provision secrets
    """
    settings = loaded(config_file).settings
    created = provision(folder, settings)
    outcome = "created certificates, keys, and passwords; recreate the running containers" if created else "all credentials exist"
    click.echo(f"{folder}: {outcome}")
    if has_our_auth(settings):
        click.echo(f"log in as {', '.join(EXAMPLE_USERS)} with the password in {folder / 'password'}")
