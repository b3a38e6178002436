"""The sampler as a process: requests are JSON lines on its standard input, answers on its standard output.

It keeps one base model and its adapters loaded, and has no state worth saving.
"""

import json
import sys
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from trainer import config
from trainer.config import PictureConfig
from trainer.errors import UserError
from trainer.foreign_text import Json
from trainer.i18n import _
from trainer.sampling import png_info
from trainer.sampling.sampler import Sampler


def cancellation_file(request: PictureConfig) -> Path:
    """Return the path of an empty file that cancels a request."""
    return Path(request.out).with_suffix(".given-up")


def serve() -> None:
    """Answer requests (one JSON line each) until standard input ends.

    Answers: `{"progress": done, "of": steps}` any number of times, then `{"done": true, "notes": [...]}` or
    `{"error": message, "remedy": remedy}`.
    """
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries must not print between the answers
    sampler = Sampler()

    def answer(**values: Json) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    def report(request: PictureConfig, done: int, _: int) -> None:
        if cancellation_file(request).exists():
            raise UserError("The image was canceled.", "")
        answer(progress=done, of=request.steps)

    answer(ready=True)
    for line in sys.stdin:
        try:
            request = PictureConfig.model_validate_json(line)
            image = sampler.generate(request, partial(report, request))
            png_info.write(Path(request.out), image, request)
            answer(done=True, notes=list(sampler.notes))
        except ValidationError as error:
            reasons = "; ".join(config.error_messages(error).values())
            answer(error=f"{reasons}.", remedy=_("Correct it and try again."))
        except UserError as error:
            answer(error=error.message, remedy=error.remedy)
