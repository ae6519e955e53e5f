"""Relevance of documents to a query, by a model that reads both together (a cross-encoder)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path

from app.engine.embedder import Embedder, Vectors
from app.engine.fair_lock import FairLock


class Reranker:
    """A reranking model: a GGUF file whose pooling type is ``rank``."""

    def __init__(
        self,
        path: Path,
        *,
        n_threads: int,
        lock: FairLock | None = None,
        on_failure: Callable[[BaseException], None] | None = None,
    ) -> None:
        """Load the model and start its thread; see :class:`Embedder`.

        Raises:
            ModelLoadError: llama.cpp rejects the file, or it is not a reranker.
        """
        self._embedder = Embedder(path, n_threads=n_threads, pooling="rank", lock=lock, on_failure=on_failure)
        self.name = self._embedder.name
        self.max_tokens = self._embedder.max_tokens
        # One output is a logit. Several are probabilities of labels; the first means relevant.
        self.has_logits = self._embedder.dimensions == 1

    def pairs(self, query: str, documents: Sequence[str]) -> Iterator[tuple[list[int], bool]]:
        """For each document the tokens of its pair with the query, and whether they are truncated.

        Without a template in the model file, the format is that of cross-encoders by BERT and XLM-RoBERTa:
        ``[CLS] query [SEP] document [SEP]`` and ``<s> query </s></s> document </s>``. The end of the document
        is dropped if the pair is too long, and of the query beyond half of the room.
        """
        vocab = self._embedder.vocab
        before, between, behind = self._around()
        room = self.max_tokens - len(before) - len(between) - len(behind)
        query_tokens = vocab.tokenize(query, parse_special=False)
        for document in documents:
            tokens = vocab.tokenize(document, parse_special=False)
            asked = query_tokens[: max(room // 2, room - len(tokens))]
            told = tokens[: room - len(asked)]
            is_truncated = (len(asked), len(told)) != (len(query_tokens), len(tokens))
            yield [*before, *asked, *between, *told, *behind], is_truncated

    def _around(self) -> list[list[int]]:
        """The tokens before the query, between query and document, and behind the document."""
        vocab, template = self._embedder.vocab, self._embedder.rerank_template
        if template is not None:
            head, _, rest = template.partition("{query}")
            middle, _, end = rest.partition("{document}")
            return [vocab.tokenize(text, parse_special=True) for text in (head, middle, end)]
        bos = [vocab.bos] if vocab.add_bos else []
        eos = [vocab.eos if vocab.eos >= 0 else vocab.sep] if vocab.add_eos else []
        sep = [vocab.sep] if vocab.add_sep else []
        return [bos, eos + sep, eos or sep]

    def submit(self, pairs: Sequence[Sequence[int]]) -> Future[Vectors]:
        """Compute the outputs of pairs, shape (pairs, outputs). The future may fail with EmbeddingError.

        Raises:
            EmbeddingError: The model is closed or has failed.
        """
        return self._embedder.submit(pairs)

    def close(self) -> None:
        """Free the model; see :meth:`Embedder.close`."""
        self._embedder.close()
