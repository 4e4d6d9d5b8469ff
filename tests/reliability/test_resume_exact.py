"""A run that was stopped and resumed, anywhere and in any way, ends with the same bits."""

from collections.abc import Callable
from pathlib import Path

import pytest
from harness import EVERY_STEP, FAULTY, Case, Result, checkpoint, mlp_case, result, write_mnist

Reference = Callable[[Case], Result]
GO_ON = "to go on type: cvtrain "


def stop(case: Case, *extra: str, at: int, since: int = 0) -> None:
    """SIGTERM in the middle of step `at` of a run that begins after step `since`."""
    resume = ["resume=auto"] if since else []
    fault = f"losses {at - since} SIGTERM"
    case.run(
        *resume, *extra, fault=fault, code=143, last=f"stopped by SIGTERM at step {at};.*{GO_ON}"
    )
    assert case.status()["step"] == at


@pytest.fixture
def files(tmp_path: Path, shapes: Path) -> Case:
    """Images read by workers, augmented one by one; four steps an epoch, twelve in all."""
    jitter = "+data.augment.jitter={_target_:torchvision.transforms.v2.ColorJitter,brightness:0.5}"
    return Case(
        tmp_path / "case",
        *("data=shapes", "data.size=16", "data.train_per_class=8", "data.val_per_class=2"),
        *(f"data.root={shapes}", "data.batch_size=16", jitter),
        *("model=cnn", "model.widths=[8,16]", "trainer.duration=3ep", *EVERY_STEP, *FAULTY),
        inputs=(shapes,),
    )


@pytest.fixture
def arrays(tmp_path: Path, mnist: Path) -> Case:
    """Digits under the distortions of the recipe; six steps an epoch, 18 in all."""
    return Case(
        tmp_path / "case",
        *("model=lenet5", "data=mnist", f"data_dir={mnist}", "recipe=lenet5_mnist_distorted"),
        *(
            "data.batch_size=16",
            "scheduler.warmup=5st",
            "trainer.duration=3ep",
            *EVERY_STEP,
            *FAULTY,
        ),
        inputs=(mnist,),
    )


# Within an epoch of six steps: the first, in the middle, the last, the first of the next.
@pytest.mark.fault("R1")
@pytest.mark.parametrize("step", [1, 3, 6, 7])
def test_arrays(arrays: Case, uninterrupted: Reference, step: int) -> None:
    stop(arrays, at=step)
    arrays.run("resume=auto")
    assert result(arrays) == uninterrupted(arrays)


@pytest.mark.fault("R1")
def test_a_balanced_order(mlp: Case, uninterrupted: Reference) -> None:
    """Samples drawn with replacement, classes weighed by their counts."""
    mlp.overrides += ["data.sampler=balanced", "task.class_weights=auto"]
    stop(mlp, at=8)
    mlp.run("resume=auto")
    assert result(mlp) == uninterrupted(mlp)


@pytest.mark.fault("R1")
@pytest.mark.fault("R2")
def test_files_read_by_another_number_of_workers(files: Case, uninterrupted: Reference) -> None:
    stop(files, "trainer.workers=2", at=1)
    stop(files, "trainer.workers=0", at=2, since=1)
    stop(files, "trainer.workers=2", at=4, since=2)
    stop(files, "trainer.workers=3", at=5, since=4)
    files.run("resume=auto", "trainer.workers=2")
    assert result(files) == uninterrupted(files)


@pytest.mark.fault("R3")
def test_everything_at_once_stopped_within_a_step(
    tmp_path: Path, mnist: Path, uninterrupted: Reference
) -> None:
    """bf16, three micro-batches a step, average of the weights, dropout, batch norm, warm-up."""
    case = Case(
        tmp_path / "case",
        *(
            "data=mnist",
            f"data_dir={mnist}",
            "data.batch_size=24",
            "model=cnn",
            "model.widths=[8,16]",
        ),
        *("model.dropout=0.3", "trainer.precision=bf16", "trainer.accumulate=3", "trainer.ema=0.9"),
        *(
            "scheduler=cosine",
            "scheduler.warmup=3st",
            "trainer.duration=3ep",
            "trainer.clip_norm=1",
        ),
        *(*EVERY_STEP, *FAULTY),
        inputs=(mnist,),
    )
    # The second of three micro-batches: the step is finished before anything is saved.
    case.run(fault="losses 14 SIGTERM", code=143, last="stopped by SIGTERM at step 5;")
    case.run("resume=auto")
    assert result(case) == uninterrupted(case)


