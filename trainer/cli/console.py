"""A run's progress on a terminal."""

import sys

from trainer.runs import events


class Progress:
    """A run's events on stderr: one line that moves on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        self._steps = 0
        self._open = False
        self._phase = ""

    def __call__(self, event: events.Event) -> None:
        """Tell one event."""
        match event:
            case events.Started():
                self._steps = event.steps
                self._line(f"At work on {event.device}, from step {event.step} of {event.steps}.")
            case events.Phase() if event.name != self._phase:
                self._phase = event.name
                self._line(f"{event.name} ...")
            case events.Step():
                self._step(event)
            case events.Warned():
                self._line(f"Note: {event.message}")
            case events.Verified():
                loads = [program for program, fine, _ in event.verdicts if fine]
                self._line(f"{event.file} loads in: {', '.join(loads) or 'none of the programs'}.")
            case events.Finished():
                self._line(f"Finished after {event.step} steps{': ' if event.export else ''}{event.export}")
            case events.Stopped():
                self._line(f"Stopped after {event.step} steps; resume it when you like.")
            case events.Failed():
                self._line(f"Failed: {event.message} {event.remedy}")

    def _step(self, event: events.Step) -> None:
        text = f"step {event.step}/{self._steps}  loss {event.loss:.4f}  {event.seconds:.2f} s/step"
        if sys.stderr.isatty():
            print(f"\r{text}    ", end="", file=sys.stderr, flush=True)
            self._open = True
        elif event.step % max(1, self._steps // 20) == 0 or event.step == self._steps:
            print(text, file=sys.stderr, flush=True)

    def _line(self, text: str) -> None:
        print(("\n" if self._open else "") + text, file=sys.stderr, flush=True)
        self._open = False
