"""How much each API key has in the queue: one client's flood must not become everybody's."""

from collections import Counter

from astraea_local.api.errors import ApiError

_BUSY_RETRY_S = 5.0


class Tenants:
    """Segments queued or running, by the name of the API key; requests without a key are not limited here."""

    def __init__(self, most: int) -> None:
        """`most` is what one tenant may have at a time."""
        self._most = most
        self._taken: Counter[str] = Counter()

    def take(self, tenant: str, count: int) -> None:
        """Counts segments in. Raises `ApiError`: 400 for more than ever fit, 429 for too many now."""
        if tenant and count > self._most:
            text = f"n: {count} choices are more than server.max_queue_per_key ({self._most})"
            raise ApiError(400, text, param="n")
        if tenant and self._taken[tenant] + count > self._most:
            text = (
                f"{self._taken[tenant]} requests of this API key are queued or running, "
                f"server.max_queue_per_key is {self._most}: try again later"
            )
            raise ApiError(429, text, code="key_queue_full", retry_after_s=_BUSY_RETRY_S)
        self._taken[tenant] += count

    def release(self, tenant: str, count: int) -> None:
        """Counts segments out."""
        self._taken[tenant] -= count
        if self._taken[tenant] <= 0:
            del self._taken[tenant]
