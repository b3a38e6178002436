"""Runs to show to others: a report as one HTML file, and a folder to publish with a model card. Torch-free."""

from trainer.extension import Extension

EXTENSION = Extension(
    "publishing",
    commands="limner_extensions.publishing.commands:app",
    online={"publish": "--push"},
    routes="limner_extensions.publishing.routes:router",
    panels={"run-links": "limner_extensions.publishing.routes:links"},
)
