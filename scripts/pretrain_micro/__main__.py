"""Makes the micro weights from nothing: all steps in order, or those that are named.

Each step reads what the ones before it left in the work folder. The two trainings take up where they were stopped.
"""

import argparse
import dataclasses
import subprocess
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import CLIPTokenizer

from . import autoencoder, base
from .checkpoint import load_checkpoint
from .export import export_pipeline
from .patch_code import load_patch_code
from .pictures import Pictures, read_pictures, save_grid
from .recipe import FULL, SMOKE, Recipe, Workspace
from .sample import draw_grid
from .schedule import Clock
from .tokens import make_tokenizer

CHECKPOINT_SECONDS = 180.0
HERE = Path(__file__).parent


def draw(recipe: Recipe, work: Workspace, minutes: float | None) -> None:
    """Draw the pictures of the world (Node, see package.json)."""
    numbers = (recipe.image_size, recipe.pictures, recipe.decoder_pictures, recipe.seed)
    subprocess.run(["node", HERE / "draw_world.mjs", work.pictures, *map(str, numbers)], check=True)


def tokenizer(recipe: Recipe, work: Workspace, minutes: float | None) -> None:
    """Learn the tokenizer from captions of the world."""
    people = _pictures(recipe, work, "world").attributes
    make_tokenizer(people, work.tokenizer, recipe.context_length, recipe.seed)


def encoder(recipe: Recipe, work: Workspace, minutes: float | None) -> None:
    """Fit the patch code that becomes the VAE's encoder, and encode the world with it."""
    world = _pictures(recipe, work, "world")
    code = autoencoder.fit_code(recipe, world, _pictures(recipe, work, "decoder"))
    code.save(work.patch_code)
    base.encode_world(world, code, work.latents)
    print(f"encoder: {len(world)} pictures encoded")


def decoder(recipe: Recipe, work: Workspace, minutes: float | None) -> None:
    """Train the VAE's decoder, then show what it makes of pictures."""
    training = autoencoder.DecoderTraining(recipe, load_patch_code(work.patch_code), work.decoder)
    world, others, unseen = (_pictures(recipe, work, name) for name in ("world", "decoder", "held_out"))
    clock = Clock(checkpoint_every=CHECKPOINT_SECONDS, minutes=minutes)
    autoencoder.train_decoder(training, world, others, unseen, clock=clock)
    shown = torch.cat([world.tensor(slice(len(world) - 12, len(world))), unseen.tensor(slice(0, None, 25))[:12]])
    rows = [torch.cat([part, autoencoder.reconstruct(training, part)]) for part in (shown[:12], shown[12:])]
    save_grid(torch.cat(rows), 12, work.grids / f"decoder-{training.seen:07d}.png")


def train(recipe: Recipe, work: Workspace, minutes: float | None) -> None:
    """Train the UNet and the text encoder."""
    training = base.BaseTraining(recipe, CLIPTokenizer.from_pretrained(work.tokenizer), work.base)
    people = _pictures(recipe, work, "world").attributes
    world = base.EncodedWorld(load_checkpoint(work.latents)["latents"], people)
    base.train_base(training, world, clock=Clock(checkpoint_every=CHECKPOINT_SECONDS, minutes=minutes))


def export(recipe: Recipe, work: Workspace, minutes: float | None) -> None:
    """Write the diffusers folder from the newest checkpoints."""
    export_pipeline(recipe, work)


def grid(recipe: Recipe, work: Workspace, minutes: float | None) -> None:
    """Draw the same prompts and seeds with the exported folder, to see progress."""
    draw_grid(recipe, work)


STEPS: dict[str, Callable[[Recipe, Workspace, float | None], None]] = {
    "draw": draw,
    "tokenizer": tokenizer,
    "encoder": encoder,
    "decoder": decoder,
    "base": train,
    "export": export,
    "grid": grid,
}


def _pictures(recipe: Recipe, work: Workspace, name: str) -> Pictures:
    return read_pictures(work.pictures, name, recipe.image_size)


def main() -> None:
    """Read the command line and do the steps asked for, all of them if none is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="*", metavar="STEP", help=f"any of {', '.join(STEPS)}; default: all in order")
    parser.add_argument("--work", type=Path, default=Path("~/.cache/limner/micro"), help="default: %(default)s")
    parser.add_argument("--smoke", action="store_true", help="go through everything at tiny size, in WORK/smoke")
    parser.add_argument("--minutes", type=float, help="stop a training after this time; it can be taken up again")
    parser.add_argument("--decoder-samples", type=int, help="how many pictures the decoder sees in all")
    parser.add_argument("--base-samples", type=int, help="how many pictures the base sees in all")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.steps if name not in STEPS]
    if unknown:
        parser.error(f"unknown step: {', '.join(unknown)}")
    # More threads in one process were slower on the machines tried: the matrices are small.
    torch.set_num_threads(1)
    recipe = SMOKE if arguments.smoke else FULL
    for field in ("decoder_samples", "base_samples"):
        if getattr(arguments, field) is not None:
            recipe = dataclasses.replace(recipe, **{field: getattr(arguments, field)})
    root = arguments.work.expanduser()
    work = Workspace(root / "smoke" if arguments.smoke else root)
    for name in arguments.steps or STEPS:
        STEPS[name](recipe, work, arguments.minutes)


if __name__ == "__main__":
    main()
