"""The client of the commands: whom it sends a password, and what it says about answers that are not a gateway's."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import rich_click as click

from config.cli import client as client_module
from config.cli.client import Client
from config.console import with_console
from config.jwks import issuers
from config.settings import DatabaseSettings, DevSettings, Settings
from runtime import CallboardError, Clock
from runtime.issuers import IssuerVerifier
from tests.project import rental

PASSWORD = "the development password"
TOKEN = b'{"access_token": "a token"}'


class Recorder(HTTPServer):
    """A server that records what it receives, and always gives the same answer."""

    def __init__(self, status: int, body: bytes, **headers: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = status, body, headers
        self.received: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Recorder

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        self.server.received.append(f"{self.requestline}\n{self.headers}\n{body}")
        status, text, headers = self.server.answer
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = _answer

    def log_message(self, format: str, *args: object) -> None: ...


@contextmanager
def serving(status: int, body: bytes, **headers: str) -> Iterator[Recorder]:
    with Recorder(status, body, **headers) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def typed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The questions that the user was asked. The user types `typed`."""
    asked: list[str] = []

    def prompt(text: str, **_: object) -> str:
        asked.append(text)
        return "typed"

    monkeypatch.setattr(click, "prompt", prompt)
    for name in ("CALLBOARD_URL", "CALLBOARD_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return asked


def settings(folder: Path, *, stored: bool) -> Settings:
    """Return settings with the development password, in a file of the folder or set explicitly."""
    (folder / "password").write_text(f"{PASSWORD}\n")
    return rental(database=DatabaseSettings(folder=str(folder)), dev=DevSettings(password=None if stored else PASSWORD))


def pretend_to_run(monkeypatch: pytest.MonkeyPatch, url: str | None) -> None:
    """Let the client see a running system with this URL on its folder."""
    monkeypatch.setattr(client_module, "running_url", lambda folder: url)


@pytest.mark.parametrize("stored", [True, False])
def test_the_running_system_is_found_and_gets_the_development_password(
    tmp_path: Path, stored: bool, typed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(201, TOKEN) as server:
        pretend_to_run(monkeypatch, server.url)
        client = Client(settings(tmp_path, stored=stored), "", "operator@example.com")
        assert client.url == server.url
        client.log_in()
        assert client.token == "a token"
        assert PASSWORD in server.received[0]
        assert "operator@example.com" in server.received[0]
        assert typed == []


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("running", [None, "http://127.0.0.1:1", "https://127.0.0.1:{port}", "http://localhost:{port}"])
def test_the_development_password_goes_to_no_other_url(
    tmp_path: Path, stored: bool, running: str | None, typed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(201, TOKEN) as server:
        pretend_to_run(monkeypatch, running and running.format(port=server.server_address[1]))
        client = Client(settings(tmp_path, stored=stored), server.url, "rider@example.com")
        client.log_in()
        assert typed == [f"Password of rider@example.com at {server.url}"]
        Client(settings(tmp_path, stored=stored), server.url, None).log_in(as_operator=True)
        assert len(server.received) == 1, "without --as, nobody logs in"
        assert PASSWORD not in "".join(server.received)


@pytest.mark.parametrize("has_our_auth", [True, False])
def test_the_console_of_the_running_system_needs_no_login(
    tmp_path: Path, has_our_auth: bool, typed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a key in its folder, and for this system alone."""
    with serving(201, TOKEN) as server:
        pretend_to_run(monkeypatch, server.url)
        found = settings(tmp_path, stored=True) if has_our_auth else Settings(database=DatabaseSettings(folder=str(tmp_path)))
        with_console(found)
        (issuer,) = issuers(with_console(found))
        for email, roles, subject, expected in (
            (None, (), "console", ("operator", "admin")),
            (None, ("editor",), "console", ("editor",)),
            ("ada", ("editor", "author"), "ada", ("editor", "author")),
            *(() if has_our_auth else [("ada", (), "ada", ())]),
        ):
            client = Client(found, "", email, roles)
            client.log_in(as_operator=True)
            assert client.token is not None
            verified, *_ = asyncio.run(IssuerVerifier(issuer, Clock()).verify(client.token))
            assert (verified.subject, verified.roles) == (subject, expected)
        monkeypatch.setenv("CALLBOARD_TOKEN", "given")
        client = Client(found, "", None)
        client.log_in(as_operator=True)
        assert client.token == "given"
        with pytest.raises(CallboardError, match="set CALLBOARD_TOKEN"):
            Client(found, "http://127.0.0.1:1", "ada", ("editor",)).log_in()
        assert (server.received, typed) == ([], [])
    assert [path.stat().st_mode & 0o77 for path in tmp_path.glob("console*")] == [0, 0]


def test_a_redirect_takes_neither_password_nor_token_to_another_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(200, TOKEN) as other:
        for status in (301, 302, 303, 307, 308):
            with serving(status, b"", Location=f"{other.url}/sessions") as server:
                pretend_to_run(monkeypatch, server.url)
                client = Client(settings(tmp_path, stored=True), "", "rider@example.com")
                client.token = "a token"
                with pytest.raises(CallboardError, match=f"answered {status}"):
                    client.log_in()
                assert client.ask("GET", "/wallet")[0] == status
        assert other.received == []


def test_a_server_on_this_machine_is_reached_without_a_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(201, TOKEN) as server, serving(201, TOKEN) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        pretend_to_run(monkeypatch, server.url)
        Client(settings(tmp_path, stored=True), "", "rider@example.com").log_in()
        assert (len(server.received), proxy.received) == (1, [])


@pytest.mark.parametrize("status", [200, 201, 204, 400, 401, 404, 500, 503])
@pytest.mark.parametrize(
    "body", [b"", b"<html>hello</html>", b"[]", b"{}", b"null", b'"text"', b'{"access_token": 1}', b"\xff", b"[" * 5000]
)
def test_an_answer_that_is_not_a_gateways_is_a_sentence(tmp_path: Path, status: int, body: bytes) -> None:
    with serving(status, body) as server:
        client = Client(settings(tmp_path, stored=True), server.url, "rider@example.com")
        with pytest.raises(CallboardError) as caught:
            client.log_in()
        text = str(caught.value)
        assert server.url in text
        assert str(status) in text
        assert "is that the URL of a gateway?" in text


@pytest.mark.parametrize("url", ["ftp://x", "127.0.0.1:8000", "http://", "http://[::1", "http://x:many"])
def test_a_wrong_url_is_a_sentence(tmp_path: Path, url: str) -> None:
    with pytest.raises(CallboardError, match="expected a URL such as"):
        Client(settings(tmp_path, stored=True), url, None)


def test_a_connection_that_ends_early_is_a_sentence(tmp_path: Path) -> None:
    with serving(201, b"{", **{"Content-Length": "100"}) as server:
        client = Client(settings(tmp_path, stored=True), server.url, "rider@example.com")
        with pytest.raises(CallboardError, match="cannot be reached"):
            client.log_in()
