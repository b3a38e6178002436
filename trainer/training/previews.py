"""Previews of a run: images of its preview prompts, generated with the adapter as it is at a step."""

import traceback
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator

from trainer import storage
from trainer.config import PictureConfig, PreviewConfig, TrainConfig
from trainer.errors import is_out_of_memory
from trainer.families import Adapter, Family
from trainer.i18n import _
from trainer.runs import Run, events
from trainer.sampling import png_info, sampler
from trainer.training import distributed


@dataclass(frozen=True)
class Previews:
    """Previews of a run; their prompts are encoded, unless the text encoders are trained."""

    settings: PreviewConfig
    clip_skip: int
    accelerator: Accelerator
    encoded: sampler.Encoded | None

    def make(self, family: Family, adapter: Adapter, run: Run, step: int) -> None:
        """Generate images of the preview prompts with the adapter as it is now, each process some, and report them."""
        folder = run.folder / "previews"
        images = [(folder / f"{step:06d}_{number}.png", prompt) for number, prompt in enumerate(self.settings.prompts)]

        def report(path: Path, prompt: str, sha256: str) -> None:
            name, seed = f"previews/{path.name}", self.settings.seed
            run.report(events.Preview(step=step, file=name, prompt=prompt, seed=seed, sha256=sha256))

        failure = _("The previews of step {step} could not be generated; the log says why.", step=step)
        with self.accelerator.split_between_processes(images) as own:
            adapter.set_strength(self.settings.strength)
            try:
                folder.mkdir(exist_ok=True)
                for path, prompt in own:
                    request = PictureConfig(
                        prompt=prompt,
                        negative=self.settings.negative_prompt,
                        seed=self.settings.seed,
                        steps=self.settings.steps,
                        guidance=self.settings.guidance,
                        clip_skip=self.clip_skip,
                        out=str(path),
                    )
                    image = sampler.generate(family, request, encoded=self.encoded)
                    report(path, prompt, png_info.write(path, image, request))
            except (RuntimeError, ValueError, OSError) as error:  # training is worth more than its previews
                traceback.print_exc()
                if is_out_of_memory(error):
                    failure = _("There was not enough memory for the previews of step {step}.", step=step)
                run.report(events.Warned(message=failure))
            finally:
                adapter.set_strength(1.0)
        distributed.wait(self.accelerator)
        for path, prompt in images[len(own) :]:  # of the other processes; those of the main one are the first
            if path.is_file():
                report(path, prompt, storage.sha256(path))
            else:
                run.report(events.Warned(message=failure))


def prepare(family: Family, config: TrainConfig, accelerator: Accelerator) -> Previews:
    """Encode the preview prompts of a run, so that the text encoders need not come back to the device for them."""
    encoded = None
    if not config.training.text_encoder:
        encoded = sampler.encode(family, {*config.preview.prompts, config.preview.negative_prompt})
    return Previews(config.preview, config.model.clip_skip, accelerator, encoded)


def default_prompts(settings: TrainConfig, captions: list[str]) -> tuple[str, ...]:
    """Return three captions, evenly spaced in the dataset: the preview prompts if the settings have none."""
    distinct = list(dict.fromkeys(captions))
    if not distinct and settings.trigger:
        distinct = [settings.trigger]
    stride = max(1, len(distinct) // 3)
    return tuple(distinct[::stride][:3])
