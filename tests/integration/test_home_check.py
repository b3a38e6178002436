"""`limner check-home` names each file that is damaged or gone, and mends what can be computed again."""

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.integration.runs.test_processes import limner, make
from trainer import home_check, paths, runs
from trainer.data import dataset, image_stats, images, originals, reach, uploads
from trainer.runs import Run
from trainer.train import train


def damage(path: Path) -> None:
    """Turn one bit in the middle of a file and keep its date, as a bad disk does."""
    stat, data = path.stat(), bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def damaged() -> dict[str, str]:
    return {finding.file: finding.message for finding in home_check.check() if not finding.note}


@pytest.fixture
def finished(character: Path, tiny_sd: Path) -> Run:
    run = make(str(tiny_sd), steps=4, resolution=64)
    config = run.config()
    preview, export = config.preview.model_copy(update={"every": 2}), config.export.model_copy(update={"peft": True})
    run.save_config(config.model_copy(update={"preview": preview, "export": export}))
    train(run.config(), run)
    return run


def test_each_file_of_a_run_is_missed_when_it_is_damaged_or_gone(finished: Run) -> None:
    assert damaged() == {}
    assert limner("check-home").returncode == 0
    files = [path for path in finished.folder.rglob("*") if path.is_file()]
    files = [path for path in files if path.name not in ("events.jsonl", "worker.log", "worker.lock")]
    names = {path.relative_to(finished.folder).as_posix() for path in files}
    assert {"config.toml", "rin.safetensors", "peft/pytorch_lora_weights.safetensors"} < names
    assert {"previews/000002_0.png", "checkpoints/000004/adapter.safetensors"} < names
    for path in files:
        whole = path.read_bytes()
        damage(path)
        name = path.relative_to(paths.home()).as_posix()
        assert list(damaged()) == [name], name
        path.unlink()
        if path != finished.config_file:  # without it the folder is no run
            assert list(damaged()) == [name], name
        path.write_bytes(whole)
    assert damaged() == {}
    shutil.rmtree(finished.folder / "checkpoints" / "000004")
    assert list(damaged()) == [f"outputs/{finished.id}/checkpoints/000004"]


@pytest.mark.slow
def test_a_damaged_adapter_is_written_again_by_resuming(finished: Run) -> None:
    whole = finished.export.read_bytes()[-1000:]
    damage(finished.export)
    done = limner("check-home", "--repair")
    assert done.returncode == 1
    assert "its checksum is another one. Resume the run: its last checkpoint is whole" in done.stdout
    train(finished.config(), finished)
    assert (finished.export.read_bytes()[-1000:], damaged()) == (whole, {})


@pytest.mark.slow
def test_a_kept_adapter_is_checked_and_a_log_leads_nowhere(finished: Run) -> None:
    paths.adapters().mkdir()
    kept = paths.adapters() / "kept.safetensors"
    shutil.copy(finished.export, kept)
    assert damaged() == {}
    damage(kept)
    assert list(damaged()) == ["outputs/.adapters/kept.safetensors"]
    kept.unlink()
    (finished.folder.parent / "x.safetensors").write_bytes(b"no adapter")
    finished.log.write_text(finished.log.read_text().replace('"rin.safetensors"', '"../x.safetensors"'))
    assert damaged().keys() <= {f"outputs/{finished.id}/peft/pytorch_lora_weights.safetensors"}


@pytest.fixture
def project(home: Path) -> Path:
    """A dataset of three images that were added on the page, with all that is computed from them."""
    folder, incoming = dataset.create("mira"), home / "incoming"
    incoming.mkdir()
    for number, color in enumerate(("red", "green", "blue")):
        Image.new("RGB", (80, 80), color).save(incoming / f"{number}.png")
    uploads.add(folder, [(path.name, path) for path in sorted(incoming.iterdir())])
    dataset.write_caption(folder / "0.png", "a caption")
    image_stats.measure_missing(folder)
    images.thumbnail(folder, folder / "0.png")
    return folder


def test_an_edit_is_no_damage(project: Path) -> None:
    assert damaged() == {}
    Image.new("RGB", (80, 80), "white").save(project / "0.png")
    dataset.write_caption(project / "0.png", "another one")
    assert damaged() == {}
    damage(project / "1.png")
    (project / "2.png").write_bytes(b"saved by a program that failed")
    (project / "0.mask.png").write_bytes(b"no mask")
    assert damaged().keys() == {f"datasets/mira/{name}" for name in ("0.mask.png", "1.png", "2.png")}
    assert "its content has changed, but not its date" in damaged()["datasets/mira/1.png"]


def test_what_is_removed_on_the_page_is_not_missed(project: Path) -> None:
    dataset.remove(project / "1.png")
    assert damaged() == {}
    dataset.restore_last(project)
    assert damaged() == {}
    damage(project / "1.png")
    assert list(damaged()) == ["datasets/mira/1.png"]
    (project / "1.png").unlink()
    done = limner("check-home", "--repair")
    assert done.returncode == 1
    assert "datasets/mira/1.png: It is missing." in done.stdout
    assert limner("check-home", "--accept").returncode == 0
    assert limner("check-home").returncode == 0


def test_what_is_computed_is_repaired_and_what_is_made_is_not(project: Path) -> None:
    reach.keep(project, {path.name: 0.01 for path in reach.sample(project)})
    assert damaged() == {}
    made = {path: path.read_bytes() for path in project.iterdir() if path.is_file()}
    cache = project / paths.CACHE
    thumbnail = next((cache / "thumbnails").glob("*.webp"))
    stats = image_stats.known(project)
    thumbnail.write_bytes(b"RIFF")
    for name in ("measurements.json", "micro.json", "originals.json"):
        (cache / name).write_bytes(b"{")
    assert len(damaged()) == 4
    assert limner("check-home").returncode == 1
    done = limner("check-home", "--repair")
    assert (done.returncode, done.stdout.count("Repaired."), damaged(), image_stats.known(project)) == (0, 4, {}, stats)
    assert originals.known(project).keys() == {"0.png", "1.png", "2.png"}
    assert {path: path.read_bytes() for path in made} == made


@pytest.mark.slow
def test_latents_that_are_damaged_are_computed_again(character: Path, tiny_sd: Path) -> None:
    first, second = make(str(tiny_sd), steps=2, resolution=64), make(str(tiny_sd), steps=2, resolution=64)
    train(first.config(), first)
    for path in (character / paths.CACHE).glob("*.safetensors"):
        damage(path)
    assert len(damaged()) == len(list((character / paths.CACHE).glob("*.safetensors"))) > 3
    train(second.config(), second)
    assert (runs.look(second).state.losses, damaged()) == (runs.look(first).state.losses, {})
