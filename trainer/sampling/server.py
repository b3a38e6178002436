"""The sampler as a warm process: requests are JSON lines on its standard input, answers lines on its standard output.

It holds one base model and its adapters and keeps no state worth saving.
"""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from trainer import config
from trainer.config import PictureConfig
from trainer.errors import UserError
from trainer.i18n import say
from trainer.sampling import png_info
from trainer.sampling.sampler import Sampler


def given_up(picture: PictureConfig) -> Path:
    """An empty file that whoever asked for a picture makes if they no longer want it."""
    return Path(picture.out).with_suffix(".given-up")


def serve() -> None:
    """Answer requests (one JSON line each) until standard input ends.

    Answers: `{"progress": done, "of": steps}` any number of times, then `{"done": true}` or
    `{"error": message, "remedy": remedy}`.
    """
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries that print must not speak between the answers
    sampler = Sampler()

    def answer(**values: Any) -> None:  # noqa: ANN401 - JSON
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    def tell(picture: PictureConfig, done: int, _: int) -> None:
        if given_up(picture).exists():
            raise UserError("The picture was given up.", "")
        answer(progress=done, of=picture.steps)

    answer(ready=True)
    for line in sys.stdin:
        try:
            picture = PictureConfig.model_validate_json(line)
            image = sampler.generate(picture, partial(tell, picture))
            png_info.write(Path(picture.out), image, picture)
            answer(done=True)
        except ValidationError as error:
            answer(error="; ".join(config.messages(error).values()) + ".", remedy=say("Correct it and try again."))
        except UserError as error:
            answer(error=error.message, remedy=error.remedy)
