"""Commands that convert a model of Hugging Face's format to GGUF, for error messages."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path

_SUFFIX = ".safetensors"
# llama.cpp's converter needs PyTorch, so it gets an environment of its own.
_INSTALL = (
    "git clone --depth 1 https://github.com/ggml-org/llama.cpp && python3 -m venv llama.cpp/env && "
    "llama.cpp/env/bin/pip install -r llama.cpp/requirements/requirements-convert_hf_to_gguf.txt"
)
_CONVERT = "llama.cpp/env/bin/python llama.cpp/convert_hf_to_gguf.py"


def is_convertible(files: Iterable[str]) -> bool:
    """Whether files have the weights of a model in Hugging Face's format."""
    return any(file.lower().endswith(_SUFFIX) for file in files)


def of_repository(name: str, revision: str, variable: str) -> str:
    """How to convert a repository of the hub. ``variable``: the setting that names it."""
    short = name.rpartition("/")[2]
    if revision == "main":
        convert = f"{_CONVERT} --remote {shlex.quote(name)} --outfile {shlex.quote(f'{short}.gguf')}"
        return _advice([convert], variable)
    # --remote reads main only.
    repository, folder = shlex.quote(name), shlex.quote(short)
    download = f"hf download {repository} --revision {shlex.quote(revision)} --local-dir {folder}"
    return _advice([download, f"{_CONVERT} {folder} --outfile {shlex.quote(f'{short}.gguf')}"], variable)


def of_folder(folder: Path, variable: str) -> str:
    """How to convert a folder with the files of a repository. ``variable``: the setting that names it."""
    source, target = (shlex.quote(str(path)) for path in (folder, Path(f"{folder.resolve().name}.gguf")))
    return _advice([f"{_CONVERT} {source} --outfile {target}"], variable)


def _advice(commands: Iterable[str], variable: str) -> str:
    variable = "MODEL_PATH" if variable == "MODEL_REPO" else variable
    steps = " && ".join([_INSTALL, *commands])
    return f"convert it with llama.cpp: {steps}; then set {variable} to the new file"
