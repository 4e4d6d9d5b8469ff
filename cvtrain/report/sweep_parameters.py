"""The parts of a sweep's page that are about its parameters: from axis to axis, one by one."""

from collections.abc import Sequence

from cvtrain.report import words
from cvtrain.report.board import Board
from cvtrain.report.effects import ENOUGH, Effect, effects, figures, filled
from cvtrain.report.page import Chart, Part, Table, Text
from cvtrain.report.sweep_charts import Axis, draw_effect, draw_parallel, numeric_axis, word_axis
from cvtrain.report.sweep_record import Job, as_number


def parallel(board: Board) -> Sequence[Part]:
    """An axis for each parameter, a line for each run that has a figure."""
    ranked = [
        (job, figure)
        for group in board.groups
        for job, figure in zip(group.jobs, group.figures, strict=False)
    ]
    shown = [job for job, _ in ranked]
    differ = [axis for axis in board.axes if len({job.typed.get(axis) for job in shown}) > 1]
    if len(ranked) < 2 or not differ:
        return []
    axes = [parameter_axis(board, axis, shown) for axis in differ]
    values = [figure for _, figure in ranked]
    texts = [words.figure(board.primary, value) for value in values]
    axes.append(numeric_axis(board.primary, values, texts, down=board.lower))
    caption = (
        f"A line for each of the {len(ranked)} runs with a figure, coloured by it: blue is best, "
        "and the best is on top. Numbers that span more than a factor of ten are by magnitude."
    )
    drawn = draw_parallel(axes, [job.run for job in shown])
    return [Chart(drawn, caption, wide=True)]


def parameter_axis(board: Board, axis: str, shown: Sequence[Job]) -> Axis:
    """By size if every run has a number there; beside 0 there is no magnitude: evenly, then."""
    texts = [job.typed.get(axis, "—") for job in shown]
    numbers = [number for text in texts if (number := as_number(text)) is not None]
    sizes = {abs(number) for number in numbers} - {0}
    by_magnitude = len(sizes) > 1 and max(sizes) > 10 * min(sizes)
    if len(numbers) == len(texts) and not (by_magnitude and min(numbers) <= 0):
        return numeric_axis(axis, numbers, texts)
    order = [value for value in [*board.sweep.values(axis), "—"] if value in texts]
    return word_axis(axis, texts, order)


def by_parameter(board: Board) -> Sequence[Part]:
    """Points and means by value; how much of the variance is a parameter's."""
    found = effects(board)
    if not found:
        return []
    unit = words.unit(board.primary)
    charts: list[Part] = [
        Chart(
            draw_effect(
                effect.axis,
                f"{board.primary}{',' if unit else ''}{unit}",
                {
                    value: [(job.run, figure) for job, figure in pairs]
                    for value, pairs in effect.by_value.items()
                },
                log=board.lower,
            )
        )
        for effect in found
    ]
    return [*charts, means(board, found), *shares(board, found)]


def means(board: Board, found: Sequence[Effect]) -> Table:
    rows = [
        (
            effect.axis,
            value,
            effect.means[value],
            min(figures(pairs)),
            max(figures(pairs)),
            len(pairs),
        )
        for effect in found
        for value, pairs in effect.by_value.items()
    ]
    form = ".2f" if words.unit(board.primary) else ".4g"
    unit = words.unit(board.primary).strip()
    mean = f"mean, {unit}" if unit else "mean"
    head = ["parameter", "value", mean, "least", "greatest", "runs"]
    return Table(head, rows, "By value", ("", "", form, form, form, ""), wide=False)


def shares(board: Board, found: Sequence[Effect]) -> list[Part]:
    """Main effects, where enough of the grid has a figure to tell one from another."""
    full, every = filled(found)
    if full < ENOUGH * every:
        text = (
            f"How much each parameter explains cannot be told: of the {every} combinations of "
            f"their values {full} have a figure, and what is missing would be laid to them."
        )
        return [Text(text, "note")]
    known = [effect for effect in found if effect.share is not None]
    if not known:
        text = "all figures are the same, or no value of a parameter has a second run."
        return [Text(f"How much each parameter explains cannot be told: {text}", "note")]
    order = sorted(known, key=lambda effect: -(effect.share or 0))
    gaps = "" if full == every else f" {every - full} of {every} combinations are missing: roughly."
    caption = (
        f"Of the variance of {board.primary} over the runs, the share between a parameter's "
        f"values by itself (eta squared). The rest is what they do together, and chance.{gaps}"
    )
    best = min if board.lower else max
    rows = [
        (effect.axis, effect.share, best(effect.means, key=effect.means.__getitem__))
        for effect in order
    ]
    head = ["parameter", "explains, %", "best value in the mean"]
    return [Table(head, rows, caption, ("", ".1f", ""), wide=False)]
