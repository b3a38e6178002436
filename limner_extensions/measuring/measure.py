"""Work on a measuring job: generate the images of each checkpoint, compare them, and write the table of figures."""

import gc
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch

from limner_extensions.measuring import features, figures, kinds, prompts
from limner_extensions.measuring.features import FeatureModel
from limner_extensions.measuring.figures import Array, Cell, Images, Scale
from limner_extensions.measuring.job import SEEDS, MeasureConfig, load, save_table, steps
from limner_extensions.measuring.prompts import Prompt
from limner_extensions.measuring.table import Table
from trainer import devices, storage
from trainer.config import PictureConfig, TrainConfig
from trainer.data import dataset, images
from trainer.data.dataset import Example
from trainer.i18n import _
from trainer.runs import Run, checkpoints, events
from trainer.sampling import png_info
from trainer.sampling.sampler import Sampler
from trainer.training import held_out
from trainer.training.inputs.tensor_cache import TensorCache, file_of

REFERENCES = 100  # training images at most that others are compared with
BASE: Cell = (0, 0.0)  # the base model among the rows


@dataclass(frozen=True)
class Plan:
    """All that a job generates and compares: an image for each request, by row, whether it is called, prompt, seed."""

    settings: MeasureConfig
    config: TrainConfig
    prompts: list[Prompt]
    references: list[Example]
    requests: dict[Cell, list[PictureConfig]]

    @property
    def with_plain(self) -> bool:
        """True if there is a trigger to leave out."""
        return any(prompt.called != prompt.plain for prompt in self.prompts)


def measure(job: Run) -> None:
    """Measure the checkpoints of a run; a job that was stopped goes on where it was.

    Raises:
        UserError: something that the user can change, such as the feature model.
        StopRequestedError: the job was asked to stop.
    """
    plan = make_plan(job)
    count = sum(map(len, plan.requests.values()))
    device = devices.best()
    job.report(events.Started(step=0, steps=count, pid=psutil.Process().pid, device=str(device).upper()))
    generate(job, plan)
    gc.collect()  # the sampler's model
    devices.trim()
    job.progress(_("Loading the feature model"), 0, 1)
    model = features.load(plan.settings.features, plan.config.model, plan.config.record.base_sha256, device)
    measured = compare(job, plan, model)
    texts = model.texts([prompt.plain for prompt in plan.prompts])
    base = measured.pop(BASE)
    own = not plan.settings.features
    scale = Scale(base, training(job, plan, model), None if texts is None else _array(texts), own=own)
    rows, missing = figures.rows(measured, scale, base)
    table = Table(model.name, len(plan.prompts), SEEDS, len(plan.references), tuple(rows), missing)
    save_table(job, table)
    job.report(events.Finished(step=count, export=""))


def make_plan(job: Run) -> Plan:
    """Choose prompts and checkpoints.

    Raises:
        UserError: the dataset or the checkpoints are gone, or there is no such feature model.
    """
    settings, run = load(job), Run(job.folder.parent)
    config = run.config()
    if settings.features:
        kinds.look(settings.features)  # before any image is generated
    examples = dataset.read_subjects(config.taught)
    own = {example.path for example in dataset.read_subjects(config.taught[:1])}
    trained, held = ([example for example in part if example.path in own] for part in held_out.split(examples, config))
    chosen = prompts.choose(config, trained, held, settings.images // SEEDS)
    distinct = list({example.path: example for example in trained}.values())
    plan = Plan(settings, config, chosen, distinct[:: -(-len(distinct) // REFERENCES)], {})
    plan.requests[BASE] = list(_requests(job, plan, BASE, None))
    for step in steps(run, settings):
        for strength in dict.fromkeys(settings.strengths):
            file = checkpoints.adapter_file(run, step)
            plan.requests[step, strength] = list(_requests(job, plan, (step, strength), file))
    return plan


def _requests(job: Run, plan: Plan, cell: Cell, adapter: Path | None) -> Iterator[PictureConfig]:
    """Yield the requests of a row; the file of each is named by all that the image depends on."""
    config, preview = plan.config, plan.config.preview
    origin = storage.sha256(adapter) if adapter else ""
    texts = [prompt.called for prompt in plan.prompts]
    if plan.with_plain:
        texts += [prompt.plain for prompt in plan.prompts]
    for text in texts:
        for number in range(SEEDS):
            request = PictureConfig(
                base=config.model.base,
                revision=config.model.revision,
                objective=config.model.prediction_type,
                vae=config.model.vae,
                clip_skip=config.model.clip_skip,
                adapters=((str(adapter), cell[1]),) if adapter else (),
                prompt=text,
                negative=preview.negative_prompt,
                seed=(preview.seed + number) % 2**31,
                steps=preview.steps,
                guidance=preview.guidance,
                out="-",
            )
            facts = request.model_dump_json(exclude={"base", "vae", "adapters"})
            record = config.record
            depends = (facts, record.base_sha256, record.vae_sha256, origin, str(cell[1]))
            key = hashlib.sha256("\n".join(depends).encode()).hexdigest()[:24]
            yield request.model_copy(update={"out": str(job.folder / "images" / f"{cell[0]:06d}-{key}.png")})


def generate(job: Run, plan: Plan) -> None:
    """Generate the images that are not there yet, those of one checkpoint after the other."""
    requests = [request for listed in plan.requests.values() for request in listed]
    missing = [request for request in requests if not Path(request.out).is_file()]
    (job.folder / "images").mkdir(exist_ok=True)
    sampler = Sampler()
    done = len(requests) - len(missing)
    for number, request in enumerate(missing):
        job.progress(_("Generating images"), done + number, len(requests))
        png_info.write(Path(request.out), sampler.generate(request), request)


def compare(job: Run, plan: Plan, model: FeatureModel) -> dict[Cell, Images]:
    """Return the features of all images, by row."""
    by_cell, done = {}, 0
    total = sum(map(len, plan.requests.values()))
    for cell, requests in plan.requests.items():
        vectors = []
        for request in requests:
            job.progress(_("Comparing images"), done, total)
            vectors.append(_features(job, model, Path(request.out)))
            done += 1
        shaped = np.stack(vectors).reshape(-1, len(plan.prompts), SEEDS, len(vectors[0]))
        by_cell[cell] = Images(shaped[0], shaped[1] if plan.with_plain else None)
    return by_cell


def training(job: Run, plan: Plan, model: FeatureModel) -> Array:
    """Return the features [n, d] of training images.

    Raises:
        UserError: none of them can be read.
    """
    vectors = []
    for number, example in enumerate(plan.references):
        job.progress(_("Comparing training images"), number, len(plan.references))
        vectors.append(_features(job, model, example.path))
    return np.stack(vectors)


def _features(job: Run, model: FeatureModel, path: Path) -> Array:
    """Return the features of an image, which are computed once.

    Raises:
        UserError: it cannot be read.
    """
    data = path.read_bytes()
    cache, file = TensorCache(), file_of(job.folder, hashlib.sha256(data).hexdigest(), model.key)
    if not cache.has(file, {"features"}):
        cache.put(file, {"features": model.image(images.decode(data)).contiguous()})
    return _array(cache.get(file)["features"])


def _array(tensor: torch.Tensor) -> Array:
    return tensor.double().numpy()
