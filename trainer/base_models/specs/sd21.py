"""Stable Diffusion 2.x: OpenCLIP-H as the text encoder, in two variants that look alike and predict noise or v."""

from trainer.base_models.spec import FamilySpec, UNet, openclip
from trainer.i18n import _

SPEC = FamilySpec(
    name="sd21",
    title="Stable Diffusion 2.x",
    model="sd.SD",
    pipeline="StableDiffusionPipeline",
    pipeline_options={"safety_checker": None, "feature_extractor": None},
    unet=UNet(context_width=1024, depth=1, linear_projections=True),
    vae_scale=0.18215,
    text_encoders=(openclip("cond_stage_model.", _("text encoder"), "lora_te_", "", 1024),),
    variants={"epsilon": 512, "v_prediction": 768},
    step_memory=(2.8, 2.5, 2.4, 2.2, 1.9, 1.4, 0.6),
    ambiguous=True,
)
