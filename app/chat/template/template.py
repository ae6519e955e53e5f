"""Renders messages to a prompt text with the model's chat template, as ChatML, or as plain text."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.chat.messages import Message, Tool
from app.chat.template.process import TemplateProcess
from app.chat.template.sandbox import Rendering, Sandbox, TemplateFailure, TemplateRejection
from app.chat.template.thoughts import ThoughtSupport, known_thoughts, try_thoughts
from app.chat.template.trials import try_tools
from app.chat.template.turns import ToolSupport, as_schema, as_turns, as_unicode, in_words

logger = logging.getLogger("tokenstream.template")

# Built-in formats are rendered in this process, a model's template in a child process.
Renderer = Sandbox | TemplateProcess


@dataclass(frozen=True, slots=True)
class _Format:
    name: str
    source: str
    stop: tuple[str, ...] = ()


_CHATML = _Format(
    "ChatML",
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
)
_PLAIN = _Format(
    "plain text",
    "{% for message in messages %}"
    "{% if message.role == 'system' %}{{ message.content + '\n\n' }}"
    "{% elif message.role == 'user' %}{{ 'User: ' + message.content + '\n' }}"
    "{% else %}{{ 'Assistant: ' + message.content + '\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}",
    stop=("\nUser:",),
)

_SYSTEM = Message("system", "Speak like the keeper of a lighthouse")
_USER = Message("user", "Which birds come by in March")
_ASSISTANT = Message("assistant", "Mostly geese and some swallows")
_TRIALS = ([_USER], [_SYSTEM, _USER], [_SYSTEM, _USER, _ASSISTANT, _USER])


class ChatTemplate:
    """A template that has passed its trials.

    Attributes:
        name: Description of the template, for logs.
        own_text: Text of the template: its literals, and its renderings in the trials.
        stop: Stop strings, for a format without an end-of-turn token.
        folds_system: The template has no system turn; system texts go into the user's turn.
        tool_format: Format of the assistant's calls.
        thoughts: Support of thoughts.
    """

    def __init__(
        self,
        name: str,
        renderer: Renderer,
        *,
        own_text: str,
        stop: tuple[str, ...] = (),
        folds_system: bool = False,
        tool_support: ToolSupport | None = None,
        thoughts: ThoughtSupport | None = None,
        fallback: ChatTemplate | None = None,
    ) -> None:
        self.name = name
        self.own_text = own_text
        self.stop = stop
        self.folds_system = folds_system
        self._renderer = renderer
        self._tool_support = tool_support or ToolSupport()
        self.tool_format = self._tool_support.format
        self.thoughts = thoughts or ThoughtSupport()
        self._fallback = fallback

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        options: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
    ) -> Rendering:
        """Render messages to the text of a prompt.

        If the template fails or exceeds its time limit, ChatML or plain text is used for this request.

        Args:
            messages: The conversation. Lone surrogates in it become question marks.
            tools: Functions that the model may call.
            options: Other variables of the template.
            add_generation_prompt: Whether to end with the start of the assistant's turn.

        Raises:
            TemplateRejection: The template rejects the messages.
        """
        try:
            return _render(
                self._renderer,
                messages,
                tools,
                self._tool_support,
                thought_key=self.thoughts.key,
                options=options,
                fold=self.folds_system,
                add_generation_prompt=add_generation_prompt,
            )
        except TemplateFailure as error:
            if not self._fallback:
                raise
            logger.warning(
                "the chat template failed for this request (%s): used %s instead",
                error,
                self._fallback.name,
            )
            return self._fallback.render(messages, tools=tools, add_generation_prompt=add_generation_prompt)

    def close(self) -> None:
        """End the child process of the template. A later rendering would start another one."""
        if isinstance(self._renderer, TemplateProcess):
            self._renderer.close()


def choose_template(
    source: str | None,
    *,
    special_tokens: Mapping[str, str],
    vocabulary: Collection[str],
    time_limit: float = 1.0,
) -> ChatTemplate:
    """Test the model's template with trial messages, and choose a fallback if it fails.

    Args:
        source: The model's chat template in Jinja, as in Hugging Face's repositories; None: no template.
        special_tokens: Variables of the template, such as ``bos_token``, and their texts.
        vocabulary: Texts of the model's special tokens. The fallback is ChatML if ``<|im_start|>`` and
            ``<|im_end|>`` are among them, otherwise plain text.
        time_limit: Time limit of one rendering, in seconds.
    """
    has_chatml = "<|im_start|>" in vocabulary and "<|im_end|>" in vocabulary
    known = _CHATML if has_chatml else _PLAIN
    fallback = _known_format(known, thoughts=known_thoughts("", vocabulary))
    if source is None or not source.strip():
        logger.info("the model has no chat template: using %s", fallback.name)
        return fallback
    renderer = None
    try:
        renderer = TemplateProcess(source, special_tokens, time_limit=time_limit)
        trial = _try(renderer, _TRIALS[0])
    except (TemplateFailure, TemplateRejection) as error:
        if renderer:
            renderer.close()
        logger.warning("the chat template failed (%s): using %s", error, fallback.name)
        return fallback
    folds_system, trials = _try_with_system(renderer)
    tool_support, tool_trials = _try_with_tools(renderer, fold=folds_system)
    thoughts, thought_trials = _try_with_thoughts(renderer, vocabulary, fold=folds_system)
    return ChatTemplate(
        "the model's template",
        renderer,
        own_text="\n".join(
            [*renderer.literals, trial, *trials, *tool_trials, *thought_trials, fallback.own_text]
        ),
        folds_system=folds_system,
        tool_support=tool_support,
        thoughts=thoughts,
        # The fallback has the same format of calls: answers are parsed in one format.
        fallback=_known_format(known, ToolSupport(format=tool_support.format)),
    )


# Each role has a text before and after its messages, as in the environment of TGI's fork.
_WRAPPED = (
    "{% for message in messages %}"
    "{% if message.role == 'system' %}{{ sys_pre + message.content + sys_post }}"
    "{% elif message.role == 'user' %}{{ user_pre + message.content + user_post }}"
    "{% else %}{{ ass_pre + message.content + ass_post }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ ass_pre }}{% endif %}"
)


def wrapping_template(texts: Mapping[str, str]) -> ChatTemplate:
    """A template that puts a text before and after every message. The texts may contain special tokens.

    Args:
        texts: Texts before (``_pre``) and after (``_post``) messages: ``user_pre``, ``user_post``,
            ``ass_pre``, ``ass_post``, ``sys_pre`` and ``sys_post``.
    """
    # A model without an end-of-turn token generates the text after the turn, or the start of the next one.
    end = texts["ass_post"].strip() or texts["user_pre"].strip()
    return ChatTemplate(
        "messages between the texts of TGICHAT_*",
        Sandbox(_WRAPPED, texts),
        own_text="\n".join(texts.values()),
        stop=(end,) if end else (),
    )


def _known_format(
    format_: _Format, tool_support: ToolSupport | None = None, thoughts: ThoughtSupport | None = None
) -> ChatTemplate:
    renderer = Sandbox(format_.source, {})
    return ChatTemplate(
        format_.name,
        renderer,
        own_text="\n".join(renderer.literals),
        stop=format_.stop,
        tool_support=tool_support,
        thoughts=thoughts,
    )


def _try_with_system(renderer: Renderer) -> tuple[bool, list[str]]:
    """Whether system texts must be folded, and the renderings of the trials."""
    trials: list[str] = []
    fold = False
    try:
        trials.append(_try(renderer, _TRIALS[1]))
    except (TemplateFailure, TemplateRejection) as error:
        fold = True
        logger.info("the chat template has no system turn (%s): system texts go into the user's turn", error)
    try:
        trials.append(_try(renderer, _TRIALS[2], fold=fold))
    except (TemplateFailure, TemplateRejection) as error:
        logger.warning("the chat template cannot render conversations of several turns (%s)", error)
    return fold, trials


def _try_with_tools(renderer: Renderer, *, fold: bool) -> tuple[ToolSupport, list[str]]:
    """The template's tool features, and the renderings of the trials."""

    def render(
        messages: Sequence[Message],
        tools: Sequence[Tool],
        support: ToolSupport,
        *,
        add_generation_prompt: bool,
    ) -> str:
        return _render(
            renderer, messages, tools, support, fold=fold, add_generation_prompt=add_generation_prompt
        ).text

    return try_tools(render)


