"""Print where steps of training wait for a card, as JSON: `python -m tests.fake_cuda.steps sdxl`.

The argument is the family or size of the base model; `text-encoders` trains those, too. A card is waited for when a
number is read from it, and when memory is copied that is not pinned.
"""

# ruff: noqa: I001 - the card must be there before torch is
from tests.fake_cuda.card import CARD, inserted

import json
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.fake_cuda.program import FEW, TEXT_ENCODERS, Accelerator, build, settings_of
from trainer import devices, families
from trainer.families import Family
from trainer.training import optimizer_step
from trainer.training.inputs.batches import Batches, Pool, Pools
from trainer.training.loss import training_loss
from trainer.training.recovery import initial_state

COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}
READ = torch.ops.aten._local_scalar_dense.default
# No tensor has a value here: of most any will do, but texts have tokens.
ANY = {torch.float32: 0.0, torch.int32: 8}


class Waits(TorchDispatchMode):
    """Notes where the processor waits for the card."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401 - as in torch
        if func is READ:
            if args[0].device.type != "cpu":
                self._note(func)
            return ANY.get(args[0].dtype, 0)
        result = func(*args, **(kwargs or {}))
        if func in COPIES and self._waits(result, args, kwargs or {}):
            self._note(func)
        return result

    def _note(self, func: object) -> None:
        frames = [frame for frame in traceback.extract_stack() if "/torch/" not in frame.filename]
        last = frames[-3]  # before those of this class
        self.places.append(f"{func} at {Path(last.filename).name}:{last.lineno}: {last.line}")

    @staticmethod
    def _waits(result: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        source = next(value for value in reversed(args) if isinstance(value, Tensor))
        does_wait = not (kwargs.get("non_blocking") or (len(args) > 2 and args[2]))
        return source.device.type != result.device.type and does_wait


def main(base: str, parts: set[str]) -> list[str]:
    """Return the places at which two steps wait, of a run with output preservation and masks."""
    with inserted(80 * 2**30), Waits() as waits:
        family = build(base, **FEW[base])
        text_encoder = TEXT_ENCODERS in parts
        settings = settings_of(base, text_encoder=text_encoder, share=0.5)
        with families.on_device(family, *family.encoders().values()), torch.no_grad():
            conditioning = family.encode_prompts(["a person"])
        families.place(family, text_encoder=text_encoder)
        adapter = families.attach(family, settings.adapter, text_encoder=text_encoder, seed=0)
        batches = pretended(family, settings, {name: row[0].cpu() for name, row in conditioning.items()})
        state = initial_state(settings, adapter)
        model = cast(Any, Accelerator()), family, adapter
        for step in range(2):
            waits.places.clear()  # those of the first step are of what is made once
            for batch, rng in optimizer_step.micro_batches(*model, batches, settings, [(step, 0)]):
                with Accelerator().autocast():
                    loss = training_loss(family, adapter, batch, settings, rng)
                loss.backward()  # type: ignore[no-untyped-call]
            norm = optimizer_step.clip(state, 1.0, None)
            optimizer_step.advance(state, 1e-4, None)
            devices.read_later(loss.detach(), norm)
    return waits.places


def pretended(family: Family, settings: Any, conditioning: Mapping[str, Tensor]) -> Batches:  # noqa: ANN401 - any settings
    """Return batches of two images without files."""
    channels, height, width = family.latent_shape
    latents, mask = torch.zeros(channels, height, width), torch.ones(1, height, width)
    image, prompt = Path("image"), Path("prompt")
    lengths = {name: row.int() for name, row in conditioning.items() if name == families.LENGTHS}
    cached = {image: {"mean": latents, "std": latents, "mask": mask}, prompt: {**conditioning, **lengths}}
    prompts = ("rin, a person", "a person", "", *settings.preservation.prompts)
    settings = settings.model_copy(update={"trigger": "rin"})
    pool = Pool(
        views=[(image,)] * 2,
        shapes=[(channels, height, width)] * 2,
        texts=[prompts[:1]] * 2,
        triggers=["rin"] * 2,
        seed=0,
        batch_size=settings.training.batch_size,
        size_conditioning=[((side := height * 8, side, 0, 0, side, side),)] * 2,
    )
    cache: Any = SimpleNamespace(get=cached.__getitem__)
    return Batches((Pools(pool, ()),), dict.fromkeys(prompts, prompt), cache, settings, CARD)


if __name__ == "__main__":
    json.dump(main(sys.argv[1], set(sys.argv[2:])), sys.stdout)
