"""Names that settings had in version 0.1: run folders, files and requests that use them are read as before."""

from typing import Any

SECTIONS = {"pictures": "images", "prior": "regularization"}
NAMES = {  # by section, which has its current name
    "model": {"objective": "prediction_type"},
    "record": {"objective": "prediction_type"},
    "adapter": {"up_factor": "lora_plus_ratio"},
    "schedule": {"floor": "min_lr_ratio"},
    "training": {
        "accumulation": "gradient_accumulation",
        "small_share": "low_resolution_share",
        "parts": "micro_batches",
        "clip": "max_grad_norm",
        "text_encoder_factor": "text_encoder_lr_factor",
        "ema": "ema_decay",
        "guard": "spike_threshold",
    },
    "objective": {
        "measure": "loss_type",
        "huber": "huber_c",
        "timesteps": "timestep_sampling",
        "first_timestep": "min_timestep",
        "last_timestep": "max_timestep",
        "masked": "masked_loss",
        "outside": "unmasked_weight",
    },
    "captions": {"alternatives": "multiple", "keep": "keep_tokens", "orders": "shuffles", "chunks": "max_token_length"},
    "images": {"smallest_crop": "min_crop"},
    "preservation": {"others": "generated_share"},
    "preview": {"negative": "negative_prompt"},
}
VALUES: dict[str, dict[object, object]] = {
    "captions.max_token_length": {1: 75, 2: 150, 3: 225},  # was a number of chunks
    "objective.loss_type": {"squared": "l2"},
    "training.gradient_checkpointing": {"large": "transformers"},
    "schedule.kind": {"stable": "warmup-stable-decay"},
}


def current(data: dict[str, Any]) -> dict[str, Any]:
    """Return partial settings under their current names; an old name beside the current one stays, to be refused."""
    result: dict[str, Any] = {}
    for section, values in data.items():
        name = SECTIONS.get(section, section)
        if name in data and name != section:
            name = section
        result[name] = _current_section(name, values) if isinstance(values, dict) else values
    return result


def _current_section(section: str, values: dict[str, Any]) -> dict[str, Any]:
    result = {}
    for old, value in values.items():
        name = NAMES.get(section, {}).get(old, old)
        if name in values:
            name = old
        known = VALUES.get(f"{section}.{name}", {})
        result[name] = known.get(value, value) if isinstance(value, int | str) else value
    return result
