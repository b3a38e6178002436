"""The one exception that is meant for people."""


class UserError(Exception):
    """Something that a person can change: what is wrong, and what to do about it.

    The page shows both sentences, the command line prints them and ends with exit code 2.
    Neither sentence holds a traceback, a secret, or a path outside the user's own data.
    """

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(f"{message} {remedy}".strip())
        self.message = message
        self.remedy = remedy
