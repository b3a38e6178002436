"""Previews of a run: images of its preview prompts, generated with the adapter as it is at a step."""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator
from PIL import Image

from trainer import families, storage
from trainer.adapter_files import reader, writer
from trainer.base_models import name_hints
from trainer.base_models.layer_names import DENOISER_PREFIXES
from trainer.config import PictureConfig, PreviewConfig, TrainConfig, prompt_lines
from trainer.errors import is_out_of_memory
from trainer.families import Adapter, Family
from trainer.families.files import loading
from trainer.families.frozen_adapter import FrozenAdapter
from trainer.i18n import _
from trainer.runs import Run, events
from trainer.sampling import png_info, sampler
from trainer.training import distributed, memory

Generate = Callable[[PictureConfig, float], Image.Image]
TRAINED = "the trained adapter"


@dataclass(frozen=True)
class Previews:
    """Previews of a run; their prompts are encoded, unless the text encoders are trained."""

    settings: PreviewConfig
    clip_skip: int
    accelerator: Accelerator
    encoded: sampler.Encoded | None
    few_step: FrozenAdapter | None
    other: Family | None  # that they are generated with, if it is not the one that is trained

    def make(self, family: Family, adapter: Adapter, run: Run, step: int) -> None:
        """Generate images of the preview prompts with the adapter as it is now, each process some, and report them."""
        images = list(self._requests(run, step))

        def report(request: PictureConfig, sha256: str) -> None:
            name = f"previews/{Path(request.out).name}"
            run.report(events.Preview(step=step, file=name, prompt=request.prompt, seed=request.seed, sha256=sha256))

        failure = _("The previews of step {step} could not be generated; the log says why.", step=step)
        with self.accelerator.split_between_processes(images) as own:
            try:
                (run.folder / "previews").mkdir(exist_ok=True)
                with self._generator(family, adapter) as generate:
                    for request, strength in own:
                        image = generate(request, strength)
                        report(request, png_info.write(Path(request.out), image, request))
            except (RuntimeError, ValueError, OSError) as error:  # training is worth more than its previews
                traceback.print_exc()
                if is_out_of_memory(error):
                    failure = _("There was not enough memory for the previews of step {step}.", step=step)
                run.warn(failure)
            finally:
                adapter.set_strength(1.0)
        distributed.wait(self.accelerator)
        for request, _strength in images[len(own) :]:  # of the other processes; those of the main one are the first
            path = Path(request.out)
            if path.is_file():
                report(request, storage.sha256(path))
            else:
                run.warn(failure)

    @contextmanager
    def _generator(self, family: Family, adapter: Adapter) -> Iterator[Generate]:
        """Return a function that generates an image at a strength of the adapter, to be called inside the `with`."""

        def with_base(request: PictureConfig, strength: float) -> Image.Image:
            adapter.set_strength(strength)
            return sampler.generate(family, request, encoded=self.encoded)

        def with_other(request: PictureConfig, strength: float) -> Image.Image:
            adapter.set_strength(strength)  # in the text encoders
            encoded = self.encoded or sampler.encode(family, {request.prompt, request.negative})
            trained.set_strength(strength)
            return sampler.generate(other, request, encoded=encoded)

        if self.other is None:
            with self._few_steps(family):
                yield with_base
            return
        other, facts = self.other, writer.of_family(family.base.family, family.noise.prediction_type, family.base.size)
        tensors = {key: tensor for key, tensor in adapter.tensors().items() if key.startswith(DENOISER_PREFIXES)}
        trained = families.fit(other, reader.of_tensors(tensors, TRAINED, facts), TRAINED)
        with (
            memory.set_aside(family),
            families.on_device(other, other.denoiser),
            trained.added(other.device),
            self._few_steps(other),
        ):
            yield with_other

    @contextmanager
    def _few_steps(self, family: Family) -> Iterator[None]:
        """Generate with the few-step adapter inside the `with`, and with the scheduler of its kind."""
        if self.few_step is None:
            yield
            return
        pipeline = family.pipeline()
        usual = pipeline.scheduler
        if (kind := name_hints.of_adapter(self.settings.adapter)) and family.spec.first != "flow":
            pipeline.scheduler = loading.few_step_scheduler(usual, kind)
        try:
            with self.few_step.added(family.device):
                yield
        finally:
            pipeline.scheduler = usual

    def _requests(self, run: Run, step: int) -> Iterator[tuple[PictureConfig, float]]:
        """Yield the request for the image of each prompt, and the strength of the adapter in it."""
        for number, line in enumerate(map(prompt_lines.parse_prompt_line, self.settings.prompts)):
            usual = {
                "negative": self.settings.negative_prompt,
                "seed": self.settings.seed,
                "steps": self.settings.steps,
                "guidance": self.settings.guidance,
            }
            request = PictureConfig(
                prompt=line.prompt,
                clip_skip=self.clip_skip,
                out=str(file_of(run, step, number)),
                **usual | line.settings,
            )
            yield request, self.settings.strength if line.strength is None else line.strength


def file_of(run: Run, step: int, number: int) -> Path:
    """Return the file of the preview of a prompt, by its number, at a step."""
    return run.folder / "previews" / f"{step:06d}_{number}.png"


def prepare(family: Family, config: TrainConfig, accelerator: Accelerator) -> Previews:
    """Encode the preview prompts of a run, so that the text encoders need not come back to the device for them.

    Raises:
        UserError: the other model or the few-step adapter is missing, damaged, or does not fit.
    """
    encoded = None
    if not config.training.text_encoder:
        lines = [prompt_lines.parse_prompt_line(line) for line in config.preview.prompts]
        negatives = {line.settings.get("negative", config.preview.negative_prompt) for line in lines}
        encoded = sampler.encode(family, {*(line.prompt for line in lines), *negatives})
    few_step = other = None
    if config.preview.base:
        other = families.read_other(config.preview.base, config.model, family)
    if config.preview.adapter:
        few_step = families.frozen(other or family, config.preview.adapter, config.preview.adapter_strength)
    return Previews(config.preview, config.model.clip_skip, accelerator, encoded, few_step, other)


def default_prompts(settings: TrainConfig, captions: list[str]) -> tuple[str, ...]:
    """Return three different captions, evenly spaced in the dataset: the preview prompts if the settings have none."""
    distinct = list(dict.fromkeys(prompt_lines.without_flags(caption) for caption in captions))
    if not distinct and settings.trigger:
        distinct = [settings.trigger]
    count = min(3, len(distinct))
    return tuple(distinct[len(distinct) * number // count] for number in range(count))
