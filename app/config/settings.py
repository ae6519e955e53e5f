"""Every setting in one typed table, read from the environment and a ``.env`` file.

The table is the only place where a setting's name, default, unit and meaning are
written down: ``python -m app serve --help`` and the README's reference are printed from it.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, Field, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, SettingsConfigDict

ROOT = Path(__file__).resolve().parents[2]


class SettingsError(ValueError):
    """A setting has a value that cannot be used; the message names variable, value and what is allowed."""


def split_address(address: str) -> tuple[str, int]:
    """Split ``host:port`` (``[::1]:3030`` for IPv6) into host and port.

    Raises:
        ValueError: There is no host, no port, or the port is outside 0 to 65535.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError("should be host:port, such as 127.0.0.1:3030 or [::1]:3030")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _check_address(address: str) -> str:
    split_address(address)
    return address


Address = Annotated[str, AfterValidator(_check_address)]


def _check_template(template: str) -> str:
    missing = [name for name in ("{context}", "{query}") if name not in template]
    if missing:
        raise ValueError(f"should contain {' and '.join(missing)}")
    return template.replace("\\n", "\n")


def _setting(
    default: Any, doc: str, *, unit: str = "", shown: str = "", also: str = "", **limits: Any
) -> Any:
    """A setting: ``also`` is a second variable that is read, ``shown`` a default put in words."""
    return Field(
        default,
        description=doc,
        json_schema_extra={"unit": unit, "shown": shown, "also": also},
        **limits,
    )


