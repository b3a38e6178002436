"""Families of base models (load, encode, predict), and the adapter that is attached to one. Torch begins here."""

from trainer.families.adapter import Adapter, adapted, attach, named, outlined, patched, start_note
from trainer.families.adapter_layers import ADAPTER, Layer, base_weight
from trainer.families.base_model import (
    decode_latents,
    decode_to_pixels,
    encode_images,
    encoding_precision,
    fit,
    frozen,
    load,
    on_device,
    outline,
    place,
    precision,
    read,
    read_other,
)
from trainer.families.family import LENGTHS, Conditioning, Family, stacked, without_padding
from trainer.families.files.weights import computed_buffers, fingerprint, fingerprints
