"""Stable Diffusion XL, Podell et al. 2023, https://arxiv.org/abs/2307.01952."""

from trainer.base_models.spec import FamilySpec, UNet, openai_clip, openclip
from trainer.i18n import _

SPEC = FamilySpec(
    name="sdxl",
    title="Stable Diffusion XL",
    model="sdxl.SDXL",
    pipeline="StableDiffusionXLPipeline",
    pipeline_options={"add_watermarker": False},
    unet=UNet(context_width=2048, depth=10, linear_projections=True, size_conditioned=True, original_names=True),
    vae_scale=0.13025,
    text_encoders=(
        openai_clip("conditioner.embedders.0.", _("first text encoder"), "lora_te1_"),
        openclip("conditioner.embedders.1.", _("second text encoder"), "lora_te2_", "_2", 1280),
    ),
    variants={"epsilon": 1024, "v_prediction": 1024},
    step_memory=(13.2, 10.2, 8.5, 6.8, 6.2, 4.0, 1.7),
)
