"""Previews of a run: its preview prompts, generated with the adapter as it is at a step."""

import traceback
from pathlib import Path

from accelerate import Accelerator

from trainer import families
from trainer.config import PictureConfig, PreviewConfig, TrainConfig
from trainer.errors import is_out_of_memory
from trainer.families import Adapter, Family
from trainer.i18n import say
from trainer.runs import Run, events
from trainer.sampling import png_info
from trainer.sampling.sampler import generate
from trainer.training import distributed


def make(
    family: Family, adapter: Adapter, settings: PreviewConfig, run: Run, step: int, accelerator: Accelerator
) -> None:
    """Paint the preview prompts with the adapter as it is now, each process a part, and report the pictures."""
    folder = run.folder / "previews"
    wanted = [(folder / f"{step:06d}_{number}.png", prompt) for number, prompt in enumerate(settings.prompts)]

    def report(path: Path, prompt: str) -> None:
        run.report(events.Preview(step=step, file=f"previews/{path.name}", prompt=prompt, seed=settings.seed))

    failed = say("The previews of step {step} could not be made; the log says why.", step=step)
    with accelerator.split_between_processes(wanted) as own:
        adapter.set_strength(settings.strength)
        try:
            folder.mkdir(exist_ok=True)
            with families.on_device(family, *family.encoders().values()):
                for path, prompt in own:
                    picture = PictureConfig(
                        prompt=prompt, negative=settings.negative, seed=settings.seed, steps=settings.steps,
                        guidance=settings.guidance, out=str(path),
                    )  # fmt: skip
                    png_info.write(path, generate(family, picture), picture)
                    report(path, prompt)
        except (RuntimeError, ValueError, OSError) as error:  # the training is worth more than its previews
            traceback.print_exc()
            if is_out_of_memory(error):
                failed = say("There was not enough memory for the previews of step {step}.", step=step)
            run.report(events.Warned(message=failed))
        finally:
            adapter.set_strength(1.0)
    distributed.wait(accelerator)
    for path, prompt in wanted[len(own) :]:  # of the other processes; the leader's are the first
        if path.is_file():
            report(path, prompt)
        else:
            run.report(events.Warned(message=failed))


def default_prompts(settings: TrainConfig, captions: list[str]) -> tuple[str, ...]:
    """Three captions of the data set, evenly taken: what the previews show if nothing else is asked for."""
    different = list(dict.fromkeys(captions))
    stride = max(1, len(different) // 3)
    return tuple(different[::stride][:3]) or ((settings.trigger,) if settings.trigger else ())