class Settings(BaseSettings):
    """The settings of one process; an empty variable counts as unset."""

    model_config = SettingsConfigDict(
        env_file=".env",
        env_file_encoding="utf-8",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        populate_by_name=True,
        protected_namespaces=(),
        allow_inf_nan=False,
    )

    # The model
    model_path: Path | None = _setting(
        None,
        "A GGUF file on this machine. Of a split model, its first part.",
        also="WEIGHT_FILES",
        validation_alias=AliasChoices("MODEL_PATH", "WEIGHT_FILES"),
    )
    model_repo: str | None = _setting(None, "A Hugging Face repository that holds GGUF files.")
    model_file: str | None = _setting(
        None, "The file in MODEL_REPO, or a pattern such as `*Q4_K_M*.gguf` that one model matches."
    )
    model_revision: str = _setting("main", "Branch, tag or commit of MODEL_REPO.")
    tokenizer_repo: str | None = _setting(
        None,
        "A Hugging Face repository (or a folder) whose chat template and special tokens are used "
        "instead of the GGUF's own.",
    )
    tgichat_user_pre: str | None = _setting(
        None,
        "Written before what the user says, instead of the chat template; `\\n` is a line break. One of the "
        "six TGICHAT variables is enough to leave the template out.",
    )
    tgichat_user_post: str | None = _setting(None, "The same behind what the user says.")
    tgichat_ass_pre: str | None = _setting(None, "The same before what the assistant says.")
    tgichat_ass_post: str | None = _setting(None, "The same behind what the assistant says.")
    tgichat_sys_pre: str | None = _setting(None, "The same before the system text.")
    tgichat_sys_post: str | None = _setting(None, "The same behind the system text.")
    models_dir: Path = _setting(Path("models"), "Where downloaded models are kept.")
    hf_token: SecretStr | None = _setting(
        None,
        "Access token for gated or private repositories.",
        also="HUGGING_FACE_HUB_TOKEN",
        validation_alias=AliasChoices("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"),
    )

    # The engine
    model_threads: int | None = _setting(
        None,
        "Threads that compute.",
        ge=1,
        le=512,
        shown="physical cores, or the CPU quota where that is less",
    )
    model_gpu_layers: int = _setting(
        0,
        "Layers to offload to a GPU, where the library was built for one; -1 is all.",
        ge=-1,
        also="N_GPU_LAYERS",
        validation_alias=AliasChoices("MODEL_GPU_LAYERS", "N_GPU_LAYERS"),
    )
    main_gpu: int = _setting(0, "The GPU that gets them.", ge=0)
    n_ctx: int | None = _setting(
        None,
        "KV memory in all. With KV_LAYOUT=split it is shared out evenly over MAX_SEQUENCES: the longest "
        "request may have N_CTX / MAX_SEQUENCES tokens, prompt and answer together.",
        unit="tokens",
        ge=256,
        shown="up to 4096 a sequence, as the model and the memory allow",
    )
    max_sequences: int | None = _setting(
        None,
        "Requests decoded at once; more wait in order.",
        ge=1,
        le=256,
        shown="8, or what the memory allows",
    )
    max_concurrent_requests: int = _setting(
        128,
        "Requests that run or wait, those for vectors apart; one more is answered 429.",
        unit="requests",
        ge=1,
    )
    max_total_tokens: int | None = _setting(
        None,
        "The longest request, prompt and answer together.",
        unit="tokens",
        ge=2,
        shown="what KV memory gives a sequence",
    )
    max_input_length: int | None = _setting(
        None, "The longest prompt.", unit="tokens", ge=1, shown="MAX_TOTAL_TOKENS - 1"
    )
    prefix_cache_mb: int | None = _setting(
        None,
        "RAM for the saved states of prompts and conversations, from which others go on; 0 is off.",
        unit="MB",
        ge=0,
        shown="a tenth of the free memory, up to 2048 MB",
    )
    cache_dir: Path | None = _setting(
        None,
        "Where the prefilled contexts are kept across restarts (up to 2 GB, readable by their owner only).",
        shown="`~/.cache/tokenstream/contexts`",
    )
    itl_budget_ms: float | None = _setting(
        None,
        "Inter-token latency that running streams keep while the prompts of others are prefilled.",
        unit="ms",
        gt=0,
        shown="four times the measured decode step, at least 60 ms",
    )
    speculation: Literal["on", "off"] = _setting(
        "on", "Whether answers are guessed ahead from their own text and verified, several tokens a step."
    )
    kv_layout: Literal["auto", "split", "shared"] = _setting(
        "auto",
        "KV memory: `split` gives each sequence its own part, `shared` one pool to all, in which a common "
        "prefix lies once. `auto` measures.",
    )
    flash_attention: Literal["auto", "on", "off"] = _setting(
        "auto", "Whether attention is computed in one fused pass. `auto` measures."
    )
    kv_type: Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"] = _setting(
        "f16", "Number format of KV memory; below `f16` it is smaller and slower."
    )

    # What is generated
    context_type: str = _setting("general", "The context of requests that name none.")
    contexts_file: Path = _setting(Path("config/prompt_config.toml"), "Where the contexts are defined.")
    model_max_token: int = _setting(
        512, "Longest answer of requests that name no max_tokens.", unit="tokens", ge=1
    )
    temperature: float = _setting(0.0, "Sampling temperature; 0 is greedy.", ge=0, le=10)
    top_p: float = _setting(0.95, "Nucleus sampling: the share of probability kept.", gt=0, le=1)
    top_k: int = _setting(40, "The number of likeliest tokens kept; 0 keeps all.", ge=0)
    seed: int | None = _setting(
        None, "Seed of the sampler.", ge=0, lt=2**32, shown="a new one for each request"
    )
    repeat_penalty: float = _setting(1.1, "Divides the logits of repeated tokens; 1 is off.", gt=0, le=10)
    repeat_last_n: int = _setting(
        64, "How far back a token counts as repeated; 0 is off, -1 the whole text.", unit="tokens", ge=-1
    )

    # The knowledge base
    knowledge: Literal["on", "off"] = _setting(
        "off",
        "Whether answers draw on the documents in DATA_PATH; `make install KNOWLEDGE=on` installs for it.",
    )
    data_path: Path = _setting(
        Path("data"), "The folder of the documents: .txt, .md, .html, .pdf and .docx, subfolders too."
    )
    embedding_model: str | None = _setting(
        None,
        "What makes vectors of texts: a GGUF file on this machine, `repo:file` of a Hugging Face repository, "
        "or `all-MiniLM-L6-v2`, which a package brings along.",
        shown="`all-MiniLM-L6-v2` with KNOWLEDGE=on, else none",
    )
    embedding_pooling: Literal["mean", "cls", "last"] | None = _setting(
        None, "How the vectors of a text's tokens become one.", shown="what the model's file says"
    )
    embedding_query_prefix: str = _setting(
        "", "Put before questions where they are embedded, such as `query: ` for E5 models."
    )
    embedding_passage_prefix: str = _setting(
        "", "Put before passages where they are embedded, such as `passage: `."
    )
    knowledge_top_k: int = _setting(
        4, "The most passages that a question gets.", unit="passages", ge=1, le=100
    )
    knowledge_threshold: float = _setting(
        0.2,
        "The least cosine similarity of question and passage; the default fits all-MiniLM-L6-v2.",
        ge=-1,
        le=1,
    )
    knowledge_chunk_tokens: int = _setting(
        200, "The longest passage, in tokens of the embedding model.", unit="tokens", ge=16, le=2048
    )
    knowledge_chunk_overlap: int = _setting(
        40, "How much of a passage its follower repeats, in whole sentences.", unit="tokens", ge=0, le=1024
    )
    knowledge_index: Path | None = _setting(
        None,
        "Where the index of the documents is kept; one process at a time uses it.",
        shown="a folder for each DATA_PATH in `~/.cache/tokenstream/knowledge`",
    )
    model_prompt_template: Annotated[str, AfterValidator(_check_template)] | None = _setting(
        None,
        "What the model is asked where passages are found, with `{context}` for them and `{query}` for the "
        "question; `\\n` is a line break.",
        shown="passages go into the system turn",
    )

    # Limits of the TGI dialect
    max_best_of: int = _setting(2, "Most answers of which the best is given (`best_of`).", ge=1, le=128)
    max_stop_sequences: int = _setting(4, "Most stop sequences.", ge=0)
    max_top_n_tokens: int = _setting(5, "Most alternatives to each token (`top_n_tokens`).", ge=0, le=1000)
    watermark_gamma: float = _setting(0.5, "Share of the vocabulary that a watermark prefers.", gt=0, lt=1)
    watermark_delta: float = _setting(2.0, "What it adds to the logits of that share.", ge=0, le=100)

    # The service
    http_address: Address = _setting("127.0.0.1:3030", "Where to serve.", unit="host:port")
    api_key: SecretStr | None = _setting(
        None,
        "The key that requests have to name (`Authorization: Bearer …`); the pages, /health and /ready are "
        "open to all.",
        shown="none is asked for",
    )
    prometheus_http_address: Address | None = _setting(
        None,
        "Where to serve /metrics instead of HTTP_ADDRESS.",
        unit="host:port",
        shown="on HTTP_ADDRESS",
    )
    instance_label: str = _setting("default", "Label `instance` of every metric.")
    max_body_bytes: int = _setting(
        1 << 20, "Longest request body; a longer one is answered 413.", unit="bytes", ge=1024
    )
    shutdown_grace: float = _setting(
        30.0, "How long running answers may go on after SIGTERM.", unit="seconds", ge=0
    )
    log_level: Literal["debug", "info", "warning", "error"] = _setting("info", "What is logged.")

    @property
    def embeds(self) -> bool:
        """Whether an embedding model is wanted."""
        return self.knowledge == "on" or self.embedding_model is not None

    @property
    def tgichat(self) -> dict[str, str] | None:
        """The six texts around messages; None where none of them is set."""
        prefix = "tgichat_"
        texts = {name: getattr(self, name) for name in type(self).model_fields if name.startswith(prefix)}
        if not any(texts.values()):
            return None
        return {name.removeprefix(prefix): (text or "").replace("\\n", "\n") for name, text in texts.items()}


