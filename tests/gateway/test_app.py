"""The gateway's own pages."""

from runtime.testing import FakeAuth
from tests.gateway.environment import GatewayEnvironment, check_problem


async def test_the_gateway_serves_its_own_pages(env: GatewayEnvironment) -> None:
    assert (await env.client.get("/healthz")).json() == {"status": "ok"}
    assert (await env.client.head("/healthz")).content == b""
    for path, allowed in (("/healthz", "GET, HEAD, OPTIONS"), ("/openapi.json", "GET, HEAD, OPTIONS"), ("/live", "GET, OPTIONS")):
        wrong = await env.client.delete(path)
        check_problem(wrong, 405, "method-not-allowed")
        options = await env.client.options(path)
        assert options.status_code == 204
        assert wrong.headers["allow"] == options.headers["allow"] == allowed
    docs = await env.client.get("/docs")
    assert "text/html" in docs.headers["content-type"]
    assert "http" not in docs.text.replace("http-equiv", ""), "the page loads nothing from other sites"
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in docs.text, (
        "a phone shows it at its own width"
    )
    for element in ('<html lang="en">', "<title>", "<main>", "<h1 "):
        assert docs.text.count(element) == 1, "axe finds no fault of ours: Swagger UI puts what it shows into <main>"
    assert "ServersContainer: () => () => null" in (await env.client.get("/docs/start.js")).text, "the select has no name"
    for path in ("/docs/start.js", "/docs/assets/swagger-ui-bundle.js", "/docs/assets/swagger-ui.css"):
        assert (await env.client.get(path)).status_code == 200
    metrics = await env.client.get("/metrics", headers={"Authorization": f"Bearer {FakeAuth.token('o', 'operator')}"})
    assert "# TYPE callboard_requests_running gauge" in metrics.text
    jwks = await env.client.get("/.well-known/jwks.json")
    assert jwks.json()["keys"][0]["kid"] == "fake"
    assert jwks.headers.get_list("cache-control") == ["public, max-age=30"]


async def test_the_title_of_the_documentation_is_text() -> None:
    async with GatewayEnvironment("one-node-zero-copy", title="Tom & <b>Jerry</b>") as env:
        assert "<title>Tom &amp; &lt;b&gt;Jerry&lt;/b&gt;</title>" in (await env.client.get("/docs")).text
