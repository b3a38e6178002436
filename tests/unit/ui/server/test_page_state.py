"""The memory of open pages: what Gradio keeps of each is small."""

import gc
import tracemalloc
from pathlib import Path

import pytest

from tests.unit.ui.test_page import in_loop
from ui import page
from ui.server.page_state import States
from ui.state.run_watcher import RunWatcher
from ui.state.sampler_client import SamplerClient

LARGEST = 0.2e6  # bytes of a page that was opened


@pytest.mark.slow
def test_an_open_page_takes_little_memory_and_keeps_its_own_choices(character: Path) -> None:
    """Components that differ from those of a fresh page are kept: Gradio checks a choice against those offered."""

    async def opening() -> tuple[float, set[str]]:
        blocks = page.build(SamplerClient(), RunWatcher())
        states = States()
        states.set_blocks(blocks)
        loading = next(each for each in blocks.fns.values() if "load" in {event for _, event in each.targets})

        async def opened(name: str) -> None:
            await blocks.process_api(loading, [{"project": character.name}], states[name])

        await opened("first")
        sizes = []
        for attempt in range(2):  # another thread of the process may load something once meanwhile
            gc.collect()
            tracemalloc.start()
            for number in range(5):
                await opened(f"{attempt}, {number}")
            gc.collect()
            sizes.append(tracemalloc.get_traced_memory()[0] / 5)
            tracemalloc.stop()
        own, fresh = states["1, 4"].blocks_config.blocks, blocks.default_config.blocks
        return min(sizes), {block.elem_id for key, block in own.items() if block is not fresh[key]}

    size, own = in_loop(opening)
    assert size < LARGEST
    assert {"project", "base"} <= own
