"""Runs to show to others: a folder to publish with a model card, and a message at the end. Torch-free."""

from trainer.extension import Extension

EXTENSION = Extension(
    "publishing",
    commands="limner_extensions.publishing.commands:app",
    online={"publish": "--push"},
    routes="limner_extensions.publishing.routes:router",
    panels={
        "run-ended": "limner_extensions.publishing.messages:send",
        "run-links": "limner_extensions.publishing.routes:links",
    },
)
