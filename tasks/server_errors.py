"""What Prefect's client raises where its server is away, or refuses what it is asked."""

import httpx
from prefect.exceptions import PrefectException

SERVER_ERRORS = (httpx.HTTPError, PrefectException)
"""What is only shown must not stop what is paid for: who shows something lets these pass."""
