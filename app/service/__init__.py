"""From a prompt to its answer, for every dialect."""

from app.chat.tools import ArgumentsDelta, CallDelta, ContentDelta, Delta
from app.engine.answer import Output
from app.engine.client import Client
from app.engine.embedder import Embedder
from app.engine.llama import Vocab
from app.engine.sampling.logprobs import Logprobs
from app.engine.sequence import FinishReason
from app.knowledge.chunk import Passage
from app.knowledge.reading.reader import MOST_BYTES
from app.service.admission import Place
from app.service.answers import (
    AnswerReader,
    Collected,
    GatheredCall,
    Part,
    ThoughtDelta,
    best,
    collect,
    shown,
    token_bytes,
)
from app.service.clients import (
    allows_context,
    allows_uploads,
    check_upload,
    client_of_key,
    with_priority,
)
from app.service.deciding import classify, decide
from app.service.encoders.embedding import Embeddings
from app.service.encoders.rerank import Ranking
from app.service.encoders.retrieval import list_documents, required_knowledge, search_documents
from app.service.encoders.uploads import FOLDER as UPLOADS
from app.service.encoders.uploads import TooLarge, store_upload
from app.service.errors import (
    BadRequest,
    Forbidden,
    GenerationFailed,
    KnowledgeFailed,
    LoadFailed,
    Loading,
    NotOffered,
    Overloaded,
    ServiceError,
    TooLong,
    UnknownContext,
    UnknownModel,
)
from app.service.model.generation import Generation, Step, receive
from app.service.model.model import Model
from app.service.models.entries import Entry, ModelFacts, State
from app.service.preparing.choices import Chosen
from app.service.preparing.decisions import (
    MOST_OPTIONS,
    MOST_QUESTIONS,
    Content,
    Decision,
    DecisionQuestion,
    Decisions,
    Option,
    rendered,
)
from app.service.preparing.limits import TokenLimits
from app.service.preparing.prompts import (
    ChatPrompt,
    Constraint,
    Effort,
    JSONSchema,
    KnowledgeUse,
    Prompt,
    Regex,
    TextPrompt,
    ThinkingUse,
    ToolUse,
)
from app.service.service import Service

__all__ = [
    "MOST_BYTES",
    "MOST_OPTIONS",
    "MOST_QUESTIONS",
    "UPLOADS",
    "AnswerReader",
    "ArgumentsDelta",
    "BadRequest",
    "CallDelta",
    "ChatPrompt",
    "Chosen",
    "Client",
    "Collected",
    "Constraint",
    "Content",
    "ContentDelta",
    "Decision",
    "DecisionQuestion",
    "Decisions",
    "Delta",
    "Effort",
    "Embedder",
    "Embeddings",
    "Entry",
    "FinishReason",
    "Forbidden",
    "GatheredCall",
    "Generation",
    "GenerationFailed",
    "JSONSchema",
    "KnowledgeFailed",
    "KnowledgeUse",
    "LoadFailed",
    "Loading",
    "Logprobs",
    "Model",
    "ModelFacts",
    "NotOffered",
    "Option",
    "Output",
    "Overloaded",
    "Part",
    "Passage",
    "Place",
    "Prompt",
    "Ranking",
    "Regex",
    "Service",
    "ServiceError",
    "State",
    "Step",
    "TextPrompt",
    "ThinkingUse",
    "ThoughtDelta",
    "TokenLimits",
    "TooLarge",
    "TooLong",
    "ToolUse",
    "UnknownContext",
    "UnknownModel",
    "Vocab",
    "allows_context",
    "allows_uploads",
    "best",
    "check_upload",
    "classify",
    "client_of_key",
    "collect",
    "decide",
    "list_documents",
    "receive",
    "rendered",
    "required_knowledge",
    "search_documents",
    "shown",
    "store_upload",
    "token_bytes",
    "with_priority",
]
