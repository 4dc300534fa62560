"""One base batch on its way: which, how often visited, and what to fetch; and how it is saved."""

from __future__ import annotations

from typing import Any, NamedTuple

from batch_sampler_attn.checkpoint import check_count
from batch_sampler_attn.errors import StateError, shown
from batch_sampler_attn.indices import are_plain, plain_indices


class VisitIndices(list[Any]):
    """A batch's dataset indices, on their way to the data set that is to fetch them.

    Attributes:
        visit: For which visit: of what pass, to which position, after how many others.
    """

    __slots__ = ("visit",)

    visit: tuple[int, ...]


class Ticket(NamedTuple):
    """One base batch of the epoch: its position, the visits made to it, and its dataset indices."""

    position: int
    visits: int
    indices: list[Any]

    def to_fetch(self, begun: tuple[int, int]) -> VisitIndices:
        """What to ask a data set for, in a pass that was begun at ``begun``."""
        indices = VisitIndices(self.indices)
        indices.visit = (begun[0], begun[1], self.position, self.visits)
        return indices


def pack_tickets(tickets: list[Ticket]) -> list[list[Any]]:
    """Tickets as JSON types."""
    return [[ticket.position, ticket.visits, plain_indices(ticket.indices)] for ticket in tickets]


def unpack_tickets(name: str, packed: object, position: int, *, least_visits: int = 0) -> list[Ticket]:
    """The tickets that ``pack_tickets`` packed, if they were handed out before ``position``.

    Raises:
        StateError: If they are anything else.
    """
    if not isinstance(packed, list):
        raise StateError(f"{name} is {shown(packed)} in the state; it must be a list")
    tickets = []
    for entry in packed:
        if not isinstance(entry, list) or len(entry) != 3 or not are_plain(entry[2]):
            raise StateError(f"{name} holds {shown(entry)} in the state; it must hold [position, visits, indices]")
        if check_count(f"a position in {name}", entry[0]) >= position:
            raise StateError(f"{name} holds batch {entry[0]} in the state, but only {position} had been handed out")
        check_count(f"the visits in {name}", entry[1], least=least_visits)
        tickets.append(Ticket(*entry))
    return tickets
