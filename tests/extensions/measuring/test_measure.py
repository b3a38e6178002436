"""Measuring jobs on a tiny real model: the table, a stop and what follows it, another feature model, and refusals."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from limner_extensions.measuring import features
from limner_extensions.measuring import job as jobs
from limner_extensions.measuring.features import FeatureModel
from limner_extensions.measuring.job import MeasureConfig
from limner_extensions.measuring.table import Table
from tests.conftest import CHARACTER, STYLE
from tests.integration.training.test_train import finish, settings
from tests.tiny_feature_models import make_clip, make_dino, make_dinov2
from trainer import config, runs
from trainer.cli.commands import main
from trainer.config import ModelConfig, TrainConfig
from trainer.errors import UserError
from trainer.runs import Run, events
from trainer.sampling.sampler import Sampler
from trainer.worker import work

# peft's, when an adapter is loaded beside another one.
pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning")
SETTINGS = MeasureConfig(images=4, steps=(2, 4, 6))


@pytest.fixture(scope="module")
def trained_once(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trained") / "run"


@pytest.fixture
def run(character: Path, tiny_sd: Path, trained_once: Path, home: Path) -> Run:
    """A finished run with three checkpoints, trained once."""
    folder = home / "outputs" / "2026-01-01_120000_rin"
    if not trained_once.exists():
        finish(runs.create(training(tiny_sd), trained_once))
    shutil.copytree(trained_once, folder)
    return Run(folder)


def training(base: Path, **changes: object) -> TrainConfig:
    return settings(base, checkpoint__every=2, preview__guidance=1.0, preview__steps=1, **changes)


def measured(
    run: Run, options: MeasureConfig = SETTINGS, listen: Callable[[events.Event], None] | None = None
) -> Table:
    job = jobs.create(run, options)
    work(Run(job.folder, listen))
    return jobs.read_table(run)


@pytest.mark.slow
def test_each_checkpoint_has_a_line(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["measure", run.id, "--images", "4", "--step", "6", "--step", "2", "--step", "4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    expected = ["Checkpoint", "Base model", "step 2", "step 4", "step 6"]
    assert [line.split("  ")[0] for line in lines[:5]] == expected
    assert "(0.00 to 0.00)" in lines[1]
    assert lines[5].startswith("Images for each line: 2 prompts with 2 seeds, compared with 14 training images")
    assert lines[6] == "Too few prompts to compare checkpoints: take 12 images or more."
    table = jobs.read_table(run)
    assert [(row.step, row.strength) for row in table.rows] == [(0, 0), (2, 1), (4, 1), (6, 1)]
    assert (table.prompts, table.seeds, table.references) == (2, 2, 14)
    base, *checkpoints = table.rows
    assert base.figures["drift"].value == pytest.approx(0, abs=1e-9)
    assert all(row.figures["drift"].value > 0 for row in checkpoints)
    assert not any(row.differences for row in table.rows), "of two prompts nothing can be said"
    assert runs.look(jobs.folder_of(run)).status == "finished"
    assert [each.id for each in runs.all_runs()] == [run.id], "a job is not among the runs"
    assert len(list((run.folder / "measured" / "images").glob("*.png"))) == 4 * 8
    assert main(["measure", run.id, "--images", "3"]) == 2
    assert "images" in capsys.readouterr().err


@pytest.mark.slow
def test_a_stopped_job_goes_on_with_the_same_figures(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    stops = iter([("Generating images", 13), ("Comparing images", 9), ("Comparing training images", 3)])
    drawn: list[str] = []
    generate = Sampler.generate

    def counting(self: Sampler, request: config.PictureConfig, progress: None = None) -> object:
        drawn.append(request.out)
        return generate(self, request, progress)

    monkeypatch.setattr(Sampler, "generate", counting)
    job = jobs.create(run, SETTINGS)
    for name, number in stops:

        def stop(event: events.Event, name: str = name, number: int = number) -> None:
            if isinstance(event, events.Phase) and (event.name, event.done) == (name, number):
                runs.request(job, "stop")

        work(Run(job.folder, stop))
        assert runs.look(job).status == "stopped"
        assert jobs.read_table(run) is None
    parts = measured(run)
    assert len(drawn) == len(set(drawn)) == 4 * 8, "no image was generated twice"
    whole = Run(run.folder.with_name("2026-01-01_120001_rin"))
    shutil.copytree(run.folder, whole.folder, ignore=shutil.ignore_patterns("measured"))
    assert measured(whole) == parts


def test_what_cannot_be_measured_is_refused_in_words(run: Run, tiny_sd: Path) -> None:
    with pytest.raises(UserError, match=r"There is no checkpoint of step 3\.") as refusal:
        jobs.create(run, MeasureConfig(steps=(3,)))
    assert refusal.value.remedy == "There are those of 2, 4, 6."
    with pytest.raises(UserError, match="This run has no checkpoint yet"):
        jobs.create(runs.create(training(tiny_sd)), MeasureConfig())
    job = jobs.create(run, MeasureConfig(images=4, features="/nowhere/at-all"))
    assert work(job) == 2
    state = runs.look(job).state
    assert state.message == "There is no feature model 'at-all'."
    assert not (job.folder / "images").exists(), "before any image was generated"
    (job.folder / "ask" / "start").touch()
    with pytest.raises(UserError, match="already being measured"):
        jobs.create(run, MeasureConfig())
    (job.folder / "ask" / "start").unlink()
    (run.folder / "ask" / "start").touch()
    with pytest.raises(UserError, match="still running"):
        jobs.create(run, MeasureConfig())


CPU = torch.device("cpu")
MAKERS = {"clip": make_clip, "dinov2": make_dinov2, "dino": make_dino}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("features")
    return {name: make(folder / name) for name, make in MAKERS.items()}


def picture(name: str = "01.png") -> Image.Image:
    return Image.open(CHARACTER / name).convert("RGB")


def check(model: FeatureModel) -> None:
    """Features follow from the image, and from nothing else."""
    first, again, other = model.image(picture()), model.image(picture()), model.image(picture("05.png"))
    assert (first.dtype, first.dim()) == (torch.float32, 1)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.isfinite().all()


@pytest.mark.parametrize(("name", "title"), [("clip", "CLIP"), ("dinov2", "DINOv2"), ("dino", "DINO")])
def test_a_model_in_a_folder(models: dict[str, Path], name: str, title: str) -> None:
    model = features.load(str(models[name]), ModelConfig(), "", CPU)
    assert model.name == f"{name} ({title})"
    check(model)
    texts = model.texts(["a girl", "a very long prompt " * 20])
    if name == "clip":
        assert texts.shape == (2, len(model.image(picture())))
        assert not torch.equal(texts[0], texts[1])
    else:
        assert texts is None
    assert model.key == features.load(str(models[name]), ModelConfig(), "", CPU).key
    assert len({features.load(str(path), ModelConfig(), "", CPU).key for path in models.values()}) == 3


@pytest.mark.slow
def test_images_of_a_subject_are_close_in_its_features() -> None:
    model = features.load("", ModelConfig(base="micro"), "", CPU)
    ours = torch.stack([model.image(picture(f"{number:02}.png")) for number in range(1, 7)])
    others = torch.stack([model.image(Image.open(STYLE / f"{n:02}.png").convert("RGB")) for n in range(1, 7)])
    both = torch.nn.functional.normalize(torch.cat([ours, others]) - torch.cat([ours, others]).mean(0))
    close = both @ both.T
    assert close[:6, :6].mean() > close[:6, 6:].mean() + 0.2
