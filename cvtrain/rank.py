"""One of the processes that `launch.py` starts: `python -m cvtrain.rank FOLDER`."""

import json
import os
import sys
import traceback
from importlib import import_module
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from cvtrain.compose import Composed, to_config
from cvtrain.engine.signals import end_with_parent
from cvtrain.errors import CvtrainError
from cvtrain.launch import JOB, RESULT
from cvtrain.outcome import FOLDER, write_error


def main(folder: Path) -> int:
    """Run the job that lies in `folder`. Returns the exit code."""
    end_with_parent()
    job = json.loads((folder / JOB).read_text())
    rank, sys.argv = int(os.environ["RANK"]), job["argv"]
    os.environ[FOLDER] = str(folder)
    try:
        do = getattr(import_module(f"cvtrain.verbs.{job['verb']}"), job["verb"])
        figure = do(composed_of(job), job["overrides"], **job["keys"])
        if rank == 0:
            (folder / RESULT).write_text(json.dumps(figure))
        return 0
    except CvtrainError as error:
        if "traceback=true" in job["overrides"]:
            traceback.print_exc()
        write_error(folder, rank, error)
        return error.code
    except Exception as error:
        traceback.print_exc()
        what = f"{type(error).__name__}: {error}"
        where = f"process {rank} of {os.environ['WORLD_SIZE']}"
        write_error(folder, rank, CvtrainError(what, where, "its traceback is above", name="BUG"))
        return 1


def composed_of(job: dict) -> Composed:
    """As the process that started this one has composed it."""
    cfg = OmegaConf.create(job["text"])
    assert isinstance(cfg, DictConfig)
    return Composed(
        config=to_config(cfg),
        text=job["text"],
        run_dir=Path(job["run_dir"]),
        choices=job["choices"],
        recipe_sets=job["recipe_sets"],
        extra_dir=Path(job["extra_dir"]) if job["extra_dir"] else None,
        gpus=tuple(job["gpus"]),
    )


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
