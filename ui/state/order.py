"""Order in which a page did things, as its requests may arrive in another."""

import threading
from dataclasses import dataclass

REMEMBERED = 10_000  # fields of pages whose latest number is known
_LATEST: dict[tuple[str, str, str], tuple[int, int]] = {}  # of page, project and field: number, and hash of the text
_LOCK = threading.Lock()


@dataclass(frozen=True)
class Moment:
    """When something was done on a page: each act of a page has a higher number than those before it."""

    page: str = ""
    number: int = 0

    @classmethod
    def read(cls, sent: object) -> "Moment":
        """Read what the browser sends; without a page and a number, nothing is known to be earlier or later."""
        match sent:
            case {"page": str(page), "number": int(number)}:
                return cls(page, number)
        return cls()


UNKNOWN = Moment()


def edit(moment: Moment, project: str, field: str, text: str = "") -> bool:
    """Note that a field of a project was edited at a moment; returns False if the page has edited it since."""
    key = (moment.page, project, field)
    with _LOCK:
        if not moment.page:
            return True
        if moment.number < _LATEST.get(key, (0, 0))[0]:
            return False
        _LATEST.pop(key, None)  # to the end, as one of the latest
        _LATEST[key] = moment.number, hash(text)
        while len(_LATEST) > REMEMBERED:
            del _LATEST[next(iter(_LATEST))]
    return True


def edited_later(moment: Moment, project: str) -> set[str]:
    """Return the fields of a project that a page has edited after a moment."""
    with _LOCK:
        latest = dict(_LATEST)
    return {
        field
        for (page, of, field), (number, _text) in latest.items()
        if page == moment.page and of == project and number > moment.number
    }


def is_own(moment: Moment, project: str, field: str, text: str) -> bool:
    """Return True if a text of a field is what the same page wrote there before this moment."""
    number, known = _LATEST.get((moment.page, project, field), (moment.number, 0))
    return number < moment.number and known == hash(text)
