"""Several people on one server: accounts, and a page of their own for each, behind a proxy."""

from trainer.extension import Extension

EXTENSION = Extension(
    "people", commands="limner_extensions.people.commands:app", server="limner_extensions.people.server:make"
)
