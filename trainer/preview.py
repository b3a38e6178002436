"""Pictures from a base model and adapters at given strengths: previews of a run, `limner sample`, and the painter.

The painter is a warm process: it holds one pipeline and its adapters, reads one request a line from its standard
input and answers in lines on its standard output. It keeps no state worth saving.
"""

import io
import json
import sys
import traceback
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydantic import ValidationError

from trainer import config, families, storage
from trainer.adapter_files import reader
from trainer.adapter_files.reader import AdapterFile
from trainer.base_models import MICRO, detect
from trainer.config import ModelConfig, PictureConfig, PreviewConfig, TrainConfig
from trainer.errors import UserError, is_out_of_memory
from trainer.families import Adapter, Family, loading, prediction_probe
from trainer.i18n import say
from trainer.runs import Run, archive, events
from trainer.training import distributed

Progress = Callable[[int, int], None]


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
                    write_png(path, paint(family, picture), picture)
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


def paint(family: Family, picture: PictureConfig, progress: Progress | None = None) -> Image.Image:
    """One picture. The same request on the same device gives the same picture: its noise comes from the seed alone."""

    def tell(_: Any, step: int, __: Any, values: dict[str, Any]) -> dict[str, Any]:  # noqa: ANN401 - diffusers' callback
        if progress:
            progress(step + 1, picture.steps)
        return values

    with torch.no_grad(), loading.autocast(family.pipeline()):
        latents = family.pipeline()(
            picture.prompt, negative_prompt=picture.negative, num_inference_steps=picture.steps,
            guidance_scale=picture.guidance, width=picture.width or None, height=picture.height or None,
            generator=torch.Generator().manual_seed(picture.seed), callback_on_step_end=tell, output_type="latent",
        ).images  # fmt: skip
    return family.decode_latents(latents)[0]  # outside autocast: XL's decoder overflows in fp16


def native_side(family: Family) -> int:
    """Side in pixels of the pictures that a base model draws if nothing else is said."""
    pipeline = family.pipeline()
    return int(pipeline.unet.config.sample_size * pipeline.vae_scale_factor)


def write_png(path: Path, image: Image.Image, picture: PictureConfig) -> None:
    """Save a picture with what made it in its text, but no path: once as A1111 writes it, once to be read back."""
    text = PngInfo()
    told = picture.model_dump(exclude={"out", "base", "adapters"})
    told["base"] = picture.base if picture.base == MICRO or detect.is_hub_name(picture.base) else MICRO
    told["adapters"] = [(archive.known_as(Path(file)), strength) for file, strength in picture.adapters]
    text.add_text("limner", json.dumps(told))
    adapters = ", ".join(f"{Path(file).name}:{strength:g}" for file, strength in picture.adapters)
    text.add_text(
        "parameters",
        f"{picture.prompt}\nNegative prompt: {picture.negative}\n"
        f"Steps: {picture.steps}, CFG scale: {picture.guidance:g}, "
        f"Seed: {picture.seed}, Size: {image.width}x{image.height}, Adapters: {adapters or 'none'}",
    )
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=text)
    storage.write(path, buffer.getvalue())


def device() -> tuple[torch.device, torch.dtype]:
    """Where pictures are made, and in which precision."""
    if torch.cuda.is_available():
        return torch.device("cuda"), torch.float16
    if torch.backends.mps.is_available():
        return torch.device("mps"), torch.float32
    return torch.device("cpu"), torch.float32


class Painter:
    """One base model with the adapters that were asked for so far, kept warm."""

    def __init__(self) -> None:
        self._base: ModelConfig | None = None
        self._family: Family | None = None
        self._loaded: dict[tuple[str, int], str] = {}

    def paint(self, picture: PictureConfig, progress: Progress | None = None) -> Image.Image:
        """One picture, with the base loaded only when it changed and each adapter file only once.

        Raises:
            UserError: the base or an adapter cannot be used.
        """
        family = self._load_base(ModelConfig(base=picture.base, revision=picture.revision, objective=picture.objective))
        names, strengths, patches = [], [], []
        for file, strength in picture.adapters:
            if not strength:
                continue
            adapter = read_adapter(Path(file))
            if reader.readable_by_diffusers(adapter):
                names.append(self._load_adapter(family, Path(file), adapter))
                strengths.append(strength)
            else:
                patches.append((adapter, strength))
        pipeline = family.pipeline()
        if names:
            pipeline.enable_lora()
            pipeline.set_adapters(names, strengths)
        elif self._loaded:
            pipeline.disable_lora()
        with families.patched(family, patches):
            return paint(family, picture, progress)

    def _load_base(self, base: ModelConfig) -> Family:
        if self._family is None or self._base != base:
            self._family, self._base, self._loaded = None, None, {}
            self._family = families.load(base, *device())
            if self._family.found.objective is None and base.objective == "auto":
                prediction_probe.ask_about_grey(self._family)
            self._base = base
        return self._family

    def _load_adapter(self, family: Family, file: Path, adapter: AdapterFile) -> str:
        """Load an adapter file under a name of its own; a file that was written anew is loaded anew."""
        key = (str(file), file.stat().st_mtime_ns)
        if key not in self._loaded:
            base_name = Path(self._base.base if self._base else "").name
            pipeline = family.pipeline()
            if len(self._loaded) >= 8:
                pipeline.unload_lora_weights()
                self._loaded = {}
            name = f"adapter{len(self._loaded)}"
            try:
                pipeline.load_lora_weights(dict(adapter.tensors), adapter_name=name)
            except (ValueError, RuntimeError, KeyError, IndexError) as error:
                self._family = None  # it may be half loaded
                raise UserError(
                    "The adapter {name} does not fit the base model {base_name!r}.",
                    "Choose the base model that it was trained on.",
                    name=file.name,
                    base_name=base_name,
                ) from error
            self._loaded[key] = name
        return self._loaded[key]


@lru_cache(maxsize=16)
def _read_adapter(file: Path, _: int) -> AdapterFile:
    return reader.read(file)


def read_adapter(file: Path) -> AdapterFile:
    """An adapter file; one that was written anew is read anew.

    Raises:
        UserError: it is not there, or is no adapter file.
    """
    if not file.is_file():
        raise UserError("The adapter {name} is not there.", "Choose another one.", name=file.name)
    return _read_adapter(file, file.stat().st_mtime_ns)


def given_up(picture: PictureConfig) -> Path:
    """An empty file that whoever asked for a picture makes if they no longer want it."""
    return Path(picture.out).with_suffix(".given-up")


def serve() -> None:
    """Answer requests (one JSON line each) until standard input ends.

    Answers: `{"progress": done, "of": steps}` any number of times, then `{"done": true}` or
    `{"error": message, "remedy": remedy}`.
    """
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries that print must not speak between the answers
    painter = Painter()

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
            image = painter.paint(picture, partial(tell, picture))
            write_png(Path(picture.out), image, picture)
            answer(done=True)
        except ValidationError as error:
            answer(error="; ".join(config.messages(error).values()) + ".", remedy=say("Correct it and try again."))
        except UserError as error:
            answer(error=error.message, remedy=error.remedy)


def default_prompts(settings: TrainConfig, captions: list[str]) -> tuple[str, ...]:
    """Three captions of the data set, evenly taken: what the previews show if nothing else is asked for."""
    different = list(dict.fromkeys(captions))
    stride = max(1, len(different) // 3)
    return tuple(different[::stride][:3]) or ((settings.trigger,) if settings.trigger else ())
