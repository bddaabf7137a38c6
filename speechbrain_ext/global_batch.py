"""How many utterances one optimiser step takes, and where a run with another goes on.

    G = batch size × processes × accumulation

A learning rate is published for one G. With more or fewer processes it changes unless
the batch size or the accumulation does the opposite, so a run says what it has.

The utterances of an epoch stand in one order, whatever G is. A run that was left after
n steps of B utterances each (B = batch size × processes) and has B' now goes on at step

    ⌊n B / B'⌋, rounded down to the beginning of an accumulation group.

What was trained on since that step comes again; nothing is left out, but a tail of less
than B' utterances, as in every epoch.
"""

from typing import NamedTuple


class GlobalBatch(NamedTuple):
    """The three factors of G.

    Attributes
    ----------
    batch_size : int
        Utterances of one process in one step.
    processes : int
        As many have one each.
    accumulation : int
        Steps whose gradients are summed for one optimiser step.
    """

    batch_size: int
    processes: int
    accumulation: int = 1

    @property
    def per_step(self):
        """B, utterances of one step of all processes."""
        return self.batch_size * self.processes

    @property
    def size(self):
        """G, utterances of one optimiser step."""
        return self.per_step * self.accumulation

    def __str__(self):
        return (
            f"{self.size} = {self.batch_size} × {self.processes} process(es) × "
            f"accumulation {self.accumulation}"
        )

    def optimiser_steps(self, steps):
        """Steps of an epoch → optimiser steps; the last may be of fewer steps."""
        return -(-steps // self.accumulation)

    def advice(self, size):
        """How to make G ``size`` on these processes, in words.

        The batch size comes first: only that makes the steps equal, too.
        """
        words = []
        for option, rest in (
            ("batch_size", self.processes * self.accumulation),
            ("grad_accumulation_factor", self.per_step),
        ):
            if size % rest == 0:
                words.append(f"--{option}={size // rest}")
        if not words and size % self.processes == 0:
            words.append(
                f"--batch_size={size // self.processes} --grad_accumulation_factor=1"
            )
        words = " or ".join(words) or "a number of processes that divides it"
        return f"{size} needs {words}"


class Place(NamedTuple):
    """So many steps of an epoch are done."""

    step: int
    steps: int

    @property
    def at_end(self):
        """Whether the epoch is finished."""
        return self.step == self.steps


def go_on(epoch, old, before, now, steps):
    """Where a run goes on with other batches, and one line that says so.

    Arguments
    ---------
    epoch : int
    old : Place
        Where it was left in that epoch.
    before, now : GlobalBatch
    steps : int
        Of an epoch with ``now``.

    Returns
    -------
    Place
        Not behind the first utterance that was not trained on.
    str
        None where the steps are the same.
    """
    if old.at_end:
        new = Place(steps, steps)
    else:
        step = old.step * before.per_step // now.per_step
        done = step >= steps
        new = Place(steps if done else step - step % now.accumulation, steps)
    if before.accumulation == now.accumulation and before.per_step == now.per_step:
        return new, None
    return new, _describe(epoch, old, before, new, now)


def _describe(epoch, old, before, new, now):
    if before.size == now.size:
        batches = f"global batch {now}, as before in other steps ({before})"
    else:
        batches = f"global batch {before} before, now {now}; {now.advice(before.size)}"
    if old.at_end:
        was, is_now = before.optimiser_steps(old.steps), now.optimiser_steps(new.steps)
        return f"{batches}; optimiser steps per epoch: {was} before, now {is_now}"
    again = old.step * before.per_step - new.step * now.per_step
    again = 0 if new.at_end else again
    return (
        f"{batches}; epoch {epoch}, left after {old.step} of {old.steps} steps, goes "
        f"on after {new.step} of {new.steps}: {again} utterance(s) come again"
    )
