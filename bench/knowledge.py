"""``python -m bench.knowledge``: speed and recall of the knowledge base.

Indexing is compared with a bare loop that encodes the same chunks. Look-ups are timed over 100,000 chunks.
Recall is measured with sixty questions of known answers. Run nothing else at the same time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.config.settings import load
from app.engine.embedder import Embedder, normalized
from app.engine.llama import Batch, EmbeddingContext, Model
from app.knowledge.chunk import Chunk
from app.knowledge.chunking import embedded_text, split_into_chunks
from app.knowledge.index.store import IndexedFile, Store
from app.knowledge.knowledge import Knowledge, KnowledgeOptions
from app.knowledge.reading.reader import SUFFIXES, read_document
from app.machine.cores import physical_cores
from app.machine.installation import ROOT
from app.service.encoders.retrieval import knowledge_options
from app.weights.embedding import resolve_embedding_model

_CORPUS = (ROOT / "data", ROOT / "tests" / "knowledge" / "corpus")
_QUESTIONS = ROOT / "tests" / "knowledge" / "questions.json"
_BATCH, _MOST_TEXTS = 384, 64


class _NoObserver:
    """An observer that ignores all events."""

    def on_indexed(self, n_chunks: int, problem: str | None) -> None:
        pass

    def on_index(self, n_documents: int, n_chunks: int, n_skipped: int) -> None:
        pass

    def on_lookup(self, seconds: float) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Bench:
    """Measurements with one embedding model."""

    path: Path
    n_threads: int
    options: Callable[[Path, Path], KnowledgeOptions]

    def indexing(self, n_documents: int, rounds: int) -> dict[str, float]:
        """Median seconds to index documents, and of a bare loop over the same chunks."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "documents"
            folder.mkdir()
            _write_documents(folder, n_documents)
            seconds: dict[str, list[float]] = {"indexed": [], "bare": []}
            n_chunks = 0
            for number in range(rounds):
                took, sequences = self._index(folder, Path(name) / f"index-{number}")
                seconds["indexed"].append(took)
                seconds["bare"].append(self._encode(sequences))
                n_chunks = len(sequences)
        indexed, bare = (statistics.median(seconds[kind]) for kind in ("indexed", "bare"))
        return {
            "documents": n_documents,
            "chunks": n_chunks,
            "indexed seconds": indexed,
            "bare seconds": bare,
            "bare / indexed": bare / indexed,
        }

    def _index(self, folder: Path, index: Path) -> tuple[float, list[list[int]]]:
        embedder = Embedder(self.path, n_threads=self.n_threads)
        sequences: list[list[int]] = []
        submit = embedder.submit

        def noted(texts: Sequence[Sequence[int]], **more: Any) -> Any:
            sequences.extend(list(tokens) for tokens in texts)
            return submit(texts, **more)

        embedder.submit = noted  # type: ignore[method-assign]
        started = time.perf_counter()
        knowledge = Knowledge(self.options(folder, index), embedder, _NoObserver())
        knowledge.start()
        try:
            asyncio.run(knowledge.wait_until_indexed(3600))
            return time.perf_counter() - started, sequences
        finally:
            knowledge.close()
            embedder.close()

    def _encode(self, sequences: Sequence[Sequence[int]]) -> float:
        model = Model(self.path)
        context = EmbeddingContext(model, n_batch=_BATCH, n_sequences=_MOST_TEXTS, n_threads=self.n_threads)
        batch, n = Batch(_BATCH), 0
        started = time.perf_counter()
        for tokens in sequences:
            if n == _MOST_TEXTS or batch.n_tokens + len(tokens) > _BATCH:
                context.encode(batch)
                batch.clear()
                n = 0
            batch.add(tokens, 0, n, n_outputs=len(tokens))
            n += 1
        context.encode(batch)
        took = time.perf_counter() - started
        context.close()
        model.close()
        return took

    def look_up(self, n_chunks: int, n_queries: int) -> dict[str, float]:
        """Milliseconds of a look-up over many chunks, and of embedding its question."""
        questions = [entry["question"] for entry in json.loads(_QUESTIONS.read_text())]
        embedder = Embedder(self.path, n_threads=self.n_threads)
        embedding, looking_up = [], []
        with tempfile.TemporaryDirectory() as name:
            store = Store(Path(name), dimensions=embedder.dimensions, identity="bench")
            _fill(store, n_chunks, embedder.dimensions, _sentences())
            for number in range(n_queries):
                question = questions[number % len(questions)]
                begin = time.perf_counter()
                [vector] = normalized(embedder.submit([embedder.fit(question)]).result())
                embedded = time.perf_counter()
                store.search(vector, question, top_k=4, threshold=-1.0)
                looking_up.append((time.perf_counter() - embedded) * 1000)
                embedding.append((embedded - begin) * 1000)
            store.close()
        embedder.close()
        p50, p99 = np.percentile(looking_up, [50, 99])
        return {
            "chunks": n_chunks,
            "look-up p50 ms": float(p50),
            "look-up p99 ms": float(p99),
            "embedding p50 ms": statistics.median(embedding),
        }

    def recall(self, k: int, thresholds: Sequence[float]) -> dict[str, float]:
        """Share of questions with a passage that contains the answer among the first ``k``."""
        entries = json.loads(_QUESTIONS.read_text())
        embedder = Embedder(self.path, n_threads=self.n_threads)
        chunks: list[Chunk] = []
        with tempfile.TemporaryDirectory() as name:
            store = Store(Path(name), dimensions=embedder.dimensions, identity="bench")
            options = self.options(Path(name), Path(name))
            for root in _CORPUS:
                for path in sorted(p for p in root.rglob("*") if p.suffix in SUFFIXES):
                    found = [
                        *split_into_chunks(
                            read_document(path),
                            file=path.relative_to(root).as_posix(),
                            n_tokens=embedder.count,
                            max_tokens=options.chunk_tokens,
                            overlap=options.chunk_overlap,
                        )
                    ]
                    vectors = _embed(embedder, [options.passage_prefix + embedded_text(c) for c in found])
                    store.replace(IndexedFile(found[0].file, "-", 0, len(found), None), found, vectors)
                    chunks += found
            matrix = _embed(embedder, [options.passage_prefix + embedded_text(c) for c in chunks])
            queries = _embed(embedder, [options.query_prefix + entry["question"] for entry in entries])
            figures: dict[str, float] = {"questions": len(entries), "chunks": len(chunks)}
            by_vectors = [[chunks[i] for i in np.argsort(-(matrix @ vector))[:k]] for vector in queries]
            figures["vectors alone"] = _share(entries, by_vectors)
            for threshold in thresholds:
                found_by = [
                    [p.chunk for p in store.search(v, e["question"], top_k=k, threshold=threshold)]
                    for v, e in zip(queries, entries, strict=True)
                ]
                figures[f"hybrid, threshold {threshold}"] = _share(entries, found_by)
            store.close()
        embedder.close()
        return figures


