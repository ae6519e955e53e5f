"""Prompts of random words, equal for all servers."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.chat.messages import Message
from app.chat.template.template import choose_template
from app.engine.llama import Model

# fmt: off
WORDS = (
    "river", "stone", "market", "silver", "winter", "garden", "teacher", "engine", "music", "yellow",
    "bridge", "coffee", "planet", "window", "forest", "letter", "summer", "castle", "doctor", "island",
    "mirror", "pocket", "rocket", "shadow", "ticket", "valley", "anchor", "basket", "button", "candle",
    "carpet", "cotton", "desert", "dinner", "dragon", "farmer", "finger", "flower", "guitar", "hammer",
    "harbor", "helmet", "insect", "jacket", "kitchen", "ladder", "lemon", "magnet", "marble", "meadow",
    "needle", "ocean", "orange", "palace", "pepper", "pillow", "rabbit", "ribbon", "saddle", "sailor",
    "spider", "temple", "tunnel", "velvet", "violin", "wagon",
)
# fmt: on


@dataclass(frozen=True)
class Context:
    """A named context. Its prompt becomes the system message; ``choices``: the only possible answers."""

    name: str
    prompt: str
    choices: tuple[str, ...] = ()


PLAIN = Context("plain", "You are a helpful assistant.")


@dataclass(frozen=True)
class Question:
    """A context and the messages of a conversation, up to the one to answer."""

    messages: tuple[Message, ...]
    context: Context = PLAIN

    @classmethod
    def of(cls, text: str, context: Context = PLAIN) -> Question:
        """A question without earlier messages."""
        return cls((Message("user", text),), context)


class Prompts:
    """Renders questions with the model's chat template and counts tokens with llama.cpp's tokenizer."""

    def __init__(self, model_path: Path) -> None:
        self._model = Model(model_path, vocab_only=True)
        vocab = self._model.vocab
        self._template = choose_template(
            self._model.chat_template,
            special_tokens={"bos_token": vocab.text(vocab.bos), "eos_token": vocab.text(vocab.eos)},
            vocabulary=vocab.control_tokens | vocab.added_tokens,
        )

    def render(self, question: Question) -> str:
        """The prompt text, up to the start of the answer."""
        system = Message("system", question.context.prompt)
        return self._template.render([system, *question.messages]).text

    def n_tokens(self, prompt: str) -> int:
        """Number of tokens of a rendered prompt."""
        vocab = self._model.vocab
        return len(vocab.tokenize(prompt, parse_special=True)) + vocab.add_bos

    def close(self) -> None:
        """Free the vocabulary and end the process of the template."""
        self._template.close()
        self._model.close()


class Texts:
    """Random texts. Equal seeds give equal texts."""

    def __init__(self, prompts: Prompts, seed: str) -> None:
        self._prompts = prompts
        self._random = random.Random(seed)

    def text(self, n_tokens: int) -> str:
        """Words of ``n_tokens`` tokens, to within two."""
        return self._words(n_tokens, self._prompts.n_tokens)

    def question(self, n_tokens: int) -> Question:
        """A question of ``n_tokens`` tokens with context and template, to within two."""

        def measure(text: str) -> int:
            return self._prompts.n_tokens(self._prompts.render(Question.of(text)))

        return Question.of(self._words(n_tokens, measure))

    def records(self, n_tokens: int) -> str:
        """Lines of JSON with at least ``n_tokens`` tokens. Small models copy this format reliably."""
        lines: list[str] = []
        while self._prompts.n_tokens("\n".join(lines)) < n_tokens:
            name, place = self._random.sample(WORDS, 2)
            lines.append(json.dumps({"name": name, "place": place, "count": self._random.randrange(10, 100)}))
        return "\n".join(lines)

    def shuffled(self, items: Sequence[Context]) -> list[Context]:
        """The items in random order."""
        return self._random.sample(items, len(items))

    def _words(self, n_tokens: int, measure: Callable[[str], int]) -> str:
        words: list[str] = []
        missing = n_tokens
        for _ in range(8):  # a word may have two tokens, so the first attempts may miss the length
            if missing > 0:
                words += self._random.choices(WORDS, k=missing)
            else:
                del words[missing:]
            missing = n_tokens - measure(" ".join(words))
            if not missing:
                break
        return " ".join(words)
