"""Measuring jobs on a tiny real model, and on the page: the table, a stop and what follows it, refusals."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from filelock import FileLock
from PIL import Image

from limner_extensions.measuring import endpoints, features, panel
from limner_extensions.measuring import job as jobs
from limner_extensions.measuring.html import section
from limner_extensions.measuring.job import MeasureConfig
from limner_extensions.measuring.table import Figure, Row, Table
from tests.conftest import CHARACTER, STYLE
from tests.integration.families.models import load
from tests.integration.training.test_train import finish, settings
from tests.tiny_captioners import VISION, clip_images, save_random
from trainer import config, paths, runs
from trainer.base_models import MICRO_FOLDER
from trainer.base_models.spec import Blocks
from trainer.cli.commands import main
from trainer.config import ModelConfig, TrainConfig
from trainer.errors import UserError
from trainer.runs import Run, archive, events
from trainer.sampling import sampler
from trainer.sampling.sampler import Sampler
from trainer.worker import work
from ui.state import page_memory
from ui.state.sampler_client import SamplerClient

CROP = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}


# Models of a few thousand parameters.


def make_clip(folder: Path) -> Path:
    tokenizer = transformers.AutoTokenizer.from_pretrained(MICRO_FOLDER / "tokenizer", local_files_only=True)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    marks = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = transformers.CLIPTextConfig(vocab_size=len(tokenizer), max_position_embeddings=20, **sizes, **marks)
    vision = transformers.CLIPVisionConfig(**VISION)
    settings = transformers.CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)
    save_random(transformers.CLIPModel, settings, folder)
    clip_images().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_dinov2(folder: Path) -> Path:
    save_random(transformers.Dinov2Model, transformers.Dinov2Config(**VISION), folder)
    transformers.BitImageProcessor(**CROP).save_pretrained(folder)
    return folder


def make_dino(folder: Path) -> Path:
    """Without the pooling layer, as those that are published."""
    save_random(transformers.ViTModel, transformers.ViTConfig(**VISION), folder, add_pooling_layer=False)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


# peft's, when an adapter is loaded beside another one.
pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning")
SETTINGS = MeasureConfig(images=4, steps=(6,))


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
    assert main(["measure", run.id, "--images", "4", "--step", "6", "--step", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[:4]] == ["Checkpoint", "Base model", "step 2", "step 6"]
    assert "(0.00 to 0.00)" in lines[1]
    assert lines[4].startswith("Images for each line: 2 prompts with 2 seeds, compared with 14 training images")
    assert lines[5] == "Too few prompts to compare checkpoints: take 12 images or more."
    table = jobs.read_table(run)
    assert [(row.step, row.strength) for row in table.rows] == [(0, 0), (2, 1), (6, 1)]
    assert (table.prompts, table.seeds, table.references) == (2, 2, 14)
    base, *checkpoints = table.rows
    assert base.figures["drift"].value == pytest.approx(0, abs=1e-9)
    assert all(row.figures["drift"].value > 0 for row in checkpoints)
    assert not any(row.differences for row in table.rows), "of two prompts nothing can be said"
    assert runs.look(jobs.folder_of(run)).status == "finished"
    assert [each.id for each in runs.all_runs()] == [run.id], "a job is not among the runs"
    assert len(list((run.folder / "measured" / "images").glob("*.png"))) == 3 * 8
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
    assert len(drawn) == len(set(drawn)) == 2 * 8, "no image was generated twice"
    whole = Run(run.folder.with_name("2026-01-01_120001_rin"))
    shutil.copytree(run.folder, whole.folder, ignore=shutil.ignore_patterns("measured"))
    assert measured(whole) == parts


@pytest.mark.slow
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


@pytest.mark.parametrize(("name", "title"), [("clip", "CLIP"), ("dinov2", "DINOv2"), ("dino", "DINO")])
def test_a_model_in_a_folder(models: dict[str, Path], name: str, title: str) -> None:
    """Features follow from the image, and from nothing else."""
    model = features.load(str(models[name]), ModelConfig(), "", CPU)
    assert model.name == f"{name} ({title})"
    first, again, other = model.image(picture()), model.image(picture()), model.image(picture("05.png"))
    assert (first.dtype, first.dim()) == (torch.float32, 1)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.isfinite().all()
    texts = model.texts(["a girl", "a very long prompt " * 20])
    if name == "clip":
        assert texts.shape == (2, len(first))
        assert not torch.equal(texts[0], texts[1])
    else:
        assert texts is None
    assert model.key == features.load(str(models[name]), ModelConfig(), "", CPU).key
    assert len({features.load(str(path), ModelConfig(), "", CPU).key for path in models.values()}) == 3


@pytest.mark.slow
def test_features_are_read_from_the_blocks_that_a_family_names(bases: dict[str, Path]) -> None:
    family = load(bases["flux"])
    model = features.DenoiserFeatures(family, "", sampler.encode(family, [""])[""])
    assert features._middle(family) is family.denoiser.transformer_blocks[1]
    transformer = family.spec.transformer
    family.spec = replace(family.spec, transformer=replace(transformer, blocks={"levels": Blocks("levels", {}, {})}))
    with pytest.raises(UserError, match=r"no blocks to read features from .* that FLUX\.1 has for them: levels"):
        model.image(Image.new("RGB", (64, 64)))


@pytest.mark.slow
def test_images_of_a_subject_are_close_in_its_features() -> None:
    model = features.load("", ModelConfig(base="micro"), "", CPU)
    ours = torch.stack([model.image(picture(f"{number:02}.png")) for number in range(1, 7)])
    others = torch.stack([model.image(Image.open(STYLE / f"{n:02}.png").convert("RGB")) for n in range(1, 7)])
    both = torch.nn.functional.normalize(torch.cat([ours, others]) - torch.cat([ours, others]).mean(0))
    close = both @ both.T
    assert close[:6, :6].mean() > close[:6, 6:].mean() + 0.2


def figures(value: float) -> dict[Any, Figure]:
    return {"likeness": Figure(value, value - 0.1, value + 0.1), "leak": Figure(value / 2, 0.0, value)}


WORSE = {"likeness": Figure(-0.2, -0.3, -0.1), "leak": Figure(-0.1, -0.2, 0.1)}
ROWS = (Row(0, 0.0, figures(0.0)), Row(2, 1.0, figures(0.5), WORSE), Row(5, 1.0, figures(0.7)))
MISSING: dict[Any, Any] = {"adherence": "one prompt", "copying": "few images", "drift": "no trigger"}
TABLE = Table("<CLIP>", 8, 2, 14, ROWS, MISSING)


@pytest.fixture
def measurable(finished: Run) -> Run:
    folder = finished.folder / "checkpoints" / "000002"
    folder.mkdir()
    (folder / "adapter.safetensors").write_bytes(b"b")
    return finished


def start(key: str, started: list[Run], **settings: Any) -> list[Any]:  # noqa: ANN401 - any settings
    return panel.start(key, MeasureConfig(**settings), SamplerClient(), started.append)


def test_the_table_is_on_the_page_in_reports_and_in_the_api(measurable: Run) -> None:
    assert section(measurable) == ("Checkpoints, measured", "")
    made = jobs.create(measurable, MeasureConfig())
    made.report(events.Started(step=0, steps=1, pid=1, device="CPU"))
    made.report(events.Finished(step=1, export=""))
    jobs.save_table(made, TABLE)
    assert jobs.read_table(measurable) == TABLE
    html, _begin, stop, timer = panel.draw(measurable.id).values()
    assert (stop.visible, timer.active) == (False, False)
    some = ["Base model", "step 2", "<b>0.70</b>", "(0.60 to 0.80)", "clearly worse: Likeness", "&lt;CLIP&gt;"]
    for words in (*some, "Adherence is missing: There is only one prompt."):
        assert words in html, words
        assert words in section(measurable)[1], words
    assert "<b>0.25</b>" not in html, "its difference from the last may be chance"
    assert endpoints.measured(measurable.id)["table"]["rows"][2]["figures"]["leak"]["value"] == 0.35
    facts = '"features": "x", "prompts": 1, "seeds": 1, "references": 1'
    for broken in ("{}", f'{{{facts}, "rows": [{{"step": 1, "strength": 1, "figures": {{}}}}]}}'):
        (made.folder / "table.json").write_text(broken)
        assert jobs.read_table(measurable) is None


def test_an_adapter_from_elsewhere_has_no_checkpoints(home: Path) -> None:
    for key in ("", "kept:other", None, "2026-04-01_100000_deleted", "2026-04-01_100000_deleted@2"):
        html, begin, stop, timer = panel.draw(key).values()
        assert "trained here" in html
        assert (begin.interactive, stop.visible, timer.active) == (False, False, False)
    with pytest.raises(UserError, match="no checkpoints to compare"):
        start("", [])


def test_a_measuring_run_stays_and_its_model_is_remembered(measurable: Run, tmp_path: Path) -> None:
    started: list[Run] = []
    with pytest.raises(UserError, match="There is no feature model 'nothing'"):
        start(measurable.id, started, features="/nowhere/nothing")
    paths.models().mkdir()
    listed, elsewhere = make_dinov2(paths.models() / "dino"), make_dinov2(tmp_path / "other")
    assert panel.show(measurable.id)["features"].value == ""
    start(measurable.id, started, features=str(elsewhere))
    chosen = panel.show(measurable.id)["features"]
    assert chosen.value == page_memory.feature_model() == str(elsewhere)
    assert [folder for _label, folder in chosen.choices] == ["", str(listed), str(elsewhere)]
    with FileLock(started[0].lock):
        for change in (lambda: archive.delete(measurable), lambda: archive.rename(measurable, "other")):
            with pytest.raises(UserError, match="are being measured"):
                change()
    assert archive.rename(measurable, "other") in runs.all_runs()
