"""How long a caption is for CLIP, which reads 75 tokens at a time; no model library is needed to count them."""

import json
from functools import cache, lru_cache
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

LIMIT = 75  # 77 with the two marks around them
_CLIP = Path(__file__).parent / "families" / "configs" / "clip"
# Radford et al. 2021, https://arxiv.org/abs/2103.00020: words, single digits, and what is neither, in lower case.
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@lru_cache(maxsize=20_000)
def count(text: str) -> int:
    """Tokens of a text, without the two marks around it."""
    return len(_tokenizer().encode(text, add_special_tokens=False).ids)


@cache
def _tokenizer() -> Tokenizer:
    vocabulary = json.loads((_CLIP / "vocab.json").read_text(encoding="utf-8"))
    lines = (_CLIP / "merges.txt").read_text(encoding="utf-8").splitlines()
    merges = [(first, second) for first, second in (line.split() for line in lines[1:] if line.strip())]
    made = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=merges,
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            fuse_unk=False,
            unk_token="<|endoftext|>",
        )
    )
    made.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return made