def _embed(embedder: Embedder, texts: Sequence[str]) -> NDArray[np.float32]:
    return normalized(embedder.submit([embedder.fit(text) for text in texts]).result())


def _share(entries: Sequence[dict[str, str]], found: Sequence[Sequence[Chunk]]) -> float:
    right = [
        any(chunk.file == entry["file"] and _plain(entry["answer"]) in _plain(chunk.text) for chunk in chunks)
        for entry, chunks in zip(entries, found, strict=True)
    ]
    return sum(right) / len(right)


def _plain(text: str) -> str:
    return " ".join(text.split())


def _sentences() -> list[str]:
    texts = [
        p.read_text() for root in _CORPUS for p in sorted(root.rglob("*")) if p.suffix in (".md", ".txt")
    ]
    return [s.strip() for text in texts for s in text.replace("\n", " ").split(". ") if len(s) > 20]


def _write_documents(folder: Path, n: int) -> None:
    draw, sentences = random.Random(1), _sentences()
    for number in range(n):
        sections = []
        for section in range(draw.randrange(1, 8)):
            text = ". ".join(draw.choices(sentences, k=draw.randrange(5, 40)))
            sections.append(f"## Section {section}\n\n{text}.")
        (folder / f"{number:04}.md").write_text(f"# Document {number}\n\n" + "\n\n".join(sections))


def _fill(store: Store, n_chunks: int, dimensions: int, sentences: Sequence[str]) -> None:
    draw, noise = random.Random(2), np.random.default_rng(2)
    for number in range(n_chunks // 1000):
        name = f"{number}.md"
        chunks = [
            Chunk(name, i, f"Section {i}", None, ". ".join(draw.choices(sentences, k=8))) for i in range(1000)
        ]
        vectors = normalized(noise.standard_normal((1000, dimensions)).astype(np.float32))
        store.replace(IndexedFile(name, "-", 0, 1000, None), chunks, vectors)


def main() -> None:
    """Run the selected measurements and print their figures."""
    parser = argparse.ArgumentParser(prog="python -m bench.knowledge", description=__doc__)
    parser.add_argument("--only", choices=["indexing", "look-up", "recall"], help="default: all")
    parser.add_argument("--documents", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--chunks", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=300)
    chosen = parser.parse_args()
    settings = load(knowledge="on")

    def options(folder: Path, index: Path) -> KnowledgeOptions:
        return replace(knowledge_options(settings), folder=folder, index=index)

    bench = Bench(resolve_embedding_model(settings), settings.model_threads or physical_cores(), options)
    runs: dict[str, Callable[[], dict[str, float]]] = {
        "indexing": lambda: bench.indexing(chosen.documents, chosen.rounds),
        "look-up": lambda: bench.look_up(chosen.chunks, chosen.queries),
        "recall": lambda: bench.recall(3, [-1.0, 0.15, settings.knowledge_threshold]),
    }
    for name, run in runs.items():
        if chosen.only in (None, name):
            print(
                f"{name}: " + ", ".join(f"{what} {figure:.4g}" for what, figure in run().items()), flush=True
            )


if __name__ == "__main__":
    main()
