"""What is asked: distinct texts made of words, as the very same prompt for every server."""

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
    """A named context: its prompt becomes the system turn."""

    name: str
    prompt: str


PLAIN = Context("plain", "You are a helpful assistant.")


@dataclass(frozen=True)
class Question:
    """The turns of a conversation up to the one to be answered, behind a context."""

    messages: tuple[Message, ...]
    context: Context = PLAIN

    @classmethod
    def of(cls, text: str, context: Context = PLAIN) -> Question:
        """A question without turns before it."""
        return cls((Message("user", text),), context)


class Prompts:
    """Writes questions as the model's chat template has them, and counts tokens as llama.cpp does."""

    def __init__(self, model_path: Path) -> None:
        self._model = Model(model_path, vocab_only=True)
        vocab = self._model.vocab
        self._template = choose_template(
            self._model.chat_template,
            special_tokens={"bos_token": vocab.text(vocab.bos), "eos_token": vocab.text(vocab.eos)},
            vocabulary=vocab.control_tokens | vocab.added_tokens,
        )

    def render(self, question: Question) -> str:
        """The prompt, up to where the answer begins."""
        system = Message("system", question.context.prompt)
        return self._template.render([system, *question.messages]).text

    def n_tokens(self, prompt: str) -> int:
        """How many tokens a rendered prompt has."""
        vocab = self._model.vocab
        return len(vocab.tokenize(prompt, parse_special=True)) + vocab.add_bos

    def close(self) -> None:
        """Free the vocabulary and end the template's process."""
        self._template.close()
        self._model.close()


class Texts:
    """Texts that nobody sent before; equal seeds, equal texts."""

    def __init__(self, prompts: Prompts, seed: str) -> None:
        self._prompts = prompts
        self._random = random.Random(seed)

    def text(self, n_tokens: int) -> str:
        """Words of ``n_tokens`` tokens, give or take two."""
        return self._words(n_tokens, self._prompts.n_tokens)

    def question(self, n_tokens: int) -> Question:
        """A question of ``n_tokens`` tokens, context and template included, give or take two."""

        def measure(text: str) -> int:
            return self._prompts.n_tokens(self._prompts.render(Question.of(text)))

        return Question.of(self._words(n_tokens, measure))

    def records(self, n_tokens: int) -> str:
        """Lines of JSON of at least ``n_tokens`` tokens: a text that even a small model copies well."""
        lines: list[str] = []
        while self._prompts.n_tokens("\n".join(lines)) < n_tokens:
            name, place = self._random.sample(WORDS, 2)
            lines.append(json.dumps({"name": name, "place": place, "count": self._random.randrange(10, 100)}))
        return "\n".join(lines)

    def shuffled(self, items: Sequence[Context]) -> list[Context]:
        """The items in another order."""
        return self._random.sample(items, len(items))

    def _words(self, n_tokens: int, measure: Callable[[str], int]) -> str:
        words: list[str] = []
        missing = n_tokens
        for _ in range(8):  # a word may be two tokens: two or three attempts do
            if missing > 0:
                words += self._random.choices(WORDS, k=missing)
            else:
                del words[missing:]
            missing = n_tokens - measure(" ".join(words))
            if not missing:
                break
        return " ".join(words)
