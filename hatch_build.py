"""Build hook: compile the message catalogs, for a wheel as for an editable install."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from babel.messages import mofile, pofile
from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CatalogHook(BuildHookInterface):
    """Write a `.mo` file beside each `.po` file."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile all catalogs before the files are collected."""
        for source in Path(self.root, "trainer", "languages").glob("*/LC_MESSAGES/*.po"):
            with source.open("rb") as file:
                catalog = pofile.read_po(file, locale=source.parent.parent.name)
            catalog.creation_date = datetime(2020, 2, 2, tzinfo=UTC)  # or each build would write its own time
            with source.with_suffix(".mo").open("wb") as file:
                mofile.write_mo(file, catalog)
