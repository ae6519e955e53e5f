"""GET /v1/models and /v1/models/{name}."""

from __future__ import annotations

import openai
import pytest


def test_the_served_model_is_listed_and_others_are_not_found(server_url: str, client: openai.OpenAI) -> None:
    [listed] = client.models.list().data
    assert client.models.retrieve(listed.id) == listed
    with openai.OpenAI(base_url=server_url, api_key="none") as without_version:
        assert without_version.models.list().data == [listed]
        assert without_version.models.retrieve(listed.id) == listed
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("another/model")
    assert error.value.code == "model_not_found"


def test_the_embedding_model_is_listed(embedding_url: str) -> None:
    with openai.OpenAI(base_url=f"{embedding_url}/v1", api_key="none") as client:
        chat, embedding = client.models.list().data
        assert client.models.retrieve(embedding.id) == embedding
    assert chat.id.startswith("SmolLM2")
    assert embedding.id == "all-MiniLM-L6-v2"
    assert embedding.model_dump()["max_model_len"] == 512
