"""Converts a prompt to the engine's input: tokens, sampling parameters, grammar."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from app.chat.messages import Message, Tool
from app.chat.prompt import ChatTokens, PromptTokenizer
from app.chat.template.sandbox import TemplateRejection
from app.chat.tools import tool_grammar
from app.chat.tools.format import ToolFormat
from app.config.contexts import Context
from app.config.settings import Settings
from app.engine.cache.prefix_tree import n_shared_tokens
from app.engine.llama import Vocab
from app.engine.sampling.grammar import GrammarError
from app.engine.sampling.params import SamplingParams
from app.engine.sampling.watermark import Watermark
from app.knowledge.chunk import Passage
from app.service.errors import BadRequest, TooLong, UnknownContext
from app.service.preparing.choices import Choices, Chosen, check_combination, choices_of
from app.service.preparing.constraints import Constraints, enforced_schema
from app.service.preparing.limits import TokenLimits
from app.service.preparing.passages import with_passages
from app.service.preparing.prompts import (
    ChatPrompt,
    Constraint,
    Prompt,
    TextPrompt,
    ThinkingUse,
    ToolUse,
)
from app.service.preparing.thinking import template_options
from app.service.preparing.turns import in_context, with_one_system_turn

logger = logging.getLogger("tokenstream.service")

# Maximum repetition penalty of prompts with passages. At 1.15 a small model misquotes (06:27 for 06:25).
# Without a penalty it repeats itself if the passages have no answer.
_QUOTING_PENALTY = 1.05


@dataclass(frozen=True, slots=True)
class Prepared:
    """Input of the engine.

    Attributes:
        turn_ends: Numbers of tokens at which later prompts may diverge.
        passages: The passages of documents in the prompt, best first.
        n_waiting: New and changed documents that the search did not know.
        choices: The possible answers, if the context has choices.
        chosen: Probabilities of the choices, once one of them is drawn.
        conversation: The conversation that the answer ends. None: a text, or the answer continues a message.
        adapter: Name of the LoRA adapter; empty: the model alone.
    """

    tokens: list[int]
    params: SamplingParams
    turn_ends: tuple[int, ...] = ()
    passages: tuple[Passage, ...] = ()
    n_waiting: int = 0
    choices: Choices | None = None
    chosen: Chosen | None = None
    conversation: ChatPrompt | None = None
    adapter: str = ""


class Preparation:
    """Prepares requests for one model. Thread-safe."""

    def __init__(
        self,
        settings: Settings,
        contexts: Mapping[str, Context],
        vocab: Vocab,
        tokenizer: PromptTokenizer,
        limits: TokenLimits,
    ) -> None:
        self._settings = settings
        self._contexts = contexts
        self._vocab = vocab
        self._tokenizer = tokenizer
        self.limits = limits
        self.constraints = Constraints(vocab)

    def prepare(
        self, prompt: Prompt, overrides: Mapping[str, Any], constraint: Constraint | None = None
    ) -> Prepared:
        """Tokenize a prompt and merge the sampling parameters.

        Args:
            prompt: The conversation or text.
            overrides: Fields of SamplingParams that the request sets; ``watermark`` is a boolean.
            constraint: A grammar of the answer.

        Raises:
            ServiceError: The request is rejected.
        """
        context = self.context_of(prompt)
        if context is not None:
            check_combination(context, prompt, constraint)
        prompt, chat = self._with_fitting_passages(prompt, context, overrides)
        tokens = chat.tokens
        params = self._params(context, overrides, len(tokens), prompt, constraint)
        if context is not None and context.choices is not None and isinstance(prompt, ChatPrompt):
            return self._with_choices(context, prompt, overrides, params, chat)
        if isinstance(prompt, TextPrompt):
            if constraint is not None:
                params = replace(params, grammar=self.constraints.grammar(constraint))
            return Prepared(tokens, params)
        template = self._tokenizer.template
        stop = (*params.stop, *template.stop, *template.thoughts.stop)
        params = replace(params, stop=stop, thinking=chat.thinking)
        if prompt.tools is not None:
            params = self._with_tools(prompt, params, constraint)
        elif constraint is not None:
            params = replace(params, grammar=self.constraints.grammar(constraint))
        return Prepared(
            tokens,
            params,
            chat.turn_ends,
            prompt.passages,
            prompt.n_waiting,
            conversation=None if prompt.continues else prompt,
        )

    def _with_choices(
        self,
        context: Context,
        prompt: ChatPrompt,
        overrides: Mapping[str, Any],
        params: SamplingParams,
        chat: ChatTokens,
    ) -> Prepared:
        """The answer is one of the choices. Without ``max_tokens`` in the request it is complete."""
        choices = choices_of(context, self._vocab, self._tokenizer)
        room = self.limits.total - len(chat.tokens)
        if room < choices.n_longest:
            raise TooLong(
                f"the request has {len(chat.tokens)} tokens with its context, which leaves no room for a "
                f"choice of {choices.n_longest}; the limit is {self.limits.total} (N_CTX)",
                field=prompt.field,
            )
        params = replace(params, stop=())  # a stop string would truncate a choice
        if "max_tokens" not in overrides:
            params = replace(params, max_tokens=choices.n_longest)
        return Prepared(chat.tokens, params, chat.turn_ends, prompt.passages, prompt.n_waiting, choices)

    def check(self, context: Context) -> None:
        """Check the constraint and the choices of a context.

        Raises:
            BadRequest: The constraint is invalid, or a choice has no tokens.
        """
        self.constraints.check(context)
        if context.choices is not None:
            choices_of(context, self._vocab, self._tokenizer)

    def tokens(self, prompt: Prompt) -> list[int]:
        """Tokenize a prompt.

        Raises:
            BadRequest: The chat template rejects the prompt, or it has no tokens.
            UnknownContext: The context is not defined.
        """
        return self._chat(prompt).tokens if isinstance(prompt, ChatPrompt) else self._text_tokens(prompt)

    def common_prefix(self, context: Context) -> list[int]:
        """The tokens at the start of every prompt of a context.

        Raises:
            TemplateRejection: The chat template rejects the context.
        """
        # Three questions without a common first token: a letter, a digit, a bracket.
        options = template_options(ThinkingUse(), context, self._tokenizer.template.thoughts)
        first, *others = (
            self._tokenizer.chat(
                in_context(context, [Message("user", question)]), options=options.variables
            ).tokens
            for question in ("Why", "7", "(b)")
        )
        return first[: min(n_shared_tokens(first, other) for other in others)]

    def next_turn(self, prompt: ChatPrompt, text: str, thought: str) -> list[int]:
        """The tokens at the start of every prompt that continues a conversation after an answer.

        Some clients send the thoughts of the answer, others do not. Empty: passages precede the conversation,
        and the next search may find others.

        Raises:
            BadRequest: The chat template rejects the next turn.
        """
        if prompt.passages and self._settings.model_prompt_template is None:
            return []
        turns = [
            (Message("assistant", text, thoughts=thought), Message("user", "Why")),
            (Message("assistant", text), Message("user", "7")),
        ]
        first, second = (
            self._chat(replace(prompt, messages=(*prompt.messages, *turn), passages=())) for turn in turns
        )
        n_shared = n_shared_tokens(first.tokens, second.tokens)
        # Memory that cannot be truncated needs a place where tokens do not depend on the following text.
        return first.tokens[: max((end for end in first.turn_ends if end <= n_shared), default=n_shared)]

    @property
    def tool_format(self) -> ToolFormat:
        return self._tokenizer.template.tool_format

    def context_of(self, prompt: Prompt) -> Context | None:
        """The context of a conversation; a text has none.

        Raises:
            UnknownContext: The context is not defined.
        """
        if isinstance(prompt, TextPrompt):
            return None
        name = self._settings.context_type if prompt.context is None else prompt.context
        context = self._contexts.get(name)
        if context is None:
            known = ", ".join(self._contexts)
            raise UnknownContext(f"context {name!r} is not defined; defined are: {known}", field="context")
        return context

    # --- tokens

    def _with_fitting_passages(
        self, prompt: Prompt, context: Context | None, overrides: Mapping[str, Any]
    ) -> tuple[Prompt, ChatTokens]:
        """Tokenize a prompt. Its last passages are dropped until there is room for the answer."""
        if not isinstance(prompt, ChatPrompt):
            return prompt, ChatTokens(self._text_tokens(prompt))
        chat = self._chat(prompt)
        longest = (context.max_tokens if context else None) or self._settings.model_max_token
        limits = self.limits
        room = min(overrides.get("max_tokens", longest), limits.total // 2)
        while prompt.passages and len(chat.tokens) > min(limits.input, limits.total - room):
            prompt = replace(prompt, passages=prompt.passages[:-1])
            chat = self._chat(prompt)
        return prompt, chat

    def _chat(self, prompt: ChatPrompt) -> ChatTokens:
        context = self.context_of(prompt)
        assert context is not None
        tools = prompt.tools.tools if prompt.tools else ()
        options = template_options(prompt.thinking, context, self._tokenizer.template.thoughts)
        messages = with_passages(
            in_context(context, prompt.messages), prompt.passages, self._settings.model_prompt_template
        )
        rejection: TemplateRejection | None = None
        for turns in (messages, with_one_system_turn(messages)):
            try:
                chat = self._tokenizer.chat(
                    turns,
                    tools=tools,
                    options=options.variables,
                    thinks=options.thinks,
                    continue_final=prompt.continues,
                )
                break
            except TemplateRejection as error:
                rejection = rejection or error
        else:
            raise BadRequest(
                f"the model's chat template rejects the messages: {rejection}", field=prompt.field
            ) from rejection
        if chat.thinking is None:
            return chat
        return replace(chat, thinking=replace(chat.thinking, budget=options.budget))

    def _text_tokens(self, prompt: TextPrompt) -> list[int]:
        if prompt.tokens is not None:
            for token in prompt.tokens:
                self._check_token(token, prompt.field)
            tokens = list(prompt.tokens)
        elif prompt.suffix is not None:
            tokens = self._fill_in(prompt.text, prompt.suffix)
        else:
            tokens = self._tokenizer.markup_tokens(prompt.text)
        if not tokens:
            raise BadRequest("should have at least one token", field=prompt.field)
        return tokens if prompt.truncate is None else tokens[-prompt.truncate :]

    def _fill_in(self, before: str, behind: str) -> list[int]:
        """Fill in the middle, in prefix-suffix-middle order (Bavarian et al. 2022)."""
        if min(self._vocab.fill_in) < 0:
            raise BadRequest("this model has no fill-in-the-middle tokens", field="suffix")
        prefix, suffix, middle = self._vocab.fill_in
        parts = [self._vocab.tokenize(text, parse_special=False) for text in (before, behind)]
        bos = [self._vocab.bos] if self._vocab.add_bos and self._vocab.bos >= 0 else []
        return [*bos, prefix, *parts[0], suffix, *parts[1], middle]

    # --- parameters

    def _params(
        self,
        context: Context | None,
        overrides: Mapping[str, Any],
        n_prompt: int,
        prompt: Prompt,
        constraint: Constraint | None,
    ) -> SamplingParams:
        """Merge sampling parameters: the request overrides the context, which overrides the settings."""
        limits, field = self.limits, prompt.field
        room = limits.total - n_prompt
        if room < min(1, overrides.get("max_tokens", 1)):
            raise TooLong(
                f"the request has {n_prompt} tokens with its context; the limit is {limits.total}, "
                "including the answer (N_CTX)",
                field=field,
            )
        if n_prompt > limits.input:
            raise TooLong(
                f"the request has {n_prompt} tokens with its context; the limit is {limits.input} "
                "(MAX_INPUT_LENGTH)",
                field=field,
            )
        wanted = overrides.get("max_tokens", 0)
        if wanted > room and not prompt.reduces_max_tokens:
            raise TooLong(
                f"{n_prompt} prompt tokens and max_tokens {wanted} exceed the limit of {limits.total}",
                field="max_tokens",
            )
        for token in overrides.get("logit_bias", {}):
            self._check_token(token, "logit_bias")
        settings = self._settings
        merged: dict[str, Any] = {
            "max_tokens": settings.model_max_token,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "top_k": settings.top_k,
            "seed": settings.seed,
            "repetition_penalty": settings.repeat_penalty,
            "repeat_last_n": settings.repeat_last_n,
        } | (context.sampling() if context else {})
        if constraint is not None or _has_own_rules(prompt):
            merged["repetition_penalty"] = 1.0
        elif isinstance(prompt, ChatPrompt) and prompt.passages:
            merged["repetition_penalty"] = min(merged["repetition_penalty"], _QUOTING_PENALTY)
        merged |= overrides
        merged["max_tokens"] = min(merged["max_tokens"], room)
        if merged.pop("watermark", False):
            merged["watermark"] = Watermark(settings.watermark_gamma, settings.watermark_delta)
        return SamplingParams(**merged)

    def _check_token(self, token: int, field: str) -> None:
        if not 0 <= token < self._vocab.n_tokens:
            raise BadRequest(f"token {token} is not in the vocabulary of {self._vocab.n_tokens}", field=field)

    # --- constraints

    def _with_tools(
        self, prompt: ChatPrompt, params: SamplingParams, constraint: Constraint | None
    ) -> SamplingParams:
        use, tool_format = prompt.tools, self._tokenizer.template.tool_format
        assert use is not None
        if constraint is not None:
            raise BadRequest("cannot be combined with tools", field=constraint.field)
        special = self._vocab.control_tokens
        enforced = [_enforceable_tool(use, index) for index in range(len(use.tools))]
        tools = [tool for tool in enforced if use.only in (None, tool.name)]
        choice = "required" if use.must_call else "auto"
        lark = tool_grammar(tool_format, tools, choice=choice, parallel=use.parallel, special_tokens=special)
        try:
            grammar = self.constraints.grammars.lark(lark)
        except GrammarError as error:
            raise self._rejected_tool(enforced, error) from error
        visible = frozenset(special[text] for text in tool_format.markers(special))
        return replace(params, grammar=grammar, visible=visible)

    def _rejected_tool(self, tools: Sequence[Tool], error: GrammarError) -> BadRequest:
        """Find the rejected tool: the error of the common grammar does not name it."""
        for index, tool in enumerate(tools):
            try:
                self.constraints.grammars.json_schema(tool.schema, exact=False)
            except GrammarError as reason:
                return BadRequest(f"cannot be enforced: {reason}", field=f"tools.{index}.function.parameters")
        return BadRequest(f"cannot be enforced: {error}", field="tools")


def _enforceable_tool(use: ToolUse, index: int) -> Tool:
    """A tool with the schema that the grammar enforces."""
    tool, field = use.tools[index], f"tools.{index}.function.parameters"
    schema = enforced_schema(tool.schema, field, exact=tool.name in use.strict, tool=tool.name)
    try:
        return replace(tool, parameters=schema)
    except ValueError as error:  # rewriting adds levels
        raise BadRequest(f"cannot be enforced: {error}", field=field) from error


def _has_own_rules(prompt: Prompt) -> bool:
    """Whether tools or a system turn of the request determine the form of the answer."""
    if not isinstance(prompt, ChatPrompt):
        return False
    return prompt.tools is not None or any(message.role == "system" for message in prompt.messages)
