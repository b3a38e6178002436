"""Other models that people choose as a base model, recognized by parts of their tensors' names or by their pipeline.

The marks of architectures are those by which diffusers 0.42 (`loaders/single_file_utils.py`) and ComfyUI 3cd7b32f
(`comfy/model_detection.py`) know them.
"""

from pathlib import Path

from trainer import foreign_text
from trainer.i18n import _

DISTILLED = _("a latent consistency model that is told the guidance, which cannot be trained here")
_ARCHITECTURES = foreign_text.read_toml(Path(__file__).with_suffix(".toml"))


def _of_architecture(name: str) -> str:
    return _("a model of another architecture, {name}, which cannot be trained here", name=name)


def _by_marks(*, of_family: bool) -> dict[str, tuple[str, ...]]:
    return {
        _of_architecture(name): tuple(known["marks"])
        for name, known in _ARCHITECTURES.items()
        if known.get("of_family", False) == of_family
    }


# Kinds by parts of their tensors' names. The first that is found names the file.
FILES = {
    _("an adapter; choose it in Try out, and the base model it was trained on here"): (
        ".lora_up.",
        ".lora_A.",
        ".hada_w1_a",
        ".lokr_w1",
    ),
    **_by_marks(of_family=False),
    DISTILLED: ("time_embed.cond_proj.", "time_embedding.cond_proj."),
    _("a motion module for AnimateDiff"): ("motion_modules.",),
    _("a ControlNet"): ("control_model.", "input_hint_block.", "controlnet_cond_embedding."),
    _("an IP-Adapter"): ("ip_adapter.",),
}
# Those whose tensors are named as those of a family: kinds by regular expressions for names of files.
NAMED = {_of_architecture(name): str(known["names"]) for name, known in _ARCHITECTURES.items() if "names" in known}
# A model of a kind that is known otherwise, or a part of one, if nothing else of a base model is in the file.
PARTS = {
    **_by_marks(of_family=True),
    _("a FLUX model that cannot be trained here"): ("double_blocks.",),
    _("a Stable Diffusion 3 model that cannot be trained here"): ("joint_blocks.",),
    _("the transformer of a FLUX model alone; give the whole folder"): ("single_transformer_blocks.",),
    _("the transformer of a Stable Diffusion 3 model alone; give the whole folder"): (
        "transformer_blocks.0.ff_context.",
    ),
}
PARTS_WITHOUT_DENOISER = {
    _("a VAE"): ("first_stage_model.", "decoder.conv_in.weight"),
    _("a text encoder"): ("text_model.encoder.", "transformer.resblocks.", "encoder.block.0."),
    _("a UNet without its text encoder and VAE"): ("down_blocks.0.", "input_blocks.0.0.weight"),
}
# Kinds by how the names of their pipelines begin; the first that fits.
PIPELINES = {
    "LatentConsistency": DISTILLED,
    **{str(known["pipeline"]): _of_architecture(name) for name, known in _ARCHITECTURES.items()},
    "Flux": _("a FLUX model that cannot be trained here"),
    "StableDiffusion3": _("a Stable Diffusion 3 model that cannot be trained here"),
}
