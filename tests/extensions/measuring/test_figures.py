"""Prompts near the captions, none of which was trained, and figures of features whose meaning is known."""

from pathlib import Path

import numpy as np
import pytest

from limner_extensions.measuring import prompts
from limner_extensions.measuring.figures import Array, Images, Scale, rows
from limner_extensions.measuring.prompts import Prompt
from limner_extensions.measuring.table import Figure, Measure, Row, Table, notes, verdict
from trainer import config
from trainer.config import TrainConfig
from trainer.data.dataset import Example

PROMPTS, SEEDS, SIZE = 8, 2, 40
SUBJECT, OTHER = 0, 1  # directions in features; each prompt has one of its own behind them


def vectors(*shape: int, seed: int) -> Array:
    return np.random.default_rng(seed).normal(size=(*shape, SIZE)) * 0.3


def images(called: float, plain: float, *, prompt: float = 3.0, seed: int = 1, noise: int = 1) -> Images:
    """Images that show the subject this much, with and without the trigger, and their prompt; a seed has its noise."""

    def drawn(subject: float, kind: int) -> Array:
        features = vectors(PROMPTS, SEEDS, seed=noise) + 0.1 * vectors(PROMPTS, SEEDS, seed=100 * seed + kind)
        features[..., SUBJECT] += subject
        for number in range(PROMPTS):
            features[number, :, 10 + number] += prompt
        return features

    return Images(drawn(called, 1), drawn(plain, 2))


def training(count: int = 12) -> Array:
    """Training images: the subject, and what is different in each."""
    features = vectors(count, seed=5)
    features[:, SUBJECT] += 5.0
    return features


BASE = images(0.0, 0.0)


def values(measured: Images, texts: Array | None = None, count: int = 12) -> dict[Measure, float]:
    figures, _missing = Scale(BASE, training(count), texts).values(measured)
    return {name: float(each.mean()) for name, each in figures.items()}


def test_each_figure_is_zero_of_the_base_and_rises_with_what_it_is_named_for() -> None:
    own = values(BASE)
    assert own["likeness"] == own["leak"] == 0
    assert own["drift"] == pytest.approx(0, abs=1e-9)
    assert own["copying"] == 0
    assert own["adherence"] == pytest.approx(1, abs=0.05)
    right, leaking = values(images(6.0, 0.0)), values(images(6.0, 2.0))
    assert 0.7 < right["likeness"] < 1.1
    assert right["likeness"] == pytest.approx(leaking["likeness"])
    assert abs(right["leak"]) < 0.05 < 0.3 < leaking["leak"] < leaking["likeness"]
    assert right["drift"] < 0.2 < leaking["drift"]
    copies = training()[:8][:, None].repeat(SEEDS, 1)
    assert values(Images(copies, BASE.plain))["copying"] == pytest.approx(1)
    fresh = vectors(PROMPTS, SEEDS, seed=77)
    fresh[..., SUBJECT] += 5.0
    assert values(Images(fresh, BASE.plain))["copying"] < 0.1


def test_drift_that_is_not_toward_the_subject_is_no_leak() -> None:
    moved = images(0.0, 0.0)
    assert moved.plain is not None
    moved.plain[..., OTHER] += 4.0
    drifted = values(moved)
    assert abs(drifted["leak"]) < 0.05
    assert drifted["drift"] > 0.5
    assert values(images(0.0, 0.0, noise=2))["drift"] == pytest.approx(1, abs=0.25), "as much as another seed's"
    assert 0 <= values(images(0.0, -3.0))["leak"] < 0.02, "away from the training images"


@pytest.mark.parametrize("texts", [None, np.eye(PROMPTS, SIZE, 10)], ids=["images alone", "texts"])
def test_adherence_answers_to_the_prompt_not_the_subject(texts: Array | None) -> None:
    assert values(images(0.0, 0.0), texts)["adherence"] == pytest.approx(1, abs=0.05)
    weak, deaf = values(images(3.0, 0.0, prompt=1.5), texts), values(images(3.0, 0.0, prompt=0.0), texts)
    assert abs(deaf["adherence"]) < 0.15 < weak["adherence"] < 0.9


def test_what_cannot_be_measured_is_missing_with_its_reason() -> None:
    two = Scale(BASE, training(2), None)
    assert two.values(BASE)[1] == {"copying": "few images"}
    untriggered = Images(BASE.called, None)
    assert Scale(untriggered, training(), None).values(untriggered)[1] == {"leak": "no trigger", "drift": "no trigger"}
    alike = Scale(BASE, BASE.called[:, 0], None).values(BASE)[1]
    assert alike["likeness"] == alike["leak"] == "alike"
    single = Images(BASE.called[:1], BASE.called[:1])
    assert Scale(BASE, training(), None, own=True).values(BASE)[1] == {"likeness": "own features"}
    assert Scale(single, training(), None).values(single)[1]["adherence"] == "one prompt"
    deaf = images(0.0, 0.0, prompt=0.0, noise=3)
    assert Scale(deaf, training(), None).values(deaf)[1]["adherence"] == "same prompts"
    assert Scale(BASE, training(1), None).values(images(6.0, 0.0))[0]["likeness"].mean() > 0.7


def table_of(**measured: Images) -> dict[int, Row]:
    cells = {(int(name.removeprefix("at")), 1.0): each for name, each in measured.items()}
    listed, missing = rows(cells, Scale(BASE, training(), None), BASE)
    assert missing == {}
    return {row.step: row for row in listed}


