"""Two images at a time in the Try out tab, without their names, until the best checkpoint and strength are known."""

import random
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from limner_extensions.choosing import knockout, winner
from limner_extensions.choosing.knockout import Candidate, Pair
from trainer.base_models import MICRO
from trainer.config import TrainConfig, prompt_lines
from trainer.errors import UserError
from trainer.i18n import _
from trainer.runs import Run
from ui import api
from ui.state import adapter_choices
from ui.state.run_watcher import RunWatcher
from ui.state.sampler_client import SamplerClient
from ui.tabs import comparison, try_out
from ui.templates import renderer
from ui.widgets.handlers import START, listen

ABOUT = _(
    "Two images at a time, of one prompt and seed, from checkpoints and strengths of this adapter. Choose the better "
    "one: after at most {most} choices the best checkpoint and strength are known.",
    most=knockout.MOST,
)
NO_RUN = _("Choose an adapter that was trained here.")
SEEDS = 2**31 - knockout.MOST
# Names the pair on the page, so that a late click is about no other one, and dims it until the next one is there.
SEEN = """(choices) => {
  const pair = document.querySelector("#choosing [data-choice]");
  for (const image of pair?.querySelectorAll(".picture") ?? []) image.classList.add("waiting");
  return [choices, pair?.dataset.choice ?? ""];
}"""
render = renderer(Path(__file__).parent / "templates")
SIDES = (_("Left"), _("Right"))


@dataclass
class Choices:
    """Choices of a page so far: of checkpoints, by their keys with their names, and where the other one won."""

    names: dict[str, str] = field(default_factory=dict)
    seed: int = 0
    wins: dict[int, bool] = field(default_factory=dict)  # by the number of the choice

    @property
    def next(self) -> Pair | Candidate:
        """The next pair, or the winner."""
        return knockout.after(list(self.names), list(self.wins.values()))

    @property
    def id(self) -> str:
        """Name of the next choice."""
        return f"{self.seed}-{len(self.wins)}"

    @property
    def is_swapped(self) -> bool:
        """True if the best candidate so far of the next pair stands at the right."""
        return random.Random(self.id).random() < 0.5

    def check(self) -> None:
        """Check that anything was chosen.

        Raises:
            UserError: the server was restarted since then.
        """
        if not self.names:
            raise UserError("What was chosen before is gone, as the server was restarted.", "Click Start choosing.")


def build(adapter: gr.Dropdown, sampler: SamplerClient, watch: RunWatcher) -> None:
    """Draw the panel, and connect it to the choice of an adapter."""
    with gr.Accordion(_("Choose by eye"), open=False, elem_id="choosing"):
        gr.HTML(render("said.html", role="", look="quiet", text=ABOUT))
        with gr.Row(elem_classes="tools"):
            start = gr.Button(_("Start choosing"), elem_id="choose-start", size="sm")
        result = gr.HTML(elem_id="choose-result")
        with gr.Row(visible=False, elem_id="choose-buttons") as buttons:
            left = gr.Button(_("Left is better"), elem_id="choose-left")
            same = gr.Button(_("No difference"), elem_id="choose-none")
            right = gr.Button(_("Right is better"), elem_id="choose-right")
        save_button = gr.Button(_("Save as a file"), elem_id="choose-save", size="sm", visible=False)
        choices, seen = gr.State(Choices()), gr.JSON(visible=False)
    drawn = {"result": result, "buttons": buttons, "save": save_button}
    takes = {"choices": choices}
    first = {**takes, "key": adapter}
    listen(start.click, partial(begin, sampler, watch), first, drawn, kind=START, show_progress="minimal")
    for button, side in ((left, 0), (same, None), (right, 1)):
        act = partial(choose, sampler, watch, side)
        listen(button.click, act, {**takes, "seen": seen}, drawn, kind=START, js=SEEN)
    listen(save_button.click, save, takes, drawn)