@pytest.mark.fault("R1")
def test_either_phase_of_fine_tuning(files: Case, uninterrupted: Reference) -> None:
    """The head alone for an epoch and a half of four steps, then everything but one layer."""
    files.overrides += [
        *("trainer.head_first=6st", "trainer.after_head=0.5", "model.freeze=[stages.0]"),
        *("optimizer.layer_decay=0.5", "trainer.ema=0.9"),
    ]
    stop(files, at=3)
    stop(files, at=6, since=3)
    stop(files, at=9, since=6)
    files.run("resume=auto")
    assert result(files) == uninterrupted(files)


def test_lines_that_cover_several_steps(mlp: Case, uninterrupted: Reference) -> None:
    """Stopped between two log points, the line of the next one still covers what came before."""
    mlp.overrides += ["trainer.log_every=4st", "trainer.ema=0.9"]
    stop(mlp, at=7)
    mlp.run("resume=auto")
    assert result(mlp) == uninterrupted(mlp)


def test_a_schedule_that_remembers(mlp: Case, uninterrupted: Reference) -> None:
    """The plateau schedule depends on what was measured, before the stop too."""
    plateau = ("scheduler=plateau", "scheduler.patience=1", "scheduler.factor=0.5")
    mlp.overrides = [word for word in mlp.overrides if word != "scheduler=constant"]
    mlp.overrides += [*plateau, "eval.every=1st"]
    stop(mlp, at=15)
    mlp.run("resume=auto")
    assert result(mlp) == uninterrupted(mlp)
    rates = [line["train/lr"] for line in mlp.lines() if "train/lr" in line]
    assert rates[-1] < rates[15] < rates[0]  # dropped before the stop, and after it


@pytest.mark.fault("R7")
def test_changed_rate_is_refused(mlp: Case) -> None:
    stop(mlp, at=8)
    changed = r"error\[RESUME-CHANGED\]: .*optimizer\.lr: 0\.02 -> 0\.005"
    mlp.run("resume=auto", "optimizer.lr=0.005", code=2, last=changed)


@pytest.mark.fault("R7")
def test_changed_rate_is_used_where_allowed(mlp: Case) -> None:
    stop(mlp, at=8)
    mlp.run("resume=auto", "optimizer.lr=0.005", "resume_allow=[optimizer.lr]")
    rates = [line["train/lr"] for line in mlp.lines() if "train/lr" in line]
    assert rates == [0.02] * 8 + [0.005] * 16
    groups = checkpoint(mlp.run_dir / "checkpoints/last.pt")["optimizer"]["param_groups"]
    assert [(group["lr"], group["initial_lr"]) for group in groups] == [(0.005, 0.005)]


@pytest.mark.fault("R7")
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("data.batch_size=8", r"data\.batch_size: 16 -> 8"),
        ("seed=1", "seed: 0 -> 1"),
        ("model.hidden=[17]", r"model\.hidden.*17"),
        ("trainer.precision=bf16", r"trainer\.precision: auto -> bf16"),
    ],
)
def test_another_run_is_no_resume(finished: Case, change: str, named: str) -> None:
    finished.run("resume=auto", change, code=2, last=rf"error\[RESUME-CHANGED\]: .*{named}")


@pytest.mark.fault("R7")
def test_other_data_are_no_resume(mlp: Case, tmp_path: Path) -> None:
    other = write_mnist(tmp_path / "other", train=100)
    stop(mlp, at=8)
    changed = r"error\[RESUME-CHANGED\]: .*data: \w+ -> \w+"
    mlp.run("resume=auto", f"data_dir={other}", code=2, last=changed)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, mnist: Path) -> Case:
    case = mlp_case(tmp_path_factory.mktemp("finished") / "case", mnist)
    case.run()
    return case


@pytest.mark.fault("R7")
def test_finished_run_is_left_as_it_is(finished: Case) -> None:
    finished.run("resume=auto", state=None)


@pytest.mark.fault("R7")
def test_finished_run_is_extended(tmp_path: Path, mnist: Path, uninterrupted: Reference) -> None:
    case = mlp_case(tmp_path / "case", mnist)
    case.overrides.remove("trainer.duration=4ep")
    case.run("trainer.duration=2ep")
    case.run("resume=auto", "trainer.duration=4ep", "resume_allow=[trainer.duration]")
    got = result(case)
    case.overrides.append("trainer.duration=4ep")
    assert got == uninterrupted(case)
