"""A client of each provider's batches, and the server that it asks."""

from collections.abc import AsyncIterator, Iterator

import pytest

from potstill.llm.batches.base import BatchProtocol
from tests.batch_teacher import BatchTeacher, opened


@pytest.fixture
def teacher() -> Iterator[BatchTeacher]:
    with BatchTeacher() as teacher:
        yield teacher


@pytest.fixture(params=["openai", "anthropic"])
def provider(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
async def batches(provider: str, teacher: BatchTeacher) -> AsyncIterator[BatchProtocol]:
    async with opened(provider, teacher) as batches:
        yield batches
