"""The micro UNet and text encoder, trained together from scratch on the latents of the world (v-prediction)."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .captions import caption
from .checkpoint import save_checkpoint
from .config import PretrainConfig
from .pictures import Attributes, Pictures
from .schedule import Clock, Training, seed_step

AVERAGE = 0.999
LINE_EVERY = 200
NOISE = {
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "beta_start": 1e-4,
    "beta_end": 2e-2,
    "prediction_type": "v_prediction",
    "steps_offset": 1,
}
"""The noise schedule, for training here and for the scheduler that is exported."""
FACE_WEIGHT = 4.0


def loss_weights(size: int) -> Tensor:
    """Return the weights [size, size] of the loss, 1 on average: eyes and mouths are small, but matter most."""
    weights = torch.ones(size, size)
    weights[3 * size // 8 : 6 * size // 8, 2 * size // 8 : 6 * size // 8] = FACE_WEIGHT
    return weights / weights.mean()


@dataclass(frozen=True)
class EncodedWorld:
    """Latents and attributes of all pictures of the world."""

    latents: Tensor  # n, channels, size, size in half precision
    people: list[Attributes]


@torch.no_grad()
def encode_world(world: Pictures, encode: Callable[[Tensor], Tensor], path: Path) -> None:
    """Encode every picture once, so that training the base never touches pixels."""
    chunks = [encode(world.tensor(slice(start, start + 256))).half() for start in range(0, len(world), 256)]
    save_checkpoint({"latents": torch.cat(chunks)}, path)


def build_base(config: PretrainConfig, tokenizer: CLIPTokenizer) -> nn.ModuleDict:
    """Build the untrained UNet and text encoder; module names are those of Stable Diffusion 1.x."""
    torch.manual_seed(config.seed)
    levels = len(config.unet_channels)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.text_width,
            intermediate_size=4 * config.text_width,
            num_hidden_layers=config.text_layers,
            num_attention_heads=max(1, config.text_width // 32),
            max_position_embeddings=config.context_length,
            projection_dim=config.text_width,
            hidden_act="quick_gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    with torch.no_grad():
        # CLIP's 0.02 is meant for long training; here words must differ from the first step on.
        for name, parameter in text_encoder.named_parameters():
            if name.endswith("token_embedding.weight"):
                parameter.normal_(std=0.5)
            elif name.endswith("position_embedding.weight"):
                parameter.normal_(std=0.1)
    unet = UNet2DConditionModel(
        sample_size=config.latent_size,
        in_channels=config.latent_channels,
        out_channels=config.latent_channels,
        block_out_channels=config.unet_channels,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * levels,
        up_block_types=("CrossAttnUpBlock2D",) * levels,
        cross_attention_dim=config.text_width,
        attention_head_dim=4,  # SD 1.x's name for the number of heads
        norm_num_groups=config.norm_groups,
    )
    return nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})


class BaseTraining(Training[nn.ModuleDict]):
    """Training of the base."""

    def __init__(self, config: PretrainConfig, tokenizer: CLIPTokenizer, checkpoint: Path) -> None:
        self.config, self.tokenizer = config, tokenizer
        self.alphas: Tensor = DDPMScheduler(**NOISE).alphas_cumprod
        self.weights = loss_weights(config.latent_size)
        models, rate = build_base(config, tokenizer), config.base_learning_rate
        super().__init__(models, checkpoint, rate=rate, beta2=0.98, decay=0.01, average=AVERAGE)

    def train_step(self, world: EncodedWorld) -> float:
        """Do one step and return its loss: the squared error of v, the same for all timesteps, faces weighted up."""
        config = self.config
        chooser = seed_step(config.seed, self.step)
        picks = [chooser.randrange(len(world.people)) for _ in range(config.base_batch)]
        tokens = self._tokens([world.people[pick] for pick in picks], chooser)
        latents = world.latents[picks].float()
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, len(self.alphas), (len(picks),))
        alpha = self.alphas[timesteps].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        target = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
        with torch.autocast("cpu", torch.bfloat16):
            states = self.model["text_encoder"](tokens).last_hidden_state
            predicted = self.model["unet"](noisy, timesteps, states).sample
        loss = ((predicted.float() - target).square() * self.weights).mean()
        return self.advance(loss, len(picks), total=config.base_samples, decay_share=config.decay_share)

    def _tokens(self, people: list[Attributes], chooser: random.Random) -> Tensor:
        """Write new captions and tokenize them; some stay empty, for classifier-free guidance."""
        texts = []
        for person in people:
            dropped = chooser.random() < self.config.caption_dropout
            texts.append("" if dropped else caption(person, chooser))
        tokens: Tensor = self.tokenizer(
            texts,
            padding="max_length",
            truncation=True,
            max_length=self.config.context_length,
            return_tensors="pt",
        ).input_ids
        return tokens


def train_base(training: BaseTraining, world: EncodedWorld, *, clock: Clock) -> None:
    """Train on the configured number of samples, or until the time is up."""
    while training.seen < training.config.base_samples and not clock.over():
        with sdpa_kernel(SDPBackend.MATH):  # on a CPU the fused kernel's backward pass is slower: 54 samples/s, not 72
            loss = training.train_step(world)
        clock.add(loss, training.config.base_batch)
        if clock.checkpoint_due():
            training.save()
        if training.step % LINE_EVERY == 0:
            print(f"base: step {training.step}, {training.seen} samples, {clock.line()}", flush=True)
    training.save()
    print(f"base: {training.seen} samples", flush=True)
