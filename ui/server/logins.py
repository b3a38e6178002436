"""Login attempts: after some failures each further one has to wait, so that passwords cannot be guessed.

The wait belongs to an account and the network that the attempts come from, so that whoever guesses locks out nobody
else. All networks together wait a little for an account, too, so that many of them do not help.
"""

import ipaddress
import time
from collections import OrderedDict
from dataclasses import dataclass

FREE = 5  # failures without a wait
LONGEST = 60.0  # seconds of a wait for one account from one network
LONGEST_OF_ACCOUNT = 2.0  # for one account from anywhere
FORGOTTEN_AFTER = 900.0  # seconds without an attempt
REMEMBERED = 10_000  # accounts and networks


@dataclass
class _Failures:
    count: int = 0
    latest: float = float("-inf")

    def wait(self, now: float, longest: float) -> float:
        """Return the seconds until the next attempt is allowed."""
        if self.count < FREE:
            return 0.0
        return max(0.0, self.latest + min(longest, 2.0 ** (self.count - FREE + 1)) - now)


class Attempts:
    """Failed logins that are remembered, by account and network and by account."""

    def __init__(self) -> None:
        self._failures: OrderedDict[tuple[str, str], _Failures] = OrderedDict()

    def wait(self, name: str, address: str) -> float:
        """Return the seconds until an account may be tried again from an address; 0 = now."""
        now = time.monotonic()
        here = self._find(name, network(address), now).wait(now, LONGEST)
        return max(here, self._find(name, "", now).wait(now, LONGEST_OF_ACCOUNT))

    def failed(self, name: str, address: str) -> None:
        """Remember a failed attempt; it counts from its start, so that attempts at once do not all pass."""
        now = time.monotonic()
        for place in (network(address), ""):
            failures = self._find(name, place, now)
            failures.count += 1
            failures.latest = now
            self._failures[name, place] = failures
            self._failures.move_to_end((name, place))
        while len(self._failures) > REMEMBERED:
            self._failures.popitem(last=False)

    def succeeded(self, name: str, address: str) -> None:
        """Forget the failures of an account from a network."""
        self._failures.pop((name, network(address)), None)
        self._failures.pop((name, ""), None)

    def _find(self, name: str, place: str, now: float) -> _Failures:
        failures = self._failures.get((name, place))
        if failures is None or now - failures.latest > FORGOTTEN_AFTER:
            return _Failures()
        return failures


def network(address: str) -> str:
    """Return the network of an address: what one household or machine can choose its addresses from."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(ipaddress.ip_network((parsed, 24 if parsed.version == 4 else 64), strict=False))
