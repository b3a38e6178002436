"""Export the trained parts as a diffusers folder, mostly in half precision, laid out as Stable Diffusion 1.x."""

import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
from transformers import CLIPTokenizer

from .autoencoder import build_vae
from .base import NOISE, build_base
from .checkpoint import load_checkpoint
from .config import PretrainConfig, Workspace
from .patch_code import load_patch_code

TOKENIZER_FILES = ("vocab.json", "merges.txt")


def export_pipeline(config: PretrainConfig, work: Workspace) -> None:
    """Write the averaged weights of both checkpoints to WORK/export, replacing what is there only when complete."""
    tokenizer = CLIPTokenizer.from_pretrained(work.tokenizer)
    models = build_base(config, tokenizer)
    state = load_checkpoint(work.base)
    models.load_state_dict(state["averaged"])
    if work.borrowed_vae.exists():
        vae = AutoencoderKL.from_pretrained(work.borrowed_vae)
    else:
        vae = build_vae(config, load_patch_code(work.patch_code))
        if work.decoder.exists():
            vae.load_state_dict(load_checkpoint(work.decoder)["averaged"])
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=models["text_encoder"],
        tokenizer=tokenizer,
        unet=models["unet"],
        scheduler=DDIMScheduler(**NOISE, clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).to(dtype=torch.float16)
    # transformers keeps the stored precision when it loads, diffusers does not: so all is in fp32 once loaded.
    pipeline.text_encoder.float()
    partial = work.export.with_name(f"{work.export.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    pipeline.save_pretrained(partial)
    # The pipeline leaves these out; other tools read them (tokens.py).
    for name in TOKENIZER_FILES:
        shutil.copy(work.tokenizer / name, partial / "tokenizer" / name)
    shutil.copy(Path(__file__).with_name("NOTICE.md"), partial)
    shutil.rmtree(work.export, ignore_errors=True)
    partial.rename(work.export)
    print(f"export: base at {state['seen']} samples, {_megabytes(work.export):.1f} MB in {work.export}")


def _megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
