"""What surrounds every request: its id, the key, the limits of its body, its line in the log, its figures."""

import asyncio
import hmac
import logging
import re
import time
import uuid

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clara.config.serving import Serving
from clara.serving.errors import error_response
from clara.serving.metrics import Metrics

logger = logging.getLogger(__name__)
_ID = re.compile(r"[\x21-\x7e]{1,128}")
AGAINST = "/against"
PROTECTED = ("/v1/", f"{AGAINST}/v1/")
_SAFE = [
    (
        b"content-security-policy",
        b"default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    ),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]
"""Headers of every response: a browser loads nothing from elsewhere, and runs no script within a page."""
CLIENT_GONE = 499


class Guard:
    """ASGI middleware. No exception passes it: the client receives status 500 without a stack."""

    def __init__(self, app: ASGIApp, settings: Serving, metrics: Metrics, key: str) -> None:
        """Wrap an application.

        Args:
            app: what is surrounded.
            settings: limits.
            metrics: what is counted into.
            key: that requests below `/v1/` and `/against/v1/` must bear; empty: none.
        """
        self._app, self._settings, self._metrics, self._key = app, settings, metrics, key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        given = headers.get("x-request-id", "")
        request_id = given if _ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        began, status = time.monotonic(), 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *_SAFE, (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            refusal = self._refusal(scope["path"], headers)
            await (refusal or self._app)(scope, self._limited(receive, scope["method"]), sending)
        except Exception:
            logger.exception("request failed", extra={"fields": {"request_id": request_id}})
            self._metrics.failures.inc()
            if not status:
                await error_response(500, "a fault of the service; its log has more under this request id")(
                    scope, receive, sending
                )
        finally:
            self._note(scope, request_id, status or CLIENT_GONE, time.monotonic() - began)

    def _refusal(self, path: str, headers: dict[str, str]) -> ASGIApp | None:
        if self._key and path.startswith(PROTECTED):
            scheme, _, key = headers.get("authorization", "").partition(" ")
            right = hmac.compare_digest(key.strip().encode("latin-1"), self._key)
            if scheme.lower() != "bearer" or not right:
                return error_response(401, "a valid key is needed; send it as Authorization: Bearer KEY")
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self._settings.max_body_bytes:
            return error_response(413, self._too_large())
        return None

    def _too_large(self) -> str:
        return f"the body has more than {self._settings.max_body_bytes} bytes (serving.max_body_bytes); send less"

    def _limited(self, receive: Receive, method: str) -> Receive:
        """The body's messages until it is complete, within limits of length and time; then whatever comes."""
        end, num_bytes = time.monotonic() + self._settings.request_seconds, 0
        complete = method in ("GET", "HEAD")  # no body is read; what sends a file looks for a disconnect meanwhile

        async def receiving() -> Message:
            nonlocal num_bytes, complete
            if complete:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(0, end - time.monotonic()))
            except TimeoutError as error:
                raise HTTPException(408, "the body did not arrive in time; send it faster") from error
            num_bytes += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if num_bytes > self._settings.max_body_bytes:
                raise HTTPException(413, self._too_large())
            return message

        return receiving

    def _note(self, scope: Scope, request_id: str, status: int, seconds: float) -> None:
        path = getattr(scope.get("route"), "path", "other")  # the route's, of which there are few
        self._metrics.requests.labels(path, str(status)).inc()
        self._metrics.seconds.labels(path).observe(seconds)
        fields = {"request_id": request_id, "method": scope["method"], "path": scope["path"], "status": status}
        logger.info("request", extra={"fields": {**fields, "seconds": round(seconds, 4)}})
