"""Families of base models (load, encode, predict), and the adapter that is attached to one. Here torch begins."""

from trainer.families.adapter import Adapter, adapted, attach, named, patched
from trainer.families.adapter_layers import ADAPTER, Layer, base_weight
from trainer.families.family import FAMILIES, Family, fingerprint, load, on_device, place, precision, read
from trainer.families.sd import Conditioning

__all__ = [
    "ADAPTER", "FAMILIES", "Adapter", "Conditioning", "Family", "Layer", "adapted", "attach", "base_weight",
    "fingerprint", "load", "named", "on_device", "patched", "place", "precision", "read",
]  # fmt: skip
