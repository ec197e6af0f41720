"""Limits: how often one may call, how often one may fail, and which calls were here before.

All are safe to use from several threads, and none remembers more than a bounded amount.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

_MAX_REMEMBERED_HOSTS = 10_000
Clock = Callable[[], float]


@dataclass
class Failures:
    """At most so many failures a minute from one host; whole institutions may be behind it."""

    per_minute: int
    clock: Clock = time.monotonic
    _moments: dict[str, list[float]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def allows(self, host: str) -> bool:
        """Whether a call may be served."""
        with self._lock:
            return len(self._recent(host)) < self.per_minute

    def count(self, host: str) -> None:
        """Count a failure."""
        with self._lock:
            if len(self._moments) >= _MAX_REMEMBERED_HOSTS:
                self._moments.pop(next(iter(self._moments)))
            self._moments[host] = [*self._recent(host), self.clock()]

    def _recent(self, host: str) -> list[float]:
        a_minute_ago = self.clock() - 60
        return [moment for moment in self._moments.get(host, []) if moment > a_minute_ago]


@dataclass
class Rate:
    """A token bucket for each caller: `burst` calls at once, `per_second` in the long run."""

    per_second: float
    burst: float
    clock: Clock = time.monotonic
    _buckets: dict[bytes, tuple[float, float]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, caller: bytes) -> bool:
        """Take a token; False if there is none.

        Args:
            caller: a key that has proven itself: there are as many buckets as such keys.
        """
        now = self.clock()
        with self._lock:
            tokens, since = self._buckets.get(caller, (self.burst, now))
            tokens = min(self.burst, tokens + (now - since) * self.per_second)
            has_one = tokens >= 1
            self._buckets[caller] = (tokens - has_one, now)
        return has_one


@dataclass
class Nonces:
    """Nonces of calls that were let in, each for as long as its call would be in time."""

    seconds: float
    clock: Clock = time.monotonic
    _until: dict[tuple[bytes, bytes], float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def is_new(self, key: bytes, nonce: bytes) -> bool:
        """Whether a nonce comes from this key for the first time; from now on it does not.

        What is remembered is bounded by the rate at which a caller may call.
        """
        now = self.clock()
        with self._lock:
            # In the order in which they came, which is that in which they lapse.
            while self._until and next(iter(self._until.values())) <= now:
                self._until.pop(next(iter(self._until)))
            if (key, nonce) in self._until:
                return False
            self._until[key, nonce] = now + self.seconds
        return True

    def __len__(self) -> int:
        return len(self._until)
