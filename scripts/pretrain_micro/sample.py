"""Draw a fixed set of prompts with the exported folder: the quickest way to see what the base knows."""

import time

import torch
from diffusers import StableDiffusionPipeline

from .checkpoint import load_checkpoint
from .config import PretrainConfig, Workspace
from .pictures import save_grid

STEPS = 20
GUIDANCE = 3.0
COLUMNS = 8
PROMPTS = (
    "portrait of a person with long red hair and glasses, smiling, blue background, lorelei style",
    "portrait of a person with short brown hair and a beard, green background, lorelei style",
    "person with a purple bun, pink background, lorelei style",
    "a bald head, sunglasses, orange background, lorelei style",
    "portrait of a person with long green hair, dark skin, yellow background, adventurer style",
    "face with a blue mohawk, pale skin, surprised, white background, adventurer style",
    "person with pink pigtails and glasses, teal background, adventurer style",
    "curly black hair, a moustache, laughing, gray background, adventurer style",
    "portrait of a person with an afro and brown skin, red shirt, yellow background, peeps style",
    "a person with a turban and glasses, blue shirt, pink background, peeps style",
    "a hijab, smiling, purple shirt, green background, peeps style",
    "a bald head and a beard, angry, white shirt, teal background, peeps style",
    "portrait of a person with long blond hair, pale skin, smiling, blue shirt, red background, micah style",
    "person with a white mohawk, dark skin, glasses, black background, micah style",
    "red bob hair, earrings, green shirt, beige background, micah style",
    "a turban, a beard, tan skin, laughing, yellow shirt, blue background, micah style",
    "portrait of a person with short blue hair, sunglasses, red background, personas style",
    "a green afro, dark skin, pink shirt, white background, personas style",
    "pink pigtails, pale skin, glasses, teal background, personas style",
    "a cap, a beard, tan skin, green shirt, purple background, personas style",
    "portrait of a person with spiky purple hair, tan skin, smiling, red background, toon style",
    "long white hair, dark skin, angry, black shirt, blue background, toon style",
    "a red bun, pale skin, yellow shirt, green background, toon style",
    "short blond hair, a beard, orange shirt, gray background, toon style",
)


def draw_grid(config: PretrainConfig, work: Workspace) -> None:
    """Draw every prompt once with its own seed and write WORK/grids/base-SAMPLES.png."""
    pipeline = StableDiffusionPipeline.from_pretrained(work.export).to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(config.seed + index) for index in range(len(PROMPTS))]
    started = time.monotonic()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        images = pipeline(
            list(PROMPTS),
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            generator=generators,
            output_type="pt",
        ).images
    seconds = (time.monotonic() - started) / len(PROMPTS)
    path = work.grids / f"base-{load_checkpoint(work.base)['seen']:07d}.png"
    save_grid(images.float() * 2 - 1, COLUMNS, path)
    print(f"grid: {seconds:.2f} s per picture, {path}")
