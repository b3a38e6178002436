"""Login attempts: after some failures each further one has to wait, so that passwords cannot be guessed.

The wait belongs to the network that the attempts come from, so that whoever guesses locks out nobody else: a right
password is never refused because others guess.
"""

import ipaddress
import time
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache

FREE = 5  # failures without a wait
LONGEST = 60.0  # seconds of a wait for one network
FORGOTTEN_AFTER = 900.0  # seconds without an attempt
REMEMBERED = 10_000  # networks


@dataclass
class _Failures:
    count: int = 0
    latest: float = float("-inf")

    def wait(self, now: float) -> float:
        """Return the seconds until the next attempt is allowed."""
        if self.count < FREE:
            return 0.0
        return max(0.0, self.latest + min(LONGEST, 2.0 ** (self.count - FREE + 1)) - now)


class Attempts:
    """Failed logins that are remembered, by network."""

    def __init__(self) -> None:
        self._failures: OrderedDict[str, _Failures] = OrderedDict()

    def wait(self, address: str) -> float:
        """Return the seconds until an address may try again; 0 = now."""
        now = time.monotonic()
        return self._find(network(address), now).wait(now)

    def failed(self, address: str) -> None:
        """Remember a failed attempt; it counts from its start, so that attempts at once do not all pass."""
        now = time.monotonic()
        key = network(address)
        failures = self._find(key, now)
        failures.count += 1
        failures.latest = now
        self._failures[key] = failures
        self._failures.move_to_end(key)
        while len(self._failures) > REMEMBERED:
            self._failures.popitem(last=False)

    def succeeded(self, address: str) -> None:
        """Forget the failures of the network of an address."""
        self._failures.pop(network(address), None)

    def _find(self, key: str, now: float) -> _Failures:
        failures = self._failures.get(key)
        if failures is None or now - failures.latest > FORGOTTEN_AFTER:
            return _Failures()
        return failures


@lru_cache(maxsize=REMEMBERED)
def network(address: str) -> str:
    """Return the network of an address: what one household or machine can choose its addresses from."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped:
        parsed = parsed.ipv4_mapped
    return str(ipaddress.ip_network((parsed, 24 if parsed.version == 4 else 64), strict=False))
