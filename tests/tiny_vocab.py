"""A GGUF with a small SentencePiece vocabulary and without weights.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from pathlib import Path

UNKNOWN, CONTROL, USER_DEFINED, NORMAL, BYTE = 2, 3, 4, 1, 6

SPECIAL = {"<unk>": UNKNOWN, "<s>": CONTROL, "</s>": CONTROL, "<turn>": CONTROL, "<end>": CONTROL}
ADDED = ("<think>", "</think>", "<b>")
# With "</" and "s>" in the vocabulary, SentencePiece merges the characters of "</s>" into that token.
WORDS = ("▁the", "▁to", "th", "he", "in", "▁", "</", "s>")


def write_vocabulary(path: Path) -> Path:
    tokens = dict(SPECIAL)
    tokens |= {f"<0x{byte:02X}>": BYTE for byte in range(256)}
    tokens |= dict.fromkeys(ADDED, USER_DEFINED)
    tokens |= dict.fromkeys((*WORDS, *map(chr, range(33, 127))), NORMAL)
    scores = [0.0 if kind != NORMAL else -float(i) for i, kind in enumerate(tokens.values())]
    fields = [
        _string("general.architecture", "llama"),
        _uint32("llama.context_length", 64),
        _uint32("llama.embedding_length", 8),
        _uint32("llama.block_count", 1),
        _uint32("llama.feed_forward_length", 8),
        _uint32("llama.attention.head_count", 1),
        _float32("llama.attention.layer_norm_rms_epsilon", 1e-5),
        _string("tokenizer.ggml.model", "llama"),
        _key("tokenizer.ggml.tokens", 9) + struct.pack("<IQ", 8, len(tokens)) + b"".join(map(_text, tokens)),
        _key("tokenizer.ggml.scores", 9) + struct.pack(f"<IQ{len(tokens)}f", 6, len(tokens), *scores),
        _key("tokenizer.ggml.token_type", 9)
        + struct.pack(f"<IQ{len(tokens)}i", 5, len(tokens), *tokens.values()),
        _uint32("tokenizer.ggml.unknown_token_id", 0),
        _uint32("tokenizer.ggml.bos_token_id", 1),
        _uint32("tokenizer.ggml.eos_token_id", 2),
        _key("tokenizer.ggml.add_bos_token", 7) + b"\1",
        _key("tokenizer.ggml.add_space_prefix", 7) + b"\1",
    ]
    path.write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 0, len(fields)) + b"".join(fields))
    return path


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _key(name: str, kind: int) -> bytes:
    return _text(name) + struct.pack("<I", kind)


def _string(name: str, value: str) -> bytes:
    return _key(name, 8) + _text(value)


def _uint32(name: str, value: int) -> bytes:
    return _key(name, 4) + struct.pack("<I", value)


def _float32(name: str, value: float) -> bytes:
    return _key(name, 6) + struct.pack("<f", value)
