"""From messages to the text that a model reads: its own chat template, or ChatML, or plain text."""

from __future__ import annotations

import logging
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

from app.templating.process import TemplateProcess
from app.templating.sandbox import Rendering, Sandbox, TemplateFailure, TemplateRefusal

__all__ = ["ROLES", "ChatTemplate", "Message", "Rendering", "TemplateRefusal", "choose_template"]

logger = logging.getLogger("tokenstream.template")

# Templates write roles between control tokens, or make control tokens of them (``'<|' + role + '|>'``).
# A role is therefore one of these words, never a text of the user's.
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Raises:
        ValueError: ``role`` is not one of ROLES.
    """

    role: str
    content: str

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f"role {self.role!r}: should be one of {', '.join(ROLES)}")


# A format of our own is rendered here, a stranger's template in a process of its own.
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
    """A template that has been tried.

    Attributes:
        name: The template in words, for people.
        own_text: What the template itself writes: its literals and what it rendered when it was tried.
        stop: Texts at which an answer ends because the format has no token for that.
        folds_system: Whether system texts go into the user's turn, because the template has no other
            place for them.
    """

    def __init__(
        self,
        name: str,
        renderer: Renderer,
        *,
        own_text: str,
        stop: tuple[str, ...] = (),
        folds_system: bool = False,
        fallback: ChatTemplate | None = None,
    ) -> None:
        self.name = name
        self.own_text = own_text
        self.stop = stop
        self.folds_system = folds_system
        self._renderer = renderer
        self._fallback = fallback

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> Rendering:
        """Write the messages as the model knows them.

        A template that fails, or takes too long, is replaced for this once by ChatML or plain text.

        Args:
            messages: The conversation. Lone surrogates in it become question marks.
            add_generation_prompt: Whether to end with the beginning of the assistant's turn.

        Raises:
            TemplateRefusal: The template itself refuses the messages.
        """
        try:
            return _render(
                self._renderer, messages, fold=self.folds_system, add_generation_prompt=add_generation_prompt
            )
        except TemplateFailure as error:
            if not self._fallback:
                raise
            logger.warning(
                "the chat template fails for this request (%s): it is written as %s",
                error,
                self._fallback.name,
            )
            return self._fallback.render(messages, add_generation_prompt=add_generation_prompt)

    def close(self) -> None:
        """End the process that renders a stranger's template; rendering again would start another."""
        if isinstance(self._renderer, TemplateProcess):
            self._renderer.close()


def choose_template(
    source: str | None,
    *,
    special_tokens: Mapping[str, str],
    vocabulary: Container[str],
    time_limit: float = 1.0,
) -> ChatTemplate:
    """Try the model's template, and fall back to one that the model is likely to understand.

    Args:
        source: The model's chat template (Hugging Face's kind, in Jinja), if it has one.
        special_tokens: Variables of the template, such as ``bos_token``, and their texts.
        vocabulary: The model's special tokens as texts: with ``<|im_start|>`` and ``<|im_end|>`` among
            them ChatML is the fallback, otherwise plain text.
        time_limit: How long one rendering may take, in seconds.
    """
    knows_chatml = "<|im_start|>" in vocabulary and "<|im_end|>" in vocabulary
    fallback = _known_format(_CHATML if knows_chatml else _PLAIN)
    if source is None or not source.strip():
        logger.info("the model has no chat template: messages are written as %s", fallback.name)
        return fallback
    renderer = None
    try:
        renderer = TemplateProcess(source, special_tokens, time_limit=time_limit)
        trial = _try(renderer, _TRIALS[0])
    except (TemplateFailure, TemplateRefusal) as error:
        if renderer:
            renderer.close()
        logger.warning("the chat template fails (%s): messages are written as %s", error, fallback.name)
        return fallback
    folds_system, trials = _try_with_system(renderer)
    return ChatTemplate(
        "the model's own template",
        renderer,
        own_text="\n".join([*renderer.literals, trial, *trials, fallback.own_text]),
        folds_system=folds_system,
        fallback=fallback,
    )


def _known_format(format_: _Format) -> ChatTemplate:
    renderer = Sandbox(format_.source, {})
    return ChatTemplate(format_.name, renderer, own_text="\n".join(renderer.literals), stop=format_.stop)


def _try_with_system(renderer: Renderer) -> tuple[bool, list[str]]:
    """Whether system texts must be folded, and what the trials rendered."""
    trials: list[str] = []
    fold = False
    try:
        trials.append(_try(renderer, _TRIALS[1]))
    except (TemplateFailure, TemplateRefusal) as error:
        fold = True
        logger.info("the chat template has no system turn (%s): it goes into the user's first", error)
    try:
        trials.append(_try(renderer, _TRIALS[2], fold=fold))
    except (TemplateFailure, TemplateRefusal) as error:
        logger.warning("the chat template does not render conversations of several turns (%s)", error)
    return fold, trials


def _try(renderer: Renderer, messages: Sequence[Message], *, fold: bool = False) -> str:
    text = _render(renderer, messages, fold=fold, add_generation_prompt=True).text
    for message in messages:
        if message.content not in text:
            raise TemplateFailure(f"it leaves out what the {message.role} says")
    return text


def _render(
    renderer: Renderer, messages: Sequence[Message], *, fold: bool, add_generation_prompt: bool
) -> Rendering:
    turns = [
        # A text that is no Unicode is replaced here as the tokenizer would replace it.
        {"role": message.role, "content": message.content.encode("utf-8", "replace").decode("utf-8")}
        for message in (_folded(messages) if fold else messages)
    ]
    return renderer.render(turns, add_generation_prompt=add_generation_prompt)


def _folded(messages: Sequence[Message]) -> list[Message]:
    """The messages, with each system text at the beginning of the user's turn that follows it."""
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
