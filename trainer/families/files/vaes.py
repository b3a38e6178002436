"""Load VAEs whose class diffusers reads from folders alone from single files, under original names or diffusers'."""

from pathlib import Path

import torch
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint, convert_wan_vae_to_diffusers
from torch import Tensor, nn

from trainer.devices import Untyped
from trainer.families.files import weights

_CONVOLUTIONS = ("encoder.quant_conv.", "decoder.post_quant_conv.")  # which are of the whole VAE in diffusers
_STATISTICS = "bn."  # of latents, by which they are normalized
_COUNT = "bn.num_batches_tracked"  # has no use, so that a file need not have it
_OF_WAN = "encoder.conv1.weight"  # a VAE of videos under its original names


def in_file(path: Path, vae_class: Untyped, config: Path, prefixes: tuple[str, ...]) -> nn.Module:
    """Load a VAE in fp32 from a file that has it below one of the prefixes, or nothing else.

    Raises:
        RuntimeError: weights are missing, or there are others.
    """
    settings = vae_class.load_config(config)
    model: nn.Module = vae_class.from_config(settings)
    tensors = dict[str, Tensor]()
    if _COUNT in model.state_dict():
        tensors[_COUNT] = torch.tensor(0)
    for key, tensor in weights.read_weights(path, torch.float32, prefixes).items():
        name = key.removeprefix(next((prefix for prefix in prefixes if key.startswith(prefix)), ""))
        tensors[name.partition(".")[2] if name.startswith(_CONVOLUTIONS) else name] = tensor
    if _OF_WAN in tensors:
        tensors = convert_wan_vae_to_diffusers(tensors)
    elif not any(name.startswith("encoder.down_blocks.") for name in tensors):
        statistics = {name: tensor for name, tensor in tensors.items() if name.startswith(_STATISTICS)}
        tensors = {**convert_ldm_vae_checkpoint(tensors, settings), **statistics}
    model.load_state_dict(tensors)
    return model
