"""Load models of transformers for captions: from safetensors files alone, and only if their weights are complete."""

from pathlib import Path

import torch
import transformers

from trainer import devices
from trainer.captioning import kinds
from trainer.captioning.kinds import Kind
from trainer.devices import Untyped

LARGE = 2**30  # bytes of weights from which a model is loaded in half precision, where the device is good at it


class IncompleteError(ValueError):
    """The weights are not those of the model that its config describes."""


def load_known(kind: Kind, folder: Path, device: torch.device) -> Untyped:
    """Load a caption model of a kind for inference; no code that comes with it is run.

    Its class is the one that it names, not the one that its type would choose.

    Raises:
        IncompleteError: weights are missing, as in a model that was made for code of its own.
    """
    model_class = getattr(transformers, kinds.architecture(folder, kind))
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    dtype: torch.dtype | str = torch.float32
    if size > LARGE and devices.is_accelerator(device):
        dtype = torch.bfloat16 if devices.best_precision(device) == "bf16" else torch.float16
    elif size > LARGE:
        dtype = "auto"  # in fp32, 7 billion parameters would take 28 GB
    model, report = model_class.from_pretrained(
        folder,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
        dtype=dtype,
        output_loading_info=True,
    )
    if report["missing_keys"]:
        raise IncompleteError(f"its files lack weights of {type(model).__name__}")
    return model.to(device).eval()
