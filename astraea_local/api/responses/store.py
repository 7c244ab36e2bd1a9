"""Responses that can be continued by their id: in memory, bounded by number, bytes and age."""

import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from astraea_local.api.responses.schemas import Item


@dataclass(frozen=True, slots=True)
class Stored:
    """A response with everything that was said up to it."""

    response: dict[str, Any]
    earlier: tuple[Item, ...]
    """Items of the responses it continues."""
    input: tuple[Item, ...]
    at: float

    @property
    def items(self) -> tuple[Item, ...]:
        """The conversation up to and including this response's output."""
        return (*self.earlier, *self.input, *self.response["output"])


class ResponseStore:
    """The responses of one server, each known to the API key that asked for it.

    The least recently used are given up first.

    Every response is counted with the whole conversation behind it, so that the bound on bytes holds
    however long conversations are.
    """

    def __init__(self, *, entries: int, max_bytes: int, age_s: float, clock: Callable[[], float]) -> None:
        """`entries` 0 keeps nothing; `clock` gives seconds that only grow."""
        self._entries = entries
        self._max_bytes = max_bytes
        self._age_s = age_s
        self._clock = clock
        self._stored: OrderedDict[tuple[str, str], tuple[Stored, int]] = OrderedDict()
        """By the name of the key and the response's id."""
        self._bytes = 0

    @property
    def bytes(self) -> int:
        """Bytes counted, at most `max_bytes`."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._stored)

    def add(
        self, response: dict[str, Any], earlier: Sequence[Item], given: Sequence[Item], tenant: str = ""
    ) -> None:
        """Keeps a response with its conversation; one that is larger than all room is not kept."""
        stored = Stored(response, tuple(earlier), tuple(given), self._clock())
        size = len(json.dumps((response, stored.earlier, stored.input)))
        if size <= self._max_bytes:
            self._stored[tenant, response["id"]] = stored, size
            self._bytes += size
        self._shrink()

    def get(self, response_id: str, tenant: str = "") -> Stored | None:
        """The tenant's response of that id, if it is still known."""
        self._shrink()
        key = tenant, response_id
        if key not in self._stored:
            return None
        self._stored.move_to_end(key)
        return self._stored[key][0]

    def remove(self, response_id: str, tenant: str = "") -> bool:
        """Forgets a response of the tenant; False when it was not known."""
        self._shrink()
        _, size = self._stored.pop((tenant, response_id), (None, None))
        self._bytes -= size or 0
        return size is not None

    def _shrink(self) -> None:
        oldest = self._clock() - self._age_s
        for key in [k for k, (stored, _) in self._stored.items() if stored.at < oldest]:
            self._bytes -= self._stored.pop(key)[1]
        while len(self._stored) > self._entries or self._bytes > self._max_bytes:
            _, (_, size) = self._stored.popitem(last=False)
            self._bytes -= size
