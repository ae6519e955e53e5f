"""The default model with its first layers only, for properties that hold for each layer."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from gguf import GGUFValueType

from tests.conftest import MODEL
from tests.tiny_models import key_values, value_of

_HEADER = "<4sIQQ"  # magic, version, tensors, keys
_ALIGNMENT = 32  # of tensors, in bytes


def write_shallow_model(path: Path, n_layers: int) -> Path:
    """Write the first ``n_layers`` layers, the embedding and the output, with equal bytes."""
    with MODEL.open("rb") as file:
        magic, version, n_tensors, n_keys = struct.unpack(_HEADER, file.read(struct.calcsize(_HEADER)))
        first_key = file.tell()
        ends = {key: file.tell() for key, _ in key_values(file, n_keys)}
        last_key = file.tell()
        infos = [_tensor_info(file) for _ in range(n_tensors)]
        data = _aligned(file.tell())
        file.seek(0)
        keys = bytearray(file.read(last_key))
        struct.pack_into("<I", keys, ends["llama.block_count"] - 4, n_layers)
        tensors = []
        ends_of_data = [offset for *_, offset in infos[1:]] + [MODEL.stat().st_size - data]
        for (name, description, offset), end in zip(infos, ends_of_data, strict=True):
            if not name.startswith("blk.") or int(name.split(".")[1]) < n_layers:
                file.seek(data + offset)
                tensors.append((description, file.read(end - offset)))
    with path.open("wb") as file:
        file.write(struct.pack(_HEADER, magic, version, len(tensors), n_keys) + keys[first_key:])
        offset = 0
        for description, content in tensors:
            file.write(description + struct.pack("<Q", offset))
            offset += _aligned(len(content))
        file.write(b"\0" * (_aligned(file.tell()) - file.tell()))
        for _, content in tensors:
            file.write(content.ljust(_aligned(len(content)), b"\0"))
    return path


def _tensor_info(file: BinaryIO) -> tuple[str, bytes, int]:
    """Name, description without the offset, and offset of a tensor."""
    begin = file.tell()
    name = value_of(file, GGUFValueType.STRING)
    n_dimensions = value_of(file, GGUFValueType.UINT32)
    file.seek(8 * n_dimensions + 4, 1)  # sizes and type
    size = file.tell() - begin
    file.seek(begin)
    return name, file.read(size), value_of(file, GGUFValueType.UINT64)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
