"""Several jobs as one request to the pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .previews import Hearer, Previews, shown_steps

if TYPE_CHECKING:
    from ..runtime.images import Output
    from ..runtime.pipeline import Pipeline
    from .ticket import Ticket


def run_batch(
    pipe: Pipeline, tickets: Sequence[Ticket], said: Sequence[Mapping[str, Any]], size: int, output_type: str, pictures: bool
) -> Output:
    """Make a batch of one kind, of which this is said: arrays (1, ..) by name.

    Up to `size` it is filled with images for nobody, which are the last ones of what is returned.  Raises Cancelled before the
    next step once nobody waits for any of them.  Previews are `pictures`, or latents alone.
    """
    rows = [*range(len(tickets)), *[len(tickets) - 1] * (size - len(tickets))]
    first, scales = tickets[0], [tickets[row].scale for row in rows]
    arrays: dict[str, Any] = {name: np.concatenate([said[row][name] for row in rows]) for name in said[0]}
    return pipe(
        **arrays,
        guidance_scale=scales if first.program.guides_each_image else scales[0],
        seed=[tickets[row].seed for row in rows],
        steps=first.program.steps,
        height=first.job.height,
        width=first.job.width,
        output_type=output_type,
        callback_on_step_end=_previews(tickets, pictures),
        cancel=NobodyWaits(tickets),
    )


class NobodyWaits:
    """What stops a batch: that every one of its tickets has been answered."""

    def __init__(self, tickets: Sequence[Ticket]) -> None:
        self._tickets = tickets

    def is_set(self) -> bool:
        return all(ticket.done() for ticket in self._tickets)


def _previews(batch: Sequence[Ticket], pixels: bool) -> Previews | None:
    """The callback of a batch in which somebody is shown something."""
    steps = batch[0].program.steps_of_solver
    hearers = [
        Hearer(row, shown_steps(ticket.job.previews, steps), ticket.on_preview, ticket.done)
        for row, ticket in enumerate(batch)
        if ticket.on_preview and ticket.job.previews
    ]
    return Previews(hearers, steps, pixels) if hearers else None
