"""The gateway's own pages."""

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
    for path in ("/docs/start.js", "/docs/assets/swagger-ui-bundle.js", "/docs/assets/swagger-ui.css"):
        assert (await env.client.get(path)).status_code == 200
    metrics = await env.client.get("/metrics")
    assert "# TYPE callboard_requests_running gauge" in metrics.text
    jwks = await env.client.get("/.well-known/jwks.json")
    assert jwks.json()["keys"][0]["kid"] == "fake"
    assert jwks.headers.get_list("cache-control") == ["public, max-age=30"]
