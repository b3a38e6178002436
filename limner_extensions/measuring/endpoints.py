"""Endpoints of the API that measure the checkpoints of a run."""

from dataclasses import asdict
from typing import Any

from limner_extensions.measuring import job as jobs
from limner_extensions.measuring import panel
from limner_extensions.measuring.job import MeasureConfig
from trainer import config, runs
from ui.state.sampler_client import SamplerClient
from ui.widgets.handlers import Handler


def build(sampler: SamplerClient) -> list[Handler]:
    """Return the endpoints, which the page offers under their names."""

    def measure_checkpoints(run: str, features: str = "", images: int = 16) -> dict[str, Any]:
        """Measure the checkpoints of a run, or go on with it; `features` is the folder of a CLIP or DINO model."""
        panel.start(run, config.check(MeasureConfig, {"features": features, "images": images}), sampler)
        return measured(run)

    return [measure_checkpoints, measured, stop_measuring]


def measured(run: str) -> dict[str, Any]:
    """Return the progress of measuring the checkpoints of a run, and the figures of the last time that it ended."""
    trained = runs.find(run)
    view, table = jobs.newest(trained), jobs.read_table(trained)
    phase = view.state.phase if view else None
    return {
        "run": run,
        "status": view.status if view else "",
        "phase": phase.model_dump(include={"name", "done", "total"}) if phase else None,
        "message": view.state.message if view else "",
        "table": asdict(table) if table else None,
    }


def stop_measuring(run: str) -> dict[str, Any]:
    """Stop measuring the checkpoints of a run; `measure_checkpoints` goes on."""
    panel.stop(run)
    return measured(run)
