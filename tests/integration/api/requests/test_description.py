"""The description of the API and its page, as whoever asks for them again and again gets them."""

import pytest

from tests.integration.api.running import Api

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize("path", ["/openapi.json", "/docs/swagger-ui.css", "/docs/start.js"])
async def test_who_has_it_is_not_sent_it_again(api: Api, path: str) -> None:
    http = api.client()
    first = await http.get(path)
    etag = first.headers["etag"]
    for known in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        again = await http.get(path, headers={"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
        assert again.headers["cache-control"] == first.headers["cache-control"]
    other = await http.get(path, headers={"If-None-Match": '"other"'})
    assert (other.status_code, other.content) == (200, first.content)


async def test_what_changes_with_a_release_alone_is_kept_and_the_rest_is_asked_for(api: Api) -> None:
    http = api.client()
    page = (await http.get("/docs")).text
    for name in ("swagger-ui.css", "swagger-ui-bundle.js", "start.js", "favicon-32x32.png"):
        assert f"docs/{name}?" in page
        assert (await http.get(f"/docs/{name}")).headers["cache-control"] == "public, max-age=3600"
    for path in ("/docs", "/openapi.json"):
        assert (await http.get(path)).headers["cache-control"] == "public, no-cache"


async def test_a_header_of_a_request_does_not_change_what_others_are_sent(api: Api) -> None:
    http = api.client()
    lie = {"X-Forwarded-Prefix": "//evil.test", "X-Forwarded-Host": "evil.test", "Host": "evil.test"}
    for path in ("/openapi.json", "/docs", "/"):
        lied, honest = await http.get(path, headers=lie), await http.get(path)
        assert b"evil.test" not in lied.content
        assert lied.headers.get("location") == honest.headers.get("location")
        assert lied.content == honest.content
