"""What starting from other weights is worth: minutes of training, by night."""

import shutil
from pathlib import Path

import pytest
from tiny import command, summary

from cvtrain.data.shapes_draw import CLASSES, draw_folder

KNOWN, NEW = CLASSES[:4], CLASSES[4:]
SEEDS = (0, 1, 2)
# Drawn at the size at which they are seen: nothing is cut off.
PLAIN = ("data.image_size=64", "data.crop_fraction=1", "augment=[flip]", "trainer.threads=1")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`known`: 250 images of each of four shapes; `new`: 40 of each of the other four."""
    root = tmp_path_factory.mktemp("shapes")
    draw_folder(root / "all", size=64, train_per_class=250, val_per_class=50, seed=1)
    for name, classes, count in (("known", KNOWN, 250), ("new", NEW, 40)):
        for split in ("train", "val"):
            for label in classes:
                folder = root / name / split / label
                folder.mkdir(parents=True)
                for file in sorted((root / "all" / split / label).iterdir())[:count]:
                    shutil.copy(file, folder)
    return root


def error(*words: str, cwd: Path, run: str) -> float:
    done = command("model=cnn", "data=folder", *PLAIN, *words, f"hydra.run.dir={run}", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return summary(cwd / run)["val/top1_err"]


@pytest.mark.nightly
def test_fine_tuning_beats_scratch(shapes: Path) -> None:
    """By 5 points at least for each seed, whichever of these rates is the best from scratch."""
    known = ("data.root=known", "recipe=cnn_shapes", "trainer.duration=15ep")
    assert error(*known, cwd=shapes, run="known_run") < 5
    for seed in SEEDS:
        new = ("data.root=new", f"seed={seed}", "trainer.duration=15ep")
        tuned = error(
            *(*new, "recipe=finetune", "model.pretrained=known_run", "optimizer.lr=0.1"),
            cwd=shapes,
            run=f"tuned_{seed}",
        )
        scratch = {
            rate: error(
                *(*new, "recipe=cnn_shapes", f"optimizer.lr={rate}"),
                cwd=shapes,
                run=f"scratch_{seed}_{rate}",
            )
            for rate in (0.02, 0.05, 0.1, 0.2)
        }
        print(f"seed {seed}: fine-tuned {tuned:.1f} %, from scratch {scratch}")
        assert tuned + 5 <= min(scratch.values())
