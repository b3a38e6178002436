"""Fuzz one reader, guided by the code that it reaches: `python -m tests.hostile.coverage_fuzz test_zips SECONDS`.

The readers, their seeds and what is done with the result are those of `test_fuzz`. What is found is written beside the
seeds by libFuzzer, which ends the process with an error.
"""

import contextlib
import inspect
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["trainer"]):
    from tests.hostile import test_fuzz
    from trainer.errors import UserError


def main() -> None:
    folder = Path(tempfile.mkdtemp())
    home, corpus = folder / "home", folder / "corpus"
    for made in (home / "datasets", home / "outputs", corpus):
        made.mkdir(parents=True)
    os.environ["LIMNER_HOME"] = str(home)

    def fuzz(name: str, seeds: list[bytes], use: Callable[[bytes], object], files: object) -> None:
        for number, seed in enumerate(seeds):
            (corpus / str(number)).write_bytes(seed)

        def once(data: bytes) -> None:
            with contextlib.suppress(UserError):
                use(data)

        options = [f"-max_total_time={sys.argv[2]}", "-timeout=20", f"-artifact_prefix={folder}/", "-max_len=40000"]
        atheris.Setup([sys.argv[0], *options, str(corpus)], once)
        atheris.Fuzz()

    test_fuzz.fuzz = fuzz
    reader = getattr(test_fuzz, sys.argv[1])
    reader(*[home] * len(inspect.signature(reader).parameters))


if __name__ == "__main__":
    main()
