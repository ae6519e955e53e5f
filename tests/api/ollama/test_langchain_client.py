"""LangChain's ChatOllama and OllamaEmbeddings."""

from __future__ import annotations

from typing import Literal

import pytest
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_ollama import ChatOllama, OllamaEmbeddings
from pydantic import BaseModel

pytestmark = pytest.mark.slow


class Mood(BaseModel):
    """The mood of a text."""

    mood: Literal["positive", "negative"]


def test_chat_ollama_invokes_streams_and_structures(embedding_url: str) -> None:
    chat = ChatOllama(base_url=embedding_url, model="any", num_predict=30, temperature=0)
    try:
        answer = chat.invoke([SystemMessage("Be brief."), HumanMessage("Where is located Paris ?")])
        assert answer.content
        assert answer.usage_metadata
        assert answer.usage_metadata["input_tokens"] > 5
        assert answer.response_metadata["done_reason"] in ("stop", "length")
        question = [SystemMessage("Be brief."), HumanMessage("Where is located Paris ?")]
        assert "".join(str(chunk.content) for chunk in chat.stream(question)) == answer.content
        mood = chat.with_structured_output(Mood, method="json_schema").invoke("How does 'I love it' feel?")
        assert isinstance(mood, Mood)
    finally:
        chat._client.close()


def test_ollama_embeddings_embed_documents_and_queries(embedding_url: str) -> None:
    embeddings = OllamaEmbeddings(base_url=embedding_url, model="any")
    try:
        [vector, other] = embeddings.embed_documents(["The bridge opens at six.", "Owls."])
        assert embeddings.embed_query("The bridge opens at six.") == pytest.approx(vector, abs=1e-3)
        assert len(other) == 384
    finally:
        assert embeddings._client is not None
        embeddings._client.close()
