"""OpenAI's client, connected to the server."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest


@pytest.fixture(scope="session")
def client(server_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server_url}/v1", api_key="none", max_retries=0, timeout=90) as client:
        yield client


@pytest.fixture
def model_name(client: openai.OpenAI) -> str:
    return client.models.list().data[0].id