def load(env_file: Path | None = Path(".env"), **overrides: Any) -> Settings:
    """Read the settings; ``overrides`` (by field name) go before the environment.

    Raises:
        SettingsError: A value cannot be used.
    """
    try:
        return Settings(_env_file=env_file, **overrides)  # type: ignore[call-arg]
    except ValidationError as error:
        raise SettingsError("\n".join(_complaint(e) for e in error.errors())) from None


def _complaint(error: Any) -> str:
    name = str(error["loc"][0]).upper() if error["loc"] else "settings"
    message = str(error["msg"]).removeprefix("Value error, ")
    value = error["input"]
    message = message[0].lower() + message[1:].replace("Input ", "")
    return f"{name}={value}: {message.removeprefix('input ')}"


def _rows() -> Iterable[tuple[str, str, str]]:
    for name, field in Settings.model_fields.items():
        extra: dict[str, str] = field.json_schema_extra  # type: ignore[assignment]
        also = f" (also {extra['also']})" if extra["also"] else ""
        yield name.upper(), _default_in_words(field, extra), f"{field.description}{also}"


def _default_in_words(field: FieldInfo, extra: dict[str, str]) -> str:
    if extra["shown"] or field.default is None:
        return extra["shown"] or "unset"
    unit = extra["unit"] if extra["unit"] != "host:port" else ""
    return f"{field.default} {unit}".strip()


def table_for_terminal(width: int = 100) -> str:
    """The table as ``serve --help`` prints it."""
    lines = []
    for name, default, doc in _rows():
        lines.append(f"  {name} [{default}]")
        lines.extend(textwrap.wrap(doc, width - 8, initial_indent=" " * 6, subsequent_indent=" " * 6))
    return "\n".join(lines)


def table_for_readme() -> str:
    """The table as the README shows it, in Markdown."""
    rows = ["| variable | default | meaning |", "| --- | --- | --- |"]
    rows += [f"| `{name}` | {default} | {doc} |" for name, default, doc in _rows()]
    return "\n".join(rows)
