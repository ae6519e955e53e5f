"""Ways to decide, and free generation of the same answers by the same model."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase

import numpy as np

from app.chat.messages import Message
from app.config.contexts import Context, Example
from app.engine.sampling.params import SamplingParams
from app.engine.scoring import Question
from app.service import DecisionQuestion, Model
from app.service.preparing.questions import QuestionPreparation
from bench.bias.cases import Case, Task
from bench.bias.figures import Floats, log_softmax

LABELS = {"letters": ascii_uppercase, "digits": "123456789", "words": ""}  # of options, by form
UNLISTED = "words, not listed"  # the prompt has no options
EXAMPLES = "words, after examples"  # in a context with choices and examples, as of `/classify`
FORMS = (*LABELS, UNLISTED, EXAMPLES)
WITHOUT_ORDER = (UNLISTED, EXAMPLES)

# States without content. Zhao et al. 2021, Calibrate Before Use, average over these three.
CONTENT_FREE = ("N/A", "[MASK]", "")

_SAMPLES = 8
_MAX_TOKENS = 12  # of a generated answer


@dataclass(frozen=True, slots=True)
class Way:
    """How to get probabilities from log-probabilities of labels.

    Attributes:
        form: One of ``FORMS``.
        averages: Whether to average the log-probabilities of the given and the reversed order of options.
        subtracts: Whether to subtract the log-probabilities for states without content.
    """

    form: str
    averages: bool
    subtracts: bool

    @property
    def name(self) -> str:
        order = "" if self.form in WITHOUT_ORDER else ", two orders" if self.averages else ", one order"
        return f"{self.form}{order}{', less the prior' if self.subtracts else ''}"


WAYS = tuple(
    Way(form, averages, subtracts)
    for form in FORMS
    for averages in ((False,) if form in WITHOUT_ORDER else (False, True))
    for subtracts in (False, True)
)


@dataclass(frozen=True, slots=True)
class Scores:
    """Log-probabilities of options in the given order of options, and in the reversed one.

    Attributes:
        cases: For each order, a row per case.
        priors: For each order, a row per case: the mean over the states without content.
    """

    cases: tuple[Floats, Floats]
    priors: tuple[Floats, Floats]

    def logprobs(self, way: Way) -> Floats:
        """Scaled log-probabilities of each case by one way. The form of ``way`` is not read."""
        orders = [
            log_softmax(scores - prior if way.subtracts else scores)
            for scores, prior in zip(self.cases, self.priors, strict=True)
        ]
        return log_softmax((orders[0] + orders[1]) / 2) if way.averages else orders[0]


class Study:
    """Decides the cases of tasks with one model."""

    def __init__(self, model: Model) -> None:
        self._engine, self._vocab, self._tokenizer = model.engine, model.vocab, model.tokenizer
        self._preparations: Mapping[str, QuestionPreparation] = {
            form: QuestionPreparation(model.vocab, model.tokenizer, model.limits, labels=labels)
            for form, labels in LABELS.items()
        }

    async def scores(self, task: Task, form: str) -> Scores:
        """Score the options of all cases with labels of one form."""
        cases = np.array(await asyncio.gather(*(self._score(task, form, case) for case in task.cases)))
        asked = list(dict.fromkeys(case.instructions for case in task.cases))
        priors = await asyncio.gather(*(self._prior(task, form, instructions) for instructions in asked))
        of_cases = np.array([priors[asked.index(case.instructions)] for case in task.cases])
        return Scores((cases[:, 0], cases[:, 1]), (of_cases[:, 0], of_cases[:, 1]))

    async def _prior(self, task: Task, form: str, instructions: str) -> Floats:
        free = [Case(text, instructions, 0) for text in CONTENT_FREE]
        scores = np.array(await asyncio.gather(*(self._score(task, form, case) for case in free)))
        mean: Floats = np.log(np.exp(log_softmax(scores)).mean(axis=0))
        return mean

    async def _score(self, task: Task, form: str, case: Case) -> list[list[float]]:
        """Log-probabilities of the options in two orders, each in the given order."""
        if form in WITHOUT_ORDER:
            prepared = self._unlisted(task, case) if form == UNLISTED else self._in_context(task, case)
            [scores] = (await self._engine.score(*prepared)).logprobs
            return [scores, scores]
        prompt, questions = self._prepared(task, form, case)
        given, turned = (await self._engine.score(prompt, questions)).logprobs
        return [given, turned[::-1]]

    def _prepared(self, task: Task, form: str, case: Case) -> tuple[list[int], list[Question]]:
        by_name = task.is_yes_or_no and form == "words"
        asked = [
            DecisionQuestion(case.instructions, options, "case", answers_by_name=by_name)
            for options in (task.options, task.options[::-1])
        ]
        prepared = self._preparations[form].prepare(case.text, asked)
        for failure in prepared.failures.values():
            raise failure
        return prepared.prompt, list(prepared.questions.values())

    def _unlisted(self, task: Task, case: Case) -> tuple[list[int], list[Question]]:
        """A prompt that asks for a word, and the names of options as replies."""
        asked = f"{case.text}\n\nQuestion: {case.instructions}\nAnswer with one word."
        prompt = self._tokenizer.chat([Message("user", asked)], thinks=False).tokens
        end = self._vocab.eos
        replies = tuple((*self._tokenizer.reply_tokens(option.name), end) for option in task.options)
        return prompt[:-1], [Question((prompt[-1],), replies)]

    def _in_context(self, task: Task, case: Case) -> tuple[list[int], list[Question]]:
        return self._classified(case_text(task, case), context_of(task))

    def _classified(self, text: str, context: Context) -> tuple[list[int], list[Question]]:
        prepared = self._preparations["words"].prepare_queries([text], context, "case")
        return prepared.prompt, list(prepared.questions.values())

    async def classes(self, task: Task, context: Context) -> tuple[Floats, Floats]:
        """Scaled log-probabilities of the choices of a context, and the same less the prior."""
        texts = [*(case.text for case in task.cases), *CONTENT_FREE]
        found = await asyncio.gather(
            *(self._engine.score(*self._classified(text, context)) for text in texts)
        )
        logprobs = log_softmax(np.array([one.logprobs[0] for one in found]))
        cases, free = logprobs[: len(task.cases)], logprobs[len(task.cases) :]
        return cases, log_softmax(cases - np.log(np.exp(free).mean(axis=0)))

    async def free_answers(self, task: Task) -> tuple[Floats, list[int | None]]:
        """Generate answers to the prompts with words.

        Returns:
            Log-probabilities, estimated by samples at temperature 1 with one more for each option, and the
            options that greedy answers name.
        """
        found = await asyncio.gather(*(self._generated(task, case) for case in task.cases))
        counts = np.array([[samples.count(i) for i in range(len(task.options))] for samples, _ in found])
        return log_softmax(np.log(counts + 1.0)), [greedy for _, greedy in found]

    async def _generated(self, task: Task, case: Case) -> tuple[list[int | None], int | None]:
        prompt, (question, _) = self._prepared(task, "words", case)
        tokens = [*prompt, *question.tokens]
        all_params = [SamplingParams(max_tokens=_MAX_TOKENS, temperature=0.0)] + [
            SamplingParams(max_tokens=_MAX_TOKENS, seed=seed) for seed in range(_SAMPLES)
        ]
        texts = await asyncio.gather(*(self._text(tokens, params) for params in all_params))
        greedy, *samples = (named_option([o.name for o in task.options], text) for text in texts)
        return samples, greedy

    async def _text(self, tokens: Sequence[int], params: SamplingParams) -> str:
        return "".join([output.text async for output in self._engine.submit(tokens, params)])


def context_of(task: Task) -> Context:
    """A context with the options of a task as choices, and with its examples."""
    names = [option.name for option in task.options]
    return Context(
        prompt=f"{task.instructions or 'Is the statement true?'} Answer with {', '.join(names)}.",
        choices=dict.fromkeys(names, ""),
        examples=[Example(query=case_text(task, one), answer=names[one.right]) for one in task.examples],
    )


def case_text(task: Task, case: Case) -> str:
    """The text of a case, with its question if each case has its own."""
    return case.text if task.instructions else f"{case.text}\n\n{case.instructions}"


def named_option(names: Sequence[str], text: str) -> int | None:
    """Index of the option that a text names first. None: it names no option."""
    pattern = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    match = re.search(rf"\b(?:{pattern})\b", text, re.IGNORECASE)
    return None if match is None else [name.lower() for name in names].index(match[0].lower())
