"""Run sd-scripts' own training on the noise, timesteps and order of images of a run of Limner; log its losses.

    python recipe_hook.py TASK.json train_network.py --config_file ...

It runs in the environment of sd-scripts, whose loop, network, loss, optimizer and schedule are used as they are.
Replaced is what is drawn at random, and the width of its UNet, which its source has as constants.
"""

import json
import random
import runpy
import sys
from pathlib import Path
from typing import Any

import torch

TASK = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
sys.path.insert(0, TASK["checkout"])  # of Limner, for its random generators
from trainer.rng import generator  # noqa: E402

losses: list[float] = []
drawing: dict[str, Any] = {}


def rng() -> torch.Generator:
    """Return Limner's generator of the step; it draws the latents, then the noise, then the timesteps."""
    if drawing.get("step") != len(losses):
        drawing.update(step=len(losses), generator=generator(TASK["seed"], len(losses), 0, "noise"))
    return drawing["generator"]


def narrow_unet() -> None:
    """Give sd-scripts' UNet the widths and blocks of the model."""
    from library import original_unet

    unet = json.loads((Path(TASK["model"]) / "unet" / "config.json").read_text(encoding="utf-8"))
    widths = tuple(unet["block_out_channels"])
    original_unet.BLOCK_OUT_CHANNELS = widths
    original_unet.TIMESTEP_INPUT_DIM, original_unet.TIME_EMBED_DIM = widths[0], widths[0] * 4
    original_unet.LAYERS_PER_BLOCK = unet["layers_per_block"]
    original_unet.LAYERS_PER_BLOCK_UP = unet["layers_per_block"] + 1
    for name in ("NORM_GROUPS", "TRANSFORMER_NORM_NUM_GROUPS"):
        setattr(original_unet, name, unet["norm_num_groups"])
    original_unet.DOWN_BLOCK_TYPES = unet["down_block_types"]
    original_unet.UP_BLOCK_TYPES = unet["up_block_types"]


def draw_as_limner() -> None:
    """Replace the draws of latents, noise and timesteps, and the order of the images."""
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
    from library import train_util

    def sample(self: Any, *_: object, **__: object) -> torch.Tensor:  # noqa: ANN401 - diffusers' class
        return self.mean + self.std * torch.randn(self.mean.shape, generator=rng())

    def noise_and_timesteps(args: Any, scheduler: Any, latents: torch.Tensor) -> tuple[torch.Tensor, ...]:  # noqa: ANN401
        noise = torch.randn(latents.shape, generator=rng())
        first, last = args.min_timestep or 0, args.max_timestep or scheduler.config.num_train_timesteps
        timesteps = torch.randint(first, last, (len(latents),), generator=rng())
        if args.noise_offset:
            offset = torch.randn((*latents.shape[:2], 1, 1), generator=rng())
            noise = noise + args.noise_offset * offset
        perturbed = noise
        if args.ip_noise_gamma:
            perturbed = noise + args.ip_noise_gamma * torch.randn(latents.shape, generator=rng())
        return noise, scheduler.add_noise(latents, perturbed, timesteps), timesteps

    def order(self: Any) -> None:  # noqa: ANN401 - sd-scripts' class
        # A batch is read before its epoch is announced, so that the order of an epoch is that of the step after it.
        names = TASK["order"][min(self.current_epoch, len(TASK["order"]) - 1)]
        for bucket in self.bucket_manager.buckets:
            bucket.sort(key=lambda path: names.index(Path(path).stem))

    DiagonalGaussianDistribution.sample = sample
    train_util.get_noise_noisy_latents_and_timesteps = noise_and_timesteps
    train_util.BaseDataset.shuffle_buckets = order


def main() -> None:
    """Train, and write the losses."""
    script = sys.argv[2]
    sys.argv = sys.argv[2:]
    sys.path.insert(0, str(Path(script).resolve().parent))
    narrow_unet()
    draw_as_limner()
    module = runpy.run_path(script, run_name="train_network")
    trainer_class = module["NetworkTrainer"]
    process_batch = trainer_class.process_batch

    def logged(self: Any, *given: Any, **named: Any) -> torch.Tensor:  # noqa: ANN401 - sd-scripts' class
        loss = process_batch(self, *given, **named)
        losses.append(loss.item())
        return loss

    trainer_class.process_batch = logged
    random.seed(0)
    args = module["setup_parser"]().parse_args()
    module["train_util"].verify_command_line_training_args(args)
    args = module["train_util"].read_config_from_file(args, module["setup_parser"]())
    trainer_class().train(args)
    Path(TASK["losses"]).write_text(json.dumps(losses), encoding="utf-8")


if __name__ == "__main__":
    main()
