"""Settings that make no sense for the family of a base model."""

from trainer.base_models.registry import FAMILIES, FamilyName
from trainer.config.adapter import AdapterConfig
from trainer.config.objective import ObjectiveConfig
from trainer.i18n import _
from trainer.schema import Conflict


def find(
    family: FamilyName, prediction_type: str, objective: ObjectiveConfig, adapter: AdapterConfig
) -> Conflict | None:
    """Return the first setting that does not fit a family, with why and what would; None if all do."""
    spec = FAMILIES[family]
    if prediction_type not in ("auto", *spec.variants):
        return Conflict("model.prediction_type", _("{family} does not predict that", family=spec.title), "auto")
    if spec.transformer and adapter.targets == "conv":
        reason = _("the transformer of {family} has no convolutions", family=spec.title)
        return Conflict("adapter.targets", reason, "attention+ff")
    if spec.first != "flow":
        return None
    if objective.weighting != "none":
        reason = _("{family} weights noise levels by how often it draws them (timestep_sampling)", family=spec.title)
        return Conflict("objective.weighting", reason, "none")
    if objective.noise_offset:
        reason = _("{family} is trained from pure noise, which needs no offset", family=spec.title)
        return Conflict("objective.noise_offset", reason, 0.0)
    return None
