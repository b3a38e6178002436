"""Previews of a run: images of its preview prompts, generated with the adapter as it is at a step."""

import traceback
from pathlib import Path

from accelerate import Accelerator

from trainer import families
from trainer.config import PictureConfig, PreviewConfig, TrainConfig
from trainer.errors import is_out_of_memory
from trainer.families import Adapter, Family
from trainer.i18n import _
from trainer.runs import Run, events
from trainer.sampling import png_info
from trainer.sampling.sampler import generate
from trainer.training import distributed


def make(
    family: Family, adapter: Adapter, settings: PreviewConfig, run: Run, step: int, accelerator: Accelerator
) -> None:
    """Generate images of the preview prompts with the adapter as it is now, each process some, and report them."""
    folder = run.folder / "previews"
    images = [(folder / f"{step:06d}_{number}.png", prompt) for number, prompt in enumerate(settings.prompts)]

    def report(path: Path, prompt: str) -> None:
        run.report(events.Preview(step=step, file=f"previews/{path.name}", prompt=prompt, seed=settings.seed))

    failure = _("The previews of step {step} could not be generated; the log says why.", step=step)
    with accelerator.split_between_processes(images) as own:
        adapter.set_strength(settings.strength)
        try:
            folder.mkdir(exist_ok=True)
            with families.on_device(family, *family.encoders().values()):
                for path, prompt in own:
                    request = PictureConfig(
                        prompt=prompt,
                        negative=settings.negative_prompt,
                        seed=settings.seed,
                        steps=settings.steps,
                        guidance=settings.guidance,
                        out=str(path),
                    )
                    png_info.write(path, generate(family, request), request)
                    report(path, prompt)
        except (RuntimeError, ValueError, OSError) as error:  # training is worth more than its previews
            traceback.print_exc()
            if is_out_of_memory(error):
                failure = _("There was not enough memory for the previews of step {step}.", step=step)
            run.report(events.Warned(message=failure))
        finally:
            adapter.set_strength(1.0)
    distributed.wait(accelerator)
    for path, prompt in images[len(own) :]:  # of the other processes; those of the main one are the first
        if path.is_file():
            report(path, prompt)
        else:
            run.report(events.Warned(message=failure))


def default_prompts(settings: TrainConfig, captions: list[str]) -> tuple[str, ...]:
    """Return three captions, evenly spaced in the dataset: the preview prompts if the settings have none."""
    distinct = list(dict.fromkeys(captions))
    if not distinct and settings.trigger:
        distinct = [settings.trigger]
    stride = max(1, len(distinct) // 3)
    return tuple(distinct[::stride][:3])
