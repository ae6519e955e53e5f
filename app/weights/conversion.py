"""Commands that convert a model of Hugging Face's format to GGUF, for error messages."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path

_SUFFIX = ".safetensors"
# llama.cpp's converter needs PyTorch, so it gets an environment of its own.
_BIN = "llama.cpp/env/bin"
_INSTALL = (
    "git clone --depth 1 https://github.com/ggml-org/llama.cpp && python3 -m venv llama.cpp/env && "
    f"{_BIN}/pip install -r llama.cpp/requirements/requirements-convert_hf_to_gguf.txt"
)
_CONVERT = f"{_BIN}/python llama.cpp/convert_hf_to_gguf.py"


def is_convertible(files: Iterable[str]) -> bool:
    """Whether files have the weights of a model in Hugging Face's format."""
    return any(file.lower().endswith(_SUFFIX) for file in files)


def of_repository(name: str, revision: str, variable: str) -> str:
    """How to convert a repository of the hub. ``variable``: the setting that names it."""
    short = name.rpartition("/")[2]
    folder, target = shlex.quote(short), shlex.quote(f"{short}.gguf")
    # The converter's own download (--remote) leaves out chat_template.jinja.
    download = f"{_BIN}/hf download {shlex.quote(name)} --local-dir {folder}"
    if revision != "main":
        download += f" --revision {shlex.quote(revision)}"
    return _advice([download, f"{_CONVERT} {folder} --outfile {target}"], variable)


def of_folder(folder: Path, variable: str) -> str:
    """How to convert a folder with the files of a repository. ``variable``: the setting that names it."""
    source, target = (shlex.quote(str(path)) for path in (folder, Path(f"{folder.resolve().name}.gguf")))
    return _advice([f"{_CONVERT} {source} --outfile {target}"], variable)


def _advice(commands: Iterable[str], variable: str) -> str:
    variable = "MODEL_PATH" if variable == "MODEL_REPO" else variable
    steps = " && ".join(commands)
    return (
        f"convert it with llama.cpp. Install its converter once: `{_INSTALL}`. Then: `{steps}`, and set "
        f"{variable} to the new file"
    )
