"""The gateway's own pages."""

from tests.gateway.environment import GatewayEnvironment


async def test_the_gateway_serves_its_own_pages(env: GatewayEnvironment) -> None:
    assert (await env.client.get("/healthz")).json() == {"status": "ok"}
    assert (await env.client.head("/healthz")).content == b""
    docs = await env.client.get("/docs")
    assert "text/html" in docs.headers["content-type"]
    assert "http" not in docs.text.replace("http-equiv", ""), "the page loads nothing from other sites"
    for path in ("/docs/start.js", "/docs/assets/swagger-ui-bundle.js", "/docs/assets/swagger-ui.css"):
        assert (await env.client.get(path)).status_code == 200
    metrics = await env.client.get("/metrics")
    assert "# TYPE callboard_requests_running gauge" in metrics.text
    jwks = await env.client.get("/.well-known/jwks.json")
    assert jwks.json()["keys"][0]["kid"] == "fake"
    assert jwks.headers.get_list("cache-control") == ["public, max-age=30"]
