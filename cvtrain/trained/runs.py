"""Which run a verb is about: `run=DIR`, a checkpoint file, `last`, or several as `run=[a,b]`."""

from pathlib import Path

from cvtrain.errors import CheckpointError

LAST = "last"


def runs_of(text: str) -> list[str]:
    """`[a,b,c]` as three; anything else, whatever is in its name, as one."""
    if text.startswith("[") and text.endswith("]") and not Path(text).exists():
        return [part.strip() for part in text[1:-1].split(",") if part.strip()]
    return [text] if text else []


def find(run: str) -> Path:
    """The path of a run; of `last`, the one below ./outputs that was changed last.

    Raises CheckpointError (CKPT-MISSING).
    """
    if run != LAST or Path(run).exists():
        return Path(run)
    listed = Path("outputs").glob("**/checkpoints/checkpoints.json")
    if not (newest := max(listed, key=lambda file: file.stat().st_mtime, default=None)):
        fix = "type the path of a run directory, or go to the directory that holds outputs/"
        raise CheckpointError("no run is here", "run=last, outputs/", fix, name="CKPT-MISSING")
    return newest.parents[1]
