"""Verdicts on files for diffusers are what diffusers does; other programs are held by `benchmarks.verdicts`."""

from pathlib import Path

import pytest

from benchmarks import foreign, loaders
from benchmarks.behavior import behavior
from benchmarks.narrow import Base
from trainer.adapter_files import compatibility

FILES = {
    "Limner LoRA of convolutions, UNet only": "right",
    "Limner DoRA, UNet only": "differs",
    "LyCORIS LoHa, UNet only": "refuses",
    "diffusers of 2023, processors, UNet only": "differs",
    "PEFT, UNet only": "nothing",
}


@pytest.mark.nightly
@pytest.mark.parametrize(("name", "outcome"), FILES.items(), ids=FILES.keys())
def test_a_verdict_for_diffusers_is_what_it_does(tmp_path: Path, name: str, outcome: str) -> None:
    base = Base.make("sd15")
    file = foreign.write_all(base, tmp_path, name)[0]
    assert behavior(loaders.diffusers(base), base, file)["outcome"] == outcome
    report = compatibility.check(file, base.known)
    assert {verdict.program: verdict.outcome for verdict in report.verdicts}["diffusers"] == outcome
