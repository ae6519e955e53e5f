"""Settings of the model: its files, the engine, and sampling defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.config.addresses import Entries
from app.config.setting import setting
from app.machine.folders import cache_folder
from app.machine.installation import IS_WHEEL, shipped

QuantizedFormat = Literal[
    "q8_0", "q6_k", "q5_k_m", "q5_k_s", "q5_1", "q5_0", "q4_k_m", "q4_k_s", "q4_1", "q4_0",
    "iq4_nl", "iq4_xs", "q3_k_m", "q2_k", "f16", "bf16",
]  # fmt: skip


def _models_folder() -> Path:
    here = Path("models")
    return cache_folder() / "hub" if IS_WHEEL and not here.is_dir() else here


class ModelSettings(BaseSettings):
    """The first fields of `Settings`. An empty variable counts as unset."""

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
    model: str | None = setting(
        None,
        "Name of a model in MODELS_FILE, such as `qwen3-1.7b`, or path of a GGUF file. It takes precedence "
        "over MODEL_PATH, MODEL_REPO, MODEL_FILE and MODEL_REVISION. `tokenstream models` lists the names.",
        also="FEATURE",
        validation_alias=AliasChoices("MODEL", "FEATURE"),
    )
    models: Entries = setting(
        (),
        "Models to serve by name, separated by commas, instead of MODEL (docs/models.md). Each is a name in "
        "MODELS_FILE, the path of a GGUF file, or `NAME=` and one of these. The first one answers requests "
        "without a model.",
        shown="the model of MODEL",
    )
    models_pinned: Entries = setting(
        (),
        "Names of MODELS that are loaded at start and never unloaded, separated by commas; `all` for all.",
        shown="none",
    )
    models_at_start: Entries = setting(
        (),
        "More names of MODELS that are loaded at start, separated by commas; `all` for all. Others are "
        "loaded by their first request.",
        shown="the first one",
    )
    models_memory: int | None = setting(
        None,
        "Memory of all loaded models. For another model, the least recently used ones are unloaded.",
        unit="MB",
        ge=1,
        shown="the free memory of the machine or container",
    )
    idle_unload: float | None = setting(
        None,
        "Time without a request after which one of MODELS is unloaded. Its next request loads it again.",
        unit="seconds",
        gt=0,
        shown="never",
    )
    models_file: Path = setting(
        lambda: shipped("config/models.toml"),
        "File that defines the names of models.",
        shown="`config/models.toml`, else the shipped file",
    )
    lora: Entries = setting(
        (),
        "LoRA adapters, separated by commas: `NAME=PATH` of a GGUF file, or `NAME=PATH:SCALE`. Requests "
        "choose one as `MODEL:NAME` (docs/models.md). With MODELS, `MODEL:NAME=PATH` is an adapter of that "
        "model; without a model's name, of the first one.",
        shown="none",
    )
    model_path: Path | None = setting(
        None,
        "Path of a local GGUF file. For a split model, its first part.",
        also="WEIGHT_FILES",
        validation_alias=AliasChoices("MODEL_PATH", "WEIGHT_FILES"),
    )
    model_repo: str | None = setting(None, "Hugging Face repository with GGUF files.")
    model_file: str | None = setting(
        None, "File in MODEL_REPO, or a pattern that matches one model, such as `*Q4_K_M*.gguf`."
    )
    model_revision: str = setting("main", "Branch, tag or commit of MODEL_REPO.")
    tokenizer_repo: str | None = setting(
        None,
        "Hugging Face repository or local folder. Its chat template and special tokens replace those of the "
        "GGUF file.",
    )
    tgichat_user_pre: str | None = setting(
        None,
        "Text before each user message; `\\n` is a line break. "
        "If any of the six TGICHAT variables is set, the chat template is not used.",
    )
    tgichat_user_post: str | None = setting(None, "Text after each user message.")
    tgichat_ass_pre: str | None = setting(None, "Text before each assistant message.")
    tgichat_ass_post: str | None = setting(None, "Text after each assistant message.")
    tgichat_sys_pre: str | None = setting(None, "Text before the system message.")
    tgichat_sys_post: str | None = setting(None, "Text after the system message.")
    quantize: Literal["auto", QuantizedFormat] | None = setting(
        None,
        "Number format to convert the model to. The first start writes the file, later starts use it. "
        "`auto`: the fastest on this machine that loses no more than the model file has lost.",
        shown="as in the model file",
    )
    models_dir: Path = setting(
        _models_folder,
        "Folder for downloaded models, in the layout of Hugging Face's cache.",
        shown="`models`; of a wheel without that folder: `~/.cache/tokenstream/hub`",
    )
    hf_token: SecretStr | None = setting(
        None,
        "Access token for gated or private repositories.",
        also="HUGGING_FACE_HUB_TOKEN",
        validation_alias=AliasChoices("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"),
    )

    # Engine
    model_threads: int | None = setting(
        None,
        "Number of compute threads.",
        ge=1,
        le=512,
        shown="number of physical cores, or the CPU quota if that is lower",
    )
    numa: Literal["auto", "off"] = setting(
        "auto",
        "Place of the threads on machines with several NUMA nodes. `auto`: one node, unless MODEL_THREADS or "
        "the CPU quota exceeds its cores. `off`: all nodes.",
    )
    tuned_file: Path | None = setting(
        None,
        "File with faster settings for this model and machine, written by `tokenstream tune`. Settings that "
        "are set take precedence. A missing file has no effect.",
        shown="`~/.cache/tokenstream/tuned.toml`",
    )
    model_gpu_layers: int = setting(
        0,
        "Layers to offload to a GPU; -1 offloads all. Requires a library built for a GPU.",
        ge=-1,
        also="N_GPU_LAYERS",
        validation_alias=AliasChoices("MODEL_GPU_LAYERS", "N_GPU_LAYERS"),
    )
    main_gpu: int = setting(0, "Index of the GPU for the offloaded layers.", ge=0)
    n_ctx: int | None = setting(
        None,
        "Size of the KV cache of all sequences. Each of MAX_SEQUENCES has an equal "
        "part, which limits prompt plus answer of a request.",
        unit="tokens",
        ge=256,
        shown="up to 4096 tokens per sequence, less if model or memory limit it",
    )
    max_sequences: int | None = setting(
        None,
        "Maximum number of requests decoded at once. More requests wait in a queue.",
        ge=1,
        le=256,
        shown="8, or fewer if memory limits it",
    )
    max_concurrent_requests: int = setting(
        128,
        "Maximum number of running and waiting requests; more get status 429. One client may have seven "
        "eighths of them. Embedding requests have a separate limit of the same size.",
        unit="requests",
        ge=1,
    )
    max_waiting_tokens: int = setting(
        524288,
        "Maximum prompt tokens of all requests without a first token; more requests get status 429. Before "
        "tokenization, four bytes of a body count as one token. A single request may exceed it.",
        unit="tokens",
        ge=1,
    )
    max_total_tokens: int | None = setting(
        None,
        "Maximum length of prompt plus answer.",
        unit="tokens",
        ge=2,
        shown="KV cache of one sequence",
    )
    max_input_length: int | None = setting(
        None, "Maximum length of a prompt.", unit="tokens", ge=1, shown="MAX_TOTAL_TOKENS - 1"
    )
    prefix_cache_mb: int | None = setting(
        None,
        "RAM for saved sequence states. A prompt that starts with a saved prefix skips its prefill. 0: off.",
        unit="MB",
        ge=0,
        shown="a tenth of the free memory, at most 2048 MB",
    )
    cache_dir: Path | None = setting(
        None,
        "Folder for the states of prefilled contexts, kept across restarts. At most 2 GB, readable only by "
        "its owner.",
        shown="`~/.cache/tokenstream/contexts`",
    )
    itl_budget_ms: float | None = setting(
        None,
        "Inter-token latency limit of running streams while other prompts are prefilled.",
        unit="ms",
        gt=0,
        shown="four times the measured decode step, at least 60 ms",
    )
    speculation: Literal["on", "off"] = setting(
        "on",
        "Speculative decoding by prompt lookup: repeated text is drafted, and one step verifies several "
        "tokens.",
    )
    prefill_ahead: Literal["on", "off"] = setting(
        "on",
        "Prefill of the next turn while no request runs, if its prompt does not continue the last answer, as "
        "with templates that drop past thoughts.",
    )
    native_build: str = setting(
        "auto",
        "Build of the native library, if several are installed (docs/build.md). `auto`: the fastest that "
        "works on this CPU.",
    )
    matmul: Literal["auto", "ggml"] = setting(
        "auto",
        "Kernels of matrix products. `auto`: Tokenstream's for supported weight formats, else ggml's.",
    )
    flash_attention: Literal["auto", "on", "off"] = setting(
        "auto", "Fused attention. `auto`: wherever llama.cpp has it for the model."
    )
    kv_type: Literal["auto", "f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"] = setting(
        "auto",
        "Number format of the KV cache. `auto`: `q8_0` where Tokenstream's attention computes with it, else "
        "`f16`. Formats with fewer bits save memory and are slower.",
    )

    # Generation
    context_type: str = setting("general", "Context of requests that do not name one.")
    contexts_file: Path = setting(
        lambda: shipped("config/prompt_config.toml"),
        "File that defines the contexts.",
        shown="`config/prompt_config.toml`, else the shipped file",
    )
    model_max_token: int = setting(
        512, "Maximum answer length if a request does not set max_tokens.", unit="tokens", ge=1
    )
    temperature: float = setting(0.0, "Sampling temperature; 0 is greedy.", ge=0, le=10)
    top_p: float = setting(0.95, "Nucleus sampling: probability mass to keep.", gt=0, le=1)
    top_k: int = setting(40, "Number of most likely tokens to keep; 0 keeps all.", ge=0)
    seed: int | None = setting(
        None, "Seed of the sampler.", ge=0, lt=2**32, shown="a new one for each request"
    )
    repeat_penalty: float = setting(1.1, "Penalty on the logits of repeated tokens; 1: off.", gt=0, le=10)
    repeat_last_n: int = setting(
        64,
        "Number of last tokens in which repetition is penalized; 0: none, -1: all.",
        unit="tokens",
        ge=-1,
    )

    @property
    def tgichat(self) -> dict[str, str] | None:
        """The six TGICHAT texts, without their prefix; None if all are unset."""
        prefix = "tgichat_"
        texts = {name: getattr(self, name) for name in type(self).model_fields if name.startswith(prefix)}
        if not any(texts.values()):
            return None
        return {name.removeprefix(prefix): (text or "").replace("\\n", "\n") for name, text in texts.items()}