def begin(sampler: SamplerClient, watch: RunWatcher, *, choices: Choices, key: str | None) -> dict[str, Any]:
    """Forget what was chosen, and return values of what `build` draws, with the first pair.

    Raises:
        UserError: the adapter belongs to no run, or an image cannot be generated.
    """
    if adapter_choices.run_of(key or "") is None:
        raise UserError("This adapter has no checkpoints to compare.", NO_RUN)
    choices.names = dict(comparison.checkpoints(key or "", watch))
    choices.seed, choices.wins = random.SystemRandom().randrange(SEEDS), {}
    return _draw(choices, sampler, watch)


def choose(
    sampler: SamplerClient, watch: RunWatcher, side: int | None, *, choices: Choices, seen: str
) -> dict[str, Any]:
    """Note which side of a pair is better, if it is still the one that is asked about; returns as `begin`.

    Raises:
        UserError: the next pair cannot be generated, and nothing was chosen; or the server was restarted meanwhile.
    """
    choices.check()
    if seen != choices.id:
        return {}
    wins, number = choices.wins, len(choices.wins)
    wins.setdefault(number, side is not None and side != choices.is_swapped)
    try:
        return _draw(choices, sampler, watch)
    except UserError:
        wins.pop(number)
        raise


def _draw(choices: Choices, sampler: SamplerClient, watch: RunWatcher) -> dict[str, Any]:
    """Generate the next pair, or say which candidate has won; returns nothing if the user starts again meanwhile."""
    pair, choice = choices.next, choices.id
    if isinstance(pair, Candidate):
        hidden, save_button = gr.Row(visible=False), gr.Button(visible=True)
        return {"result": _winner(choices, pair), "buttons": hidden, "save": save_button}
    candidates = [pair.best, pair.other]
    if choices.is_swapped:
        candidates.reverse()
    config, files, number = _run_of(pair.best).config(), list[str](), len(choices.wins)
    prompt, seed = _prompt(config, number), choices.seed + number
    for candidate in candidates:
        form = api.sample_form(prompt, candidate.key, candidate.strength, {"seed": seed})
        *_before, (_html, made, _seed) = try_out.generate(sampler, watch, form)
        files += made
    if choice != choices.id:
        return {}
    title = _("Choice {number}: {prompt}", number=number + 1, prompt=prompt)
    look = "pixels" * (config.model.base == MICRO)
    images = list(zip(SIDES, files, strict=True))
    html = render("pair.html", choice=choice, title=title, images=images, look=look)
    return {"result": html, "buttons": gr.Row(visible=True), "save": gr.Button(visible=False)}


def _run_of(candidate: Candidate) -> Run:
    """Return the run of a candidate.

    Raises:
        UserError: it was deleted meanwhile.
    """
    run = adapter_choices.run_of(candidate.key)
    if run is None:
        raise UserError("This adapter no longer exists.", "Choose another one.")
    return run


def _prompt(config: TrainConfig, number: int) -> str:
    """Return the prompt of a choice: those of the run's previews take turns, or else its trigger word."""
    prompts = [prompt_lines.parse_prompt_line(line).prompt for line in config.preview.prompts] or [config.trigger]
    return prompts[number % len(prompts)]


def _winner(choices: Choices, candidate: Candidate, file: str = "") -> str:
    text = _(
        "The best: {checkpoint}, at strength {strength:g}.",
        checkpoint=choices.names[candidate.key],
        strength=candidate.strength,
    )
    return render("winner.html", text=text, file=file)


def save(*, choices: Choices) -> dict[str, Any]:
    """Write the file of the winner; returns values of what `build` draws.

    Raises:
        UserError: its checkpoint is gone or damaged, or the server was restarted meanwhile.
    """
    choices.check()
    candidate = choices.next
    if not isinstance(candidate, Candidate):  # the user has started again meanwhile
        return {}
    file = winner.save(_run_of(candidate), candidate)
    return {"result": _winner(choices, candidate, file.name), "save": gr.Button(visible=False)}