def _try_with_thoughts(
    renderer: Renderer, vocabulary: Collection[str], *, fold: bool
) -> tuple[ThoughtSupport, list[str]]:
    """The template's support of thoughts, and the renderings of the trials."""

    def render(
        messages: Sequence[Message],
        support: ThoughtSupport,
        variables: Mapping[str, Any],
        *,
        add_generation_prompt: bool,
    ) -> str:
        return _render(
            renderer,
            messages,
            (),
            ToolSupport(),
            thought_key=support.key,
            options=variables,
            fold=fold,
            add_generation_prompt=add_generation_prompt,
        ).text

    return try_thoughts(render, "\n".join(renderer.literals), vocabulary)


def _try(renderer: Renderer, messages: Sequence[Message], *, fold: bool = False) -> str:
    text = _render(renderer, messages, (), ToolSupport(), fold=fold, add_generation_prompt=True).text
    for message in messages:
        if message.content not in text:
            raise TemplateFailure(f"it omits the content of role {message.role!r}")
    return text


def _render(
    renderer: Renderer,
    messages: Sequence[Message],
    tools: Sequence[Tool],
    support: ToolSupport,
    *,
    thought_key: str = "",
    options: Mapping[str, Any] | None = None,
    fold: bool,
    add_generation_prompt: bool,
) -> Rendering:
    written = in_words(messages, tools, support)
    return renderer.render(
        as_turns(_folded(written) if fold else written, support, thought_key),
        tools=[as_schema(tool) for tool in tools] if support.lists else [],
        options=as_unicode(options or {}),
        add_generation_prompt=add_generation_prompt,
    )


def _folded(messages: Sequence[Message]) -> list[Message]:
    """The messages, with each system text at the start of the next user turn."""
    folded: list[Message] = []
    system: list[str] = []
    for message in messages:
        if message.role == "system":
            system.append(message.content)
        elif message.role == "user" and system:
            folded.append(Message("user", "\n\n".join([*system, message.content])))
            system = []
        else:
            folded.append(message)
    return [*folded, Message("user", "\n\n".join(system))] if system else folded
