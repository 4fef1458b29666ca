"""The page at `/`: files of this package, which ask nobody but this service."""

import os
from typing import Any

from fastapi import FastAPI
from fastapi.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

FOLDER = "static"


class _Files(StaticFiles):
    """Files that a browser asks for again after an update of the package."""

    def file_response(self, full_path: str | os.PathLike[str], *args: Any, **options: Any) -> Response:
        """See `StaticFiles`."""
        response = super().file_response(full_path, *args, **options)
        response.headers["Cache-Control"] = "no-cache"
        if str(full_path).endswith(".js"):
            response.headers["Content-Type"] = "text/javascript"  # some machines know it as plain text
        return response


def add_page(app: FastAPI) -> None:
    """Add the page."""
    files = _Files(packages=[("clara.serving", FOLDER)])
    app.mount(f"/{FOLDER}", files)

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(files.lookup_path("index.html")[0], headers={"Cache-Control": "no-cache"})
