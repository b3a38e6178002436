"""Train the micro weights from scratch: all steps in order, or those that are named.

Each step reads the results of earlier ones from the work folder. Both trainings resume where they were stopped.
"""

import argparse
import dataclasses
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from transformers import CLIPTokenizer

from trainer.base_models import MICRO_FOLDER

from . import autoencoder, base, widening
from .checkpoint import load_checkpoint
from .config import FULL, SMOKE, PretrainConfig, Workspace
from .export import export_pipeline
from .patch_code import load_patch_code
from .pictures import Pictures, read_pictures, save_grid
from .sample import draw_grid
from .schedule import Clock
from .tokens import make_tokenizer

CHECKPOINT_SECONDS = 180.0
HERE = Path(__file__).parent


def draw(config: PretrainConfig, work: Workspace, minutes: float | None) -> None:
    """Draw the pictures of the world (Node, see package.json)."""
    numbers = (config.image_size, config.pictures, config.decoder_pictures, config.seed)
    subprocess.run(["node", HERE / "draw_world.mjs", work.pictures, *map(str, numbers)], check=True)


def tokenizer(config: PretrainConfig, work: Workspace, minutes: float | None) -> None:
    """Learn the tokenizer from captions of the world."""
    people = _pictures(config, work, "world").attributes
    make_tokenizer(people, work.tokenizer, config.context_length, config.seed)


def encoder(config: PretrainConfig, work: Workspace, minutes: float | None) -> None:
    """Fit the patch code that becomes the VAE's encoder, and encode the world with it."""
    world = _pictures(config, work, "world")
    code = autoencoder.fit_code(config, world, _pictures(config, work, "decoder"))
    code.save(work.patch_code)
    base.encode_world(world, code.encode, work.latents)
    print(f"encoder: {len(world)} pictures encoded")


def borrow(config: PretrainConfig, work: Workspace, minutes: float | None) -> None:
    """Take micro's own tokenizer and VAE, and encode the world with it, so that a base differs in width alone."""
    shutil.copytree(MICRO_FOLDER / "tokenizer", work.tokenizer, dirs_exist_ok=True)
    shutil.copytree(MICRO_FOLDER / "vae", work.borrowed_vae, dirs_exist_ok=True)
    vae = AutoencoderKL.from_pretrained(work.borrowed_vae)
    world = _pictures(config, work, "world")
    base.encode_world(world, lambda pictures: vae.encode(pictures).latent_dist.mode(), work.latents)
    print(f"borrow: {len(world)} pictures encoded")


def widen(config: PretrainConfig, work: Workspace, minutes: float | None) -> None:
    """Begin the training of the base with micro's own weights, grown to twice their width, unless it has begun."""
    if work.base.exists():
        return
    training = base.BaseTraining(config, CLIPTokenizer.from_pretrained(work.tokenizer), work.base)
    widening.widen(widening.load_micro(), training.model, noise=widening.NOISE, seed=config.seed)
    training.averaged.load_state_dict(training.model.state_dict())
    training.save()


def decoder(config: PretrainConfig, work: Workspace, minutes: float | None) -> None:
    """Train the VAE's decoder, then save reconstructions."""
    training = autoencoder.DecoderTraining(config, load_patch_code(work.patch_code), work.decoder)
    world, others, unseen = (_pictures(config, work, name) for name in ("world", "decoder", "held_out"))
    clock = Clock(checkpoint_every=CHECKPOINT_SECONDS, minutes=minutes)
    autoencoder.train_decoder(training, world, others, unseen, clock=clock)
    examples = torch.cat([world.tensor(slice(len(world) - 12, len(world))), unseen.tensor(slice(0, None, 25))[:12]])
    rows = [torch.cat([part, autoencoder.reconstruct(training, part)]) for part in (examples[:12], examples[12:])]
    save_grid(torch.cat(rows), 12, work.grids / f"decoder-{training.seen:07d}.png")


def train(config: PretrainConfig, work: Workspace, minutes: float | None) -> None:
    """Train the UNet and the text encoder."""
    training = base.BaseTraining(config, CLIPTokenizer.from_pretrained(work.tokenizer), work.base)
    people = _pictures(config, work, "world").attributes
    world = base.EncodedWorld(load_checkpoint(work.latents)["latents"], people)
    base.train_base(training, world, clock=Clock(checkpoint_every=CHECKPOINT_SECONDS, minutes=minutes))


def export(config: PretrainConfig, work: Workspace, minutes: float | None) -> None:
    """Write the diffusers folder from the newest checkpoints."""
    export_pipeline(config, work)


def grid(config: PretrainConfig, work: Workspace, minutes: float | None) -> None:
    """Draw the same prompts and seeds with the exported folder, to see progress."""
    draw_grid(config, work)


STEPS: dict[str, Callable[[PretrainConfig, Workspace, float | None], None]] = {
    "draw": draw,
    "tokenizer": tokenizer,
    "encoder": encoder,
    "decoder": decoder,
    "base": train,
    "export": export,
    "grid": grid,
    "borrow": borrow,
    "widen": widen,
}
OTHERWISE = ("borrow", "widen")  # not in a whole run


def _pictures(config: PretrainConfig, work: Workspace, name: str) -> Pictures:
    return read_pictures(work.pictures, name, config.image_size)


def main() -> None:
    """Run the steps named on the command line, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "steps",
        nargs="*",
        metavar="STEP",
        help=f"any of {', '.join(STEPS)}; default: all but {' and '.join(OTHERWISE)}",
    )
    parser.add_argument("--work", type=Path, default=Path("~/.cache/limner/micro"), help="default: %(default)s")
    parser.add_argument("--smoke", action="store_true", help="run everything at tiny size, in WORK/smoke")
    parser.add_argument("--minutes", type=float, help="stop a training after this time; it can be resumed")
    parser.add_argument("--width", type=float, default=1.0, help="of UNet and text encoder, as a multiple of micro's")
    parser.add_argument("--decoder-samples", type=int, help="number of pictures that the decoder sees")
    parser.add_argument("--base-samples", type=int, help="number of pictures that the base sees")
    parser.add_argument("--base-learning-rate", type=float, help=f"default: {FULL.base_learning_rate}")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.steps if name not in STEPS]
    if unknown:
        parser.error(f"unknown step: {', '.join(unknown)}")
    if "widen" in arguments.steps and (arguments.smoke or arguments.width != 2):
        parser.error("widen makes a base of --width 2, which is not tiny")
    # More threads in one process were slower on the machines tried: the matrices are small.
    torch.set_num_threads(1)
    config = (SMOKE if arguments.smoke else FULL).scaled(arguments.width)
    for field in ("decoder_samples", "base_samples", "base_learning_rate"):
        if getattr(arguments, field) is not None:
            config = dataclasses.replace(config, **{field: getattr(arguments, field)})
    root = arguments.work.expanduser()
    work = Workspace(root / "smoke" if arguments.smoke else root)
    for name in arguments.steps or [name for name in STEPS if name not in OTHERWISE]:
        STEPS[name](config, work, arguments.minutes)


if __name__ == "__main__":
    main()
