"""Which third parties each layer imports, and what importing the runtime loads."""

import subprocess
import sys
from pathlib import Path

import grimp
import pytest

ALLOWED: dict[str, set[str]] = {
    "runtime": {"asyncpg", "anyio", "msgspec", "jwt", "cryptography", "aiosqlite", "opentelemetry"},
    "transports": {"httptools", "jwt", "msgspec", "mqtt5", "yarl"},
    "services": {"anyio", "msgspec", "jwt", "cryptography", "argon2", "idna"},
    "gateway": {"anyio", "msgspec", "litestar", "multipart", "prometheus_client", "swagger_ui"},
    "config": {
        "aiohttp",
        "aiomqtt",
        "cryptography",
        "h11",
        "httpx",
        "jinja2",
        "prompt_toolkit",
        "jwt",
        "msgspec",
        "opentelemetry",
        "paho",
        "pytest",
        "pytest_asyncio",
        "rich",
        "rich_click",
        "structlog",
        "uvloop",
        "watchfiles",
    },
}


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph(*ALLOWED, include_external_packages=True, cache_dir=None)


@pytest.mark.parametrize("layer", ALLOWED)
def test_a_layer_imports_exactly_its_allowed_third_parties(graph: grimp.ImportGraph, layer: str) -> None:
    used: set[str] = set()
    for module in graph.find_descendants(layer) | {layer}:
        used |= {name.partition(".")[0] for name in graph.find_modules_directly_imported_by(module)}
    third = {name for name in used if name not in ALLOWED and name not in sys.stdlib_module_names}
    assert third == ALLOWED[layer]


@pytest.mark.parametrize(
    ("module", "packages"),
    [
        ("runtime", ("jwt", "cryptography", "aiosqlite", "sqlite3", "litestar", "anyio")),
        ("config.cli.run", ("litestar", "aiohttp", "mqtt5")),
    ],
)
def test_a_process_loads_only_the_packages_that_it_uses(module: str, packages: tuple[str, ...]) -> None:
    """The runtime loads no driver, and a process without a gateway no HTTP server, which takes start time and memory."""
    script = f"import sys, {module}; print([name for name in {packages} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_package_is_marked_as_typed() -> None:
    root = Path(__file__).parent.parent.parent
    packages = [root / name for name in ALLOWED if name != "services"]
    packages += [path.parent for path in (root / "services").glob("*/__init__.py")]
    assert [path.name for path in packages if not (path / "py.typed").exists()] == []
