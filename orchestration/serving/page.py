"""The page at `/` of the server of answers: a face to try the model with, for any browser.

GET /         the page: `web/`, as it is, no build step and nothing from another host
GET /about    what it must know of the model, as JSON:
              {"project", "version", "dataset_fingerprint", "inputs": {NAME: {"type", "suffixes", "most"}},
               "columns": [NAME, ...], "limits": {...}}
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

_WEB = Path(__file__).parent / "web"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
# Nothing of another host is loaded or asked, no other site may frame the page, and markup in an answer can do nothing.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob: data:; "
    "media-src blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(self), microphone=(self)",
    "Cache-Control": "no-cache",
}


def page_routes(about: Mapping[str, Any]) -> list[Route]:
    """Of the page and what it must know."""
    files = {file.name: file.read_bytes() for file in _WEB.iterdir() if file.suffix in _TYPES}

    async def tell(_: Request) -> Response:
        return JSONResponse(about, headers=_HEADERS)

    def serve(name: str) -> Any:
        async def answer(_: Request) -> Response:
            return Response(files[name], media_type=_TYPES[Path(name).suffix], headers=_HEADERS)

        return answer

    paths = {f"/{name}": name for name in files if name != "index.html"} | {"/": "index.html"}
    return [Route("/about", tell), *(Route(path, serve(name)) for path, name in paths.items())]


def about_model(model: Any, columns: list[str], project: str | None, body_bytes: int) -> dict[str, Any]:
    """What the page must know. A model that does not tell (`about`) takes texts, as far as anybody knows."""
    known: dict[str, Any] = {"version": None, "dataset_fingerprint": None, "limits": {}}
    known |= model.about() if hasattr(model, "about") else {"inputs": {name: {} for name in columns}}
    return {"project": project, **known, "limits": {**known["limits"], "max_body_bytes": body_bytes}}
