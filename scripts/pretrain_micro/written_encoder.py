"""Write the patch code into the weights of a VAE encoder: no training, and the same numbers as `PatchCode.encode`.

Group norms and SiLUs stand in the way of a linear code, and two facts get past them. Constant channels of +-PIN, large
against everything else in their group, make a group norm a known factor. And silu(x) - silu(-x) = x, so a value is
carried in a pair of channels, as itself and negated.
"""

import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import Encoder
from torch import Tensor, nn

from .patch_code import POSITION_CENTER, POSITION_STEP, PatchCode

PIN = 200.0
CERTAIN_LOGVAR = -8.0
ON = 10.0
"""A bias at which SiLU is as good as the identity."""

# The hidden layer of a residual branch: x and y as they come out of its first convolution, then as they went in.
HIDDEN_NEW = (0, 2)
HIDDEN_OLD = (8, 10)


@torch.no_grad()
def write_encoder(vae: AutoencoderKL, code: PatchCode) -> None:
    """Set the encoder's weights so that the mode of its posterior is `code.encode` of the picture."""
    encoder = vae.encoder
    blocks = [*encoder.down_blocks, encoder.mid_block]
    for parameter in encoder.parameters():
        parameter.zero_()  # above all every residual branch: what is left of them is the identity
    for block in blocks:
        for resnet in block.resnets:
            resnet.norm1.weight.fill_(1)
            resnet.norm2.weight.fill_(1)

    encoder.conv_in.weight[:3, :, 1, 1] = torch.eye(3)
    _write_projections(encoder, code)
    pairs = _split_into_pairs(encoder, len(code.mean))
    _write_positions(encoder, pairs[-2:])
    for channel, pair in enumerate(pairs[:-2]):
        _read_pair(encoder.conv_out, channel, pair, (1, 1))
    vae.quant_conv.weight[:, :, 0, 0] = torch.eye(vae.quant_conv.out_channels)
    vae.quant_conv.bias.zero_()


def _write_projections(encoder: Encoder, code: PatchCode) -> None:
    """Let each stride-2 convolution gather 2 x 2 neighbors and project them, which is one level of the code."""
    for level, projection in enumerate(code.projections):
        block = encoder.down_blocks[level]
        below, above = projection.shape[0] // 4, projection.shape[1]
        if level > 0:
            block.resnets[0].conv_shortcut.weight[:below, :below, 0, 0] = torch.eye(below)
        gather = block.downsamplers[0].conv
        gather.weight[:above, :below, :2, :2] = projection.T.reshape(above, below, 2, 2)
    gather.weight[:above].mul_(code.gain.view(-1, 1, 1, 1))
    gather.bias[:above] = -code.mean * code.gain


def _split_into_pairs(encoder: Encoder, channels: int) -> list[int]:
    """Spread the code over the groups of the last level, in pairs with pins; return where each pair is.

    Two more pairs are set aside for the positions.
    """
    norm = encoder.conv_norm_out
    width = norm.num_channels // norm.num_groups
    per_group = (width - 2) // 2
    places = [group * width + 2 * place for group in range(norm.num_groups) for place in range(per_group)]
    pairs = places[:channels] + places[-2:]
    split = encoder.down_blocks[-1].resnets[0].conv_shortcut
    for channel, pair in enumerate(pairs[:-2]):
        split.weight[pair, channel] = 1
        split.weight[pair + 1, channel] = -1
    pins = torch.arange(norm.num_groups) * width + width - 2
    split.bias[pins] = PIN
    split.bias[pins + 1] = -PIN
    for pinned in [norm, *(resnet.norm1 for resnet in encoder.mid_block.resnets)]:
        pinned.weight.fill_(_pin_factor(width))
    encoder.conv_out.bias[channels + 2 :] = CERTAIN_LOGVAR
    return pairs


def _write_positions(encoder: Encoder, pairs: list[int]) -> None:
    """Count columns and rows from the border: convolutions see it, because they pad with zeros.

    Reading the left neighbor and adding one, again and again, gives 1, 2, 3 ... from the left until as many columns
    are counted as there were convolutions. Three residual branches have six, the output is the seventh; the first one
    reads itself and the neighbor, so it counts to two: together eight, as many as a latent has columns.
    """
    first, others = encoder.down_blocks[-1].resnets[0], list(encoder.mid_block.resnets)
    width = first.norm2.num_channels // first.norm2.num_groups
    for branch in (first, *others):
        branch.norm2.weight.fill_(_pin_factor(width))
        for group in (0, 1):
            branch.conv1.bias[group * width + width - 2] = PIN
            branch.conv1.bias[group * width + width - 1] = -PIN
    first.norm1.weight.zero_()
    first.norm1.bias.fill_(ON)
    for axis, pair in enumerate(pairs):
        neighbor = (1, 0) if axis == 0 else (0, 1)  # row and column of the kernel: left of, or above, the center
        hidden = HIDDEN_NEW[axis]
        for sign, place in ((1, hidden), (-1, hidden + 1)):
            first.conv1.weight[place, 0, 1, 1] = sign / nn.functional.silu(torch.tensor(ON))
            first.conv1.weight[(place, 0, *neighbor)] = sign / nn.functional.silu(torch.tensor(ON))
        _count_on(first.conv2, pair, hidden, neighbor)
        for branch in others:
            _count_on(branch.conv1, hidden, pair, neighbor)
            for sign, place in ((1, HIDDEN_OLD[axis]), (-1, HIDDEN_OLD[axis] + 1)):
                _read_pair(branch.conv1, place, pair, (1, 1), sign)
                _read_pair(branch.conv2, pair + (sign < 0), HIDDEN_OLD[axis], (1, 1), -sign)
            _count_on(branch.conv2, pair, hidden, neighbor)
        output = encoder.conv_out.out_channels // 2 - 2 + axis
        _read_pair(encoder.conv_out, output, pair, neighbor, POSITION_STEP)
        encoder.conv_out.bias[output] = (1 - POSITION_CENTER) * POSITION_STEP


def _count_on(convolution: nn.Conv2d, to: int, pair: int, neighbor: tuple[int, int]) -> None:
    """Make the pair at `to` the neighbor's value plus one."""
    for sign, place in ((1, to), (-1, to + 1)):
        _read_pair(convolution, place, pair, neighbor, sign)
        _bias(convolution)[place] += sign


def _read_pair(convolution: nn.Conv2d, to: int, pair: int, place: tuple[int, int], factor: float = 1.0) -> None:
    """Add the value of a pair, seen through SiLU at this place of the kernel, to an output channel."""
    convolution.weight[(to, pair, *place)] += factor
    convolution.weight[(to, pair + 1, *place)] -= factor


def _bias(convolution: nn.Conv2d) -> Tensor:
    bias = convolution.bias
    assert bias is not None
    return bias


def _pin_factor(width: int) -> float:
    """Return the deviation of a group of this width that holds two pins and little else."""
    return PIN * float((2 / width) ** 0.5)
