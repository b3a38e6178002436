"""Make the home folder of a version, with that version's own code, in what LIMNER_HOME names.

    cd CHECKOUT_OF_THAT_VERSION && LIMNER_HOME=.../homes/VERSION python .../homes/make.py

What is made by hand there, such as the names of settings, is what all versions since 0.1.0 read.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, os.getcwd())

from tests import faults as injected  # of that version, like all below
from trainer import config, runs
from ui.state import page_memory, run_settings

HOME = Path(os.environ["LIMNER_HOME"])
SMALL = {
    "adapter": {"kind": "lora", "rank": 1, "blocks": ["mid_block"]},
    "training": {"steps": 6, "batch_size": 2, "text_encoder": False, "precision": "fp32"},
    "schedule": {"kind": "cosine", "warmup": 0.34},
    "preview": {"every": 1000, "steps": 2, "prompts": ["miraxo"]},
}


def make(name: str, **changes: dict[str, object]) -> runs.Run:
    data = {"dataset": "rin", "trigger": "miraxo", "name": name, "checkpoint": {"every": 3, "keep": 2}}
    data |= {key: value | changes.pop(key, {}) for key, value in SMALL.items()} | changes
    folder = HOME / "outputs" / name
    folder.parent.mkdir(exist_ok=True)
    return runs.create(config.build(data), folder)


def work(run: runs.Run, *faults: str) -> subprocess.Popen[bytes]:
    variables = os.environ | injected.environment(",".join(faults)) | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "trainer", "work", str(run.folder)]
    return subprocess.Popen(command, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def stopped(run: runs.Run, step: int) -> None:
    worker = work(run, f"hang@{step + 1}")
    while runs.look(run).state.step < step:
        time.sleep(0.1)
        assert worker.poll() is None, runs.log_tail(run)
    worker.kill()
    worker.wait()


def main() -> None:
    shutil.rmtree(HOME, ignore_errors=True)
    images = HOME / "datasets" / "rin"
    images.mkdir(parents=True)
    for number in ("01", "02", "03"):
        for suffix in (".png", ".txt"):
            shutil.copy(Path("datasets/example-character", number + suffix), images)
    page_memory.remember_of_page(project="rin")
    page_memory.remember("rin", "trigger", "miraxo")
    run_settings.save("gentle", {"optimizer": {"kind": "adamw", "learning_rate": 5e-5}, "training": {"ema": 0.9}})
    work(make("finished")).wait()
    work(make("failed", optimizer={"kind": "adamw", "learning_rate": 1e-4}), "nan@2", "nan@3", "nan@4", "nan@5").wait()
    make("created")
    stopped(make("interrupted"), 4)
    stopped(make("averaged", training={"ema": 0.9}), 4)
    stopped(make("dora", adapter={"dora": True}), 4)
    late = make("stopped", training={"steps": 4000}, checkpoint={"every": 1000, "keep": 2})
    worker = work(late)
    while runs.look(late).state.step < 2:
        time.sleep(0.1)
    (late.folder / "ask" / "stop").touch()
    worker.wait()
    for log in HOME.rglob("events.jsonl"):  # tracebacks name the folders of the machine that made it
        text = log.read_text().replace(os.getcwd(), "limner").replace(sys.prefix, "venv")
        log.write_text(text)
    for left in (*HOME.rglob("worker.lock"), *HOME.rglob("worker.log"), *HOME.rglob("*.lock")):
        left.unlink(missing_ok=True)
    for cache in (*images.glob(".*"), HOME / "outputs" / ".cache"):
        shutil.rmtree(cache, ignore_errors=True)


main()
