"""Stable Diffusion 1.x, Rombach et al. 2022, https://arxiv.org/abs/2112.10752."""

from trainer.base_models.spec import FamilySpec, UNet, openai_clip
from trainer.i18n import _

SPEC = FamilySpec(
    name="sd15",
    title="Stable Diffusion 1.x",
    model="sd.SD",
    pipeline="StableDiffusionPipeline",
    pipeline_options={"safety_checker": None, "feature_extractor": None},
    unet=UNet(context_width=768, depth=1, linear_projections=False),
    vae_scale=0.18215,
    text_encoders=(openai_clip("cond_stage_model.", _("text encoder"), "lora_te_"),),
    variants={"epsilon": 512, "v_prediction": 512},
    step_memory=(2.8, 2.6, 2.4, 2.2, 1.9, 1.4, 0.7),
    clip_skip=True,
)
