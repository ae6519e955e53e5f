"""``python -m bench.bias``: how right and how well calibrated decisions are, by labels, order and prior.

Prints Markdown tables. The model is that of the settings. Choose by the half for development. Look at the
held-out half once.

A way replaces that of the service by two conditions on the cases for development. Its log loss is lower
than those of guessing and of the service, each by two standard errors. Its accuracy is not lower.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from app.config.contexts import Context
from app.config.errors import UserError
from app.config.settings import load
from app.service.start import Start
from bench.bias.cases import TASKS, Half, Task, read_task
from bench.bias.figures import EDGES, Floats, Outcome, difference
from bench.bias.ways import FORMS, WAYS, Study, Way

# Contexts that decide a task, with choices in the order of its options.
SHIPPED = {"sentiment": "classifier"}
SAMPLED, GREEDY = "free generation, 8 samples", "free generation, greedy"


@dataclass(slots=True)
class Measured:
    """Outcomes of the ways, each for each task.

    Attributes:
        outcomes: By the name of the way, then by the name of the task.
        shipped: Of tasks that a context of the contexts file decides, in that context.
        greedy: Accuracy of greedy answers in free generation, by task.
        unnamed: Share of greedy answers that name no option, by task.
    """

    outcomes: dict[str, dict[str, Outcome]]
    greedy: dict[str, float]
    unnamed: dict[str, float]
    shipped: dict[str, Outcome]


async def measure(study: Study, tasks: Sequence[Task], contexts: Mapping[str, Context]) -> Measured:
    """Decide all cases by each way, and generate the answers freely."""
    made = Measured({name: {} for name in (*(way.name for way in WAYS), SAMPLED)}, {}, {}, {})
    for task in tasks:
        right = [case.right for case in task.cases]
        for form in FORMS:
            scores = await study.scores(task, form)
            for way in WAYS:
                if way.form == form:
                    made.outcomes[way.name][task.name] = Outcome.of(scores.logprobs(way), right)
            print(f"{task.name}: {form} scored", file=sys.stderr, flush=True)
        logprobs, greedy = await study.free_answers(task)
        made.outcomes[SAMPLED][task.name] = Outcome.of(logprobs, right)
        made.greedy[task.name] = sum(a == b for a, b in zip(greedy, right, strict=True)) / len(right)
        made.unnamed[task.name] = greedy.count(None) / len(right)
        if (context := contexts.get(SHIPPED.get(task.name, ""))) is not None:
            plain, less_prior = await study.classes(task, context)
            made.shipped[task.name] = Outcome.of(plain, right)
            made.shipped[f"{task.name}, less the prior"] = Outcome.of(less_prior, right)
        print(f"{task.name}: answers generated", file=sys.stderr, flush=True)
    return made


def report(made: Measured, tasks: Sequence[Task]) -> str:
    """Markdown tables: accuracy, log loss, calibration error, and bins of confidence over all tasks."""
    guesses = {task.name: len(task.options) for task in tasks}
    figures: list[tuple[str, Callable[[Outcome], float], Mapping[str, float]]] = [
        ("accuracy", lambda outcome: outcome.accuracy, {n: 1 / k for n, k in guesses.items()}),
        (
            "log loss, nats",
            lambda outcome: outcome.log_loss,
            {n: float(np.log(k)) for n, k in guesses.items()},
        ),
        ("expected calibration error", lambda outcome: outcome.calibration_error, {}),
    ]
    parts = []
    for title, figure, chance in figures:
        rows = [("guessing", [chance[task.name] for task in tasks])] if chance else []
        if title == "accuracy":
            rows.append((GREEDY, [made.greedy[task.name] for task in tasks]))
            rows.append(("greedy answers without an option", [made.unnamed[task.name] for task in tasks]))
        rows += [(way, [figure(found[task.name]) for task in tasks]) for way, found in made.outcomes.items()]
        parts.append(
            _table(
                [title, *(task.name for task in tasks), "mean"],
                ([way, *(f"{value:.2f}" for value in (*values, np.mean(values)))] for way, values in rows),
            )
        )
    together = {way: Outcome.joined(list(found.values())) for way, found in made.outcomes.items()}
    guessed = np.concatenate([np.full(len(task.cases), np.log(len(task.options))) for task in tasks])
    served = Outcome.joined([made.outcomes[_served(task).name][task.name] for task in tasks])
    parts += [
        _differences(together, {"guessing": guessed, "decisions as served": served.losses}),
        _bins(together),
        _shipped(made.shipped),
    ]
    return "\n\n".join(parts)


def _shipped(outcomes: Mapping[str, Outcome]) -> str:
    rows = (
        [
            name,
            SHIPPED[name.partition(",")[0]],
            *(f"{v:.2f}" for v in (o.accuracy, o.log_loss, o.calibration_error)),
        ]
        for name, o in outcomes.items()
    )
    return _table(["task", "context", "accuracy", "log loss, nats", "expected calibration error"], rows)


def _served(task: Task) -> Way:
    """The way of the service."""
    return Way("words" if task.is_yes_or_no else "letters", averages=False, subtracts=False)


def _differences(together: Mapping[str, Outcome], bases: Mapping[str, Floats]) -> str:
    """Log losses relative to others, with standard errors of the paired differences."""
    rows = []
    for way, outcome in together.items():
        compared = (difference(outcome.losses, base) for base in bases.values())
        rows.append([way, *(f"{mean:+.2f} ± {error:.2f}" for mean, error in compared)])
    return _table(["log loss of all cases relative to", *bases], rows)


def _bins(together: Mapping[str, Outcome]) -> str:
    """For each bin: cases, mean confidence → share that is right."""
    head = [f"{low:.1f} to {high:.1f}" for low, high in itertools.pairwise(EDGES)]
    rows = (
        [way, *(f"{n}: {c:.2f} → {share:.2f}" if n else "0" for n, c, share in outcome.bins())]
        for way, outcome in together.items()
    )
    return _table(["confidence", *head], rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


async def run(names: Sequence[str], half: Half, most_cases: int | None) -> str:
    """Load the model of the settings, decide the cases of one half, and return the report.

    Raises:
        UserError: The model cannot be loaded.
    """
    tasks = [read_task(name, half) for name in names]
    if most_cases is not None:
        tasks = [replace(task, cases=task.cases[:: -(-len(task.cases) // most_cases)]) for task in tasks]
    start = Start(load())
    try:
        await start.load(warm=())
        return report(await measure(Study(start.service.model), tasks, start.service.contexts), tasks)
    finally:
        await start.service.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.bias", description=__doc__)
    parser.add_argument("--half", choices=["development", "held-out"], default="development")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--cases", type=int, help="most cases of a task; default: all of the half")
    chosen = parser.parse_args(arguments)
    try:
        print(asyncio.run(run(chosen.tasks, chosen.half, chosen.cases)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