def test_a_difference_is_clear_if_its_interval_excludes_zero() -> None:
    listed = table_of(at100=images(2.0, 0.0, seed=2), at200=images(6.0, 0.0, seed=3), at300=images(6.0, 2.0, seed=4))
    assert listed[0].figures["likeness"] == Figure(0, 0, 0)
    assert listed[300].differences == listed[0].differences == {}
    assert "likeness" in listed[100].worse
    assert {"leak", "drift"} <= {*listed[100].better} & {*listed[200].better}
    for row in listed.values():
        for figure in (*row.figures.values(), *row.differences.values()):
            assert figure.low <= figure.value <= figure.high
    assert verdict(listed[300]) == verdict(listed[0]) == ""
    assert verdict(listed[200]) == "clearly better: Leak, Drift"
    sure = Row(100, 1.0, {}, {"likeness": Figure(0.04, 0.03, 0.05), "leak": Figure(-0.06, -0.07, -0.05)})
    assert (sure.better, sure.worse) == (("leak",), ()), "what is sure, but small, is not clear either"


def test_the_same_images_have_no_clear_difference() -> None:
    """In one draw of features in twenty, or so, a figure is clear by chance: most of these have none."""
    quiet = 0
    for seed in range(10, 20):
        listed = table_of(at100=images(5.0, 0.5, seed=seed), at200=images(5.0, 0.5, seed=seed + 50))
        quiet += verdict(listed[100]) == "no clear difference from the last checkpoint"
    assert quiet >= 8


def test_the_best_is_a_checkpoint_and_notes_say_how() -> None:
    def table_of(*leaks: tuple[float, float, float, float]) -> Table:
        """Steps 10, 20 and 30, the last: figure, half of its interval, difference from the last, half of its."""
        figures = [Figure(leak, leak - half, leak + half) for leak, half, _less, _half in leaks]
        apart = [{"leak": Figure(less, less - half, less + half)} for _leak, _half, less, half in leaks[:-1]]
        base = Row(0, 0.0, {"leak": Figure(0, 0, 0)})
        pairs = zip((10, 20, 30), figures, [*apart, {}][-len(leaks) :], strict=False)
        listed = [Row(step, 1.0, {"leak": figure}, differences) for step, figure, differences in pairs]
        missing = dict.fromkeys(("adherence", "likeness", "copying", "drift"), "one prompt")
        return Table("CLIP", 8, 2, 12, (base, *listed), missing)

    for leaks, expected in (
        ([(0.5, 0.1, 0.3, 0.1), (0.4, 0.1, 0.2, 0.1), (0.2, 0.1, 0, 0)], 30),  # the last, by both differences
        ([(0.5, 0.1, 0.3, 0.1), (0.3, 0.1, 0.1, 0.2), (0.2, 0.1, 0, 0)], None),
        ([(0.1, 0.1, -0.3, 0.1), (0.5, 0.1, 0.1, 0.2), (0.4, 0.1, 0, 0)], 10),  # by one, and by the intervals
        ([(0.1, 0.2, -0.3, 0.1), (0.2, 0.1, -0.2, 0.1), (0.4, 0.1, 0, 0)], None),
        ([(0.1, 0.0, 0, 0)], None),
    ):
        table = table_of(*leaks)
        best = table.best("leak")
        assert (best and best.step) == expected
        assert ("In no measure" in "".join(notes(table))) == (expected is None and len(leaks) > 1)
    table = Table("CLIP", 8, 2, 12, table.rows[1:], {"adherence": "one prompt"})
    assert "8 prompts with 2 seeds, compared with 12 training images in the features of CLIP" in notes(table)[0]
    assert notes(table)[1:] == ["Adherence is missing: There is only one prompt."]


def settings(**changes: object) -> TrainConfig:
    return config.build({"name": "rin", "dataset": "rin", "trigger": "rin", **changes})


def example(caption: str, trigger: str = "rin") -> Example:
    return Example(Path(f"{caption or 'none'}.png"), caption, 64, 64, trigger)


TRAINED = [
    example(text) for text in ("smiling, red shirt, indoors", "sad, blue shirt, outdoors", "angry, hat, at night")
]


def called(*arguments: object, **options: object) -> list[str]:
    return [prompt.called for prompt in prompts.choose(*arguments, **options)]  # type: ignore[arg-type]


def test_held_out_captions_come_first_and_short_ones_last() -> None:
    held = [example("laughing, green shirt, indoors")]
    chosen = called(settings(preview={"prompts": ["rin, on the moon --d 7", "without it"]}), TRAINED, held, 12)
    assert chosen[:3] == ["rin, laughing, green shirt, indoors", "rin, on the moon", "rin, sad, hat, indoors"]
    assert chosen[-1] in {f"rin, {short}" for short in prompts.SHORT["character"].split(", ")}
    assert len(set(chosen)) == 12
    learned = {"rin, smiling, red shirt, indoors", "rin, sad, blue shirt, outdoors", "rin, angry, hat, at night"}
    again = called(settings(preview={"prompts": sorted(learned)}), TRAINED, [TRAINED[0]], 14)
    assert not learned & set(again), "none was trained"
    short = prompts.SHORT["style"].split(", ")[:8]
    without = prompts.choose(settings(preset="style"), [example("")], [], 8)
    assert without == [Prompt(f"rin, {prompt}", prompt) for prompt in short]


def test_the_plain_prompt_has_the_class_word_or_nothing_for_the_trigger() -> None:
    captions = [example("smiling, indoors"), example("sad, outdoors")]
    assert prompts.choose(settings(), captions, [], 1) == [Prompt("rin, sad, indoors", "sad, indoors")]
    own = settings(class_word="girl")
    assert prompts.choose(own, captions, [], 1) == [Prompt("rin, sad, indoors", "girl, sad, indoors")]
    plain = [example(each.caption, "") for each in TRAINED]
    chosen = prompts.choose(settings(trigger=""), plain, [], 4)
    assert chosen[0] == Prompt("smiling, blue shirt, at night", "smiling, blue shirt, at night")
