"""What a forward kernel found wrong with a sample."""

from __future__ import annotations

BAD_TIMES = 1
NAN_POTENTIAL = 2


def refuse_bad_samples(worst: int) -> None:
    """Raise for the worst status of a batch; 0 is fine."""
    if worst == NAN_POTENTIAL:
        raise ValueError("weight or bias holds NaN or opposite infinities: the membrane potential is NaN")
    if worst == BAD_TIMES:
        raise ValueError("times must hold spike times >= 0, with inf for silence; got NaN or a negative time")
