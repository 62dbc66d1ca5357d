"""Prefect's REST API, for what only looks at a server or starts a run on it: a second of imports and 200 MB less than its client.

The address and the auth string are those that Prefect's own client reads: `PREFECT_API_URL`, `PREFECT_API_AUTH_STRING`.
"""

import base64
import os
from typing import Any, NamedTuple

import httpx

from potstill.errors import OrchestratorError

URL_VARIABLE = "PREFECT_API_URL"
AUTH_VARIABLE = "PREFECT_API_AUTH_STRING"
TIMEOUT_SECONDS = 15.0


class PrefectApi(NamedTuple):
    """One server. Errors: `OrchestratorError` where it does not answer, or refuses; it names the address and the remedy."""

    url: str
    """With /api at its end."""
    auth: str | None = None
    """user:password, as the server's `PREFECT_SERVER_API_AUTH_STRING` has it."""

    def get(self, path: str) -> Any:
        """The JSON under a path, such as /health."""
        return self._ask("GET", path, None)

    def post(self, path: str, body: Any) -> Any:
        """What the server answers to a JSON body; None where it answers nothing."""
        return self._ask("POST", path, body)

    def patch(self, path: str, body: Any) -> Any:
        """Change an object; what the server answers, or None."""
        return self._ask("PATCH", path, body)

    def find(self, what: str, **query: Any) -> list[dict[str, Any]]:
        """Objects by Prefect's filters, such as `find("deployments", deployments={"name": {"any_": ["demo"]}})`."""
        return self.post(f"/{what}/filter", query)

    def _ask(self, method: str, path: str, body: Any) -> Any:
        try:
            reply = httpx.request(
                method, f"{self.url}{path}", json=body, headers=self._headers(), timeout=TIMEOUT_SECONDS
            )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise OrchestratorError(
                f"Prefect at {self.url} does not answer ({type(error).__name__}: {error}): start it, "
                f"or name another in {URL_VARIABLE}"
            ) from None
        if reply.status_code in {401, 403}:
            raise OrchestratorError(
                f"Prefect at {self.url} refuses the auth string: set {AUTH_VARIABLE} to the server's"
            )
        if reply.is_error:
            raise OrchestratorError(
                f"Prefect at {self.url} answers {reply.status_code} to {method} {path}: {reply.text[:300]}"
            )
        try:
            return reply.json() if reply.content else None
        except ValueError:
            raise OrchestratorError(
                f"{self.url} does not answer as Prefect does to {method} {path}: correct {URL_VARIABLE}"
            ) from None

    def _headers(self) -> dict[str, str]:
        if self.auth is None:
            return {}
        return {"Authorization": "Basic " + base64.b64encode(self.auth.encode()).decode()}


def prefect_api() -> PrefectApi:
    """The server that the environment names. Errors: `OrchestratorError` where it names none."""
    url = os.environ.get(URL_VARIABLE)
    if not url:
        raise OrchestratorError(f"no Prefect server is named: set {URL_VARIABLE}, such as http://127.0.0.1:4200/api")
    return PrefectApi(url.rstrip("/"), os.environ.get(AUTH_VARIABLE) or None)
