"""The tables of the index and the queries over them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np

from app.knowledge.chunk import Chunk
from app.knowledge.index import words

if TYPE_CHECKING:
    from numpy.typing import NDArray

_QUERY_CHARACTERS = 4096  # of the query, for the search by words
_QUERY_WORDS = 32
# BM25 visits every chunk with one of the words, at about 0.7 µs each. Above this number of visits, the most
# frequent words of the query are left out, because they discriminate least.
_WALKED = 2000
_COMMON = 1000  # chunks; counting a word visits all its chunks, so counts of frequent words are stored
_COUNT_AGAIN = 1.25  # growth of the index before they are counted again

TABLES = f"""
create table meta(key text primary key, value text not null) without rowid;
create table files(
  id integer primary key autoincrement, name text not null unique, fingerprint text not null,
  n_bytes integer not null, n_chunks integer not null, problem text, stamp text not null,
  first_chunk integer not null, packed blob not null);
create table chunks(
  id integer primary key, file integer not null, position integer not null,
  heading text not null, page integer, text text not null);
create table vectors(id integer primary key, vector blob not null);
create virtual table words using fts5(text, content='', tokenize="{words.TOKENIZER}");
create virtual table vocabulary using fts5vocab(words, row);
create table common_words(word text primary key, n_chunks integer not null) without rowid;
"""


def delete_file(db: sqlite3.Connection, name: str) -> int | None:
    """Delete a file with its chunks. Returns its id, or None if it does not exist."""
    row = db.execute("select id, first_chunk, n_chunks from files where name = ?", (name,)).fetchone()
    if row is None:
        return None
    file, first, n_chunks = row
    span = (first, first + n_chunks - 1)
    old = db.execute("select id, heading, text from chunks where id between ? and ?", span).fetchall()
    db.executemany(
        "insert into words(words, rowid, text) values ('delete', ?, ?)",
        ((chunk, _indexed_words(heading, text)) for chunk, heading, text in old),
    )
    db.execute("delete from chunks where id between ? and ?", span)
    db.execute("delete from vectors where id between ? and ?", span)
    db.execute("delete from files where id = ?", (file,))
    return int(file)


def insert_chunks(
    db: sqlite3.Connection, first: int, file: int, chunks: Sequence[Chunk], vectors: NDArray[np.float32]
) -> None:
    """Insert a file's chunks with ids from ``first``, their unit vectors (chunks, dimensions) and words."""
    numbered = list(enumerate(chunks, first))
    db.executemany(
        "insert into chunks values (?, ?, ?, ?, ?, ?)",
        ((number, file, c.position, c.heading, c.page, c.text) for number, c in numbered),
    )
    halves = vectors.astype("<f2")
    db.executemany(
        "insert into vectors values (?, ?)",
        ((number, half.tobytes()) for number, half in enumerate(halves, first)),
    )
    db.executemany(
        "insert into words(rowid, text) values (?, ?)",
        ((number, _indexed_words(c.heading, c.text)) for number, c in numbered),
    )


def _indexed_words(heading: str, text: str) -> str:
    return " ".join(words.split_into_words(f"{heading}\n{text}"))


def count_common_words(db: sqlite3.Connection, n_chunks: int) -> None:
    """Store the number of chunks of frequent words, whenever the index has grown by a quarter."""
    row = db.execute("select value from meta where key = 'counted'").fetchone()
    if n_chunks < _COUNT_AGAIN * (int(row[0]) if row else _COMMON):
        return
    db.execute("delete from common_words")
    db.execute("insert into common_words select term, doc from vocabulary where doc > ?", (_COMMON,))
    db.execute("insert or replace into meta values ('counted', ?)", (str(n_chunks),))


def file_ids(db: sqlite3.Connection, names: Collection[str]) -> list[int]:
    """Ids of files by their names; unknown names are left out."""
    chosen = "select id from files where name in (select value from json_each(?))"
    return [row[0] for row in db.execute(chosen, (json.dumps(list(names)),))]


def cosines(db: sqlite3.Connection, chunks: Sequence[int], query: NDArray[np.float32]) -> dict[int, float]:
    """Cosines of chunks with a query's unit vector, by chunk id; unknown ids are left out."""
    rows = db.execute(
        "select id, vector from vectors where id in (select value from json_each(?))",
        (json.dumps(list(chunks)),),
    ).fetchall()
    vectors = np.frombuffer(b"".join(row[1] for row in rows), "<f2").reshape(len(rows), len(query))
    # No BLAS: for 0.25 ms of work its threads would compete with the model's.
    cosines = np.einsum("ij,j->i", vectors.astype(np.float32), query)
    return dict(zip((row[0] for row in rows), np.clip(cosines, -1, 1).tolist(), strict=True))


def ranked_by_words(
    db: sqlite3.Connection, text: str, limit: int, file_ids: Collection[int] | None
) -> dict[int, float]:
    """BM25 by chunk id, best first; ``file_ids`` None: all files."""
    chosen = _selective_words(db, text)
    if not chosen:
        return {}
    match = " OR ".join(f'"{word}"' for word in chosen)
    if file_ids is None:
        rows = db.execute(
            "select rowid, -rank from words where words match ? order by rank limit ?", (match, limit)
        )
    else:
        rows = db.execute(
            "select words.rowid, -words.rank from words cross join chunks on chunks.id = words.rowid"
            " where words match ? and chunks.file in (select value from json_each(?))"
            " order by words.rank limit ?",
            (match, json.dumps(list(file_ids)), limit),
        )
    return dict(rows)


def _selective_words(db: sqlite3.Connection, text: str) -> list[str]:
    """The rarest words of a query, within the limit of visits."""
    distinct = list(dict.fromkeys(words.split_into_words(text[:_QUERY_CHARACTERS])))[:_QUERY_WORDS]
    counts: dict[str, int] = {}
    for word in distinct:
        row = db.execute("select n_chunks from common_words where word = ?", (word,)).fetchone()
        row = row or db.execute("select doc from vocabulary where term = ?", (word,)).fetchone()
        if row:
            counts[word] = row[0]
    chosen: list[str] = []
    walked = 0
    for word in sorted(counts, key=lambda word: counts[word]):
        walked += counts[word]
        if walked > _WALKED * (1 if chosen else 2):
            break
        chosen.append(word)
    return chosen


def read_chunks(db: sqlite3.Connection, chunks: Sequence[int]) -> dict[int, Chunk]:
    rows = db.execute(
        "select chunks.id, name, position, heading, page, text from chunks join files on files.id = file"
        " where chunks.id in (select value from json_each(?))",
        (json.dumps(list(chunks)),),
    )
    return {row[0]: Chunk(*row[1:]) for row in rows}
