"""TensorBoard's table of hyperparameters, HPARAMS: what is written for it. Loads no torch.

What a run was set to lies in an event file of its own, which is replaced when the run is extended:
of several in one directory TensorBoard would show the first for ever. No run says what the table's
columns are, because TensorBoard takes them from any one run, and the networks' keys differ: it
gathers them itself, or takes those of the sweep's folder above (`write_columns`).
"""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cvtrain.files import whole

CHOSEN = ("model", "data", "optimizer", "scheduler", "recipe")
SETTINGS = (
    *("model.", "task.", "optimizer.", "scheduler.", "init.", "seed"),
    *("data.batch_size", "data.augment", "data.limit", "data.image_size", "data.sampler"),
    *("trainer.duration", "trainer.precision", "trainer.accumulate", "trainer.clip_norm"),
    *("trainer.ema", "trainer.head_first", "trainer.after_head"),
)


def settings_of(config: Mapping[str, Any], choices: Mapping[str, str]) -> dict[str, Any]:
    """What a sweep may vary, of a flat config, as TensorBoard has values: yes or no, a number,
    a text.
    """
    chosen = {group: choices[group] for group in CHOSEN if group in choices}
    varied = {key: value for key, value in config.items() if key.startswith(SETTINGS)}
    return chosen | {key: plain(value) for key, value in varied.items() if key not in chosen}


def plain(value: Any) -> bool | int | float | str:
    finite = isinstance(value, int | float) and math.isfinite(value)
    return value if finite else str(value)


def write_settings(run_dir: Path, settings: Mapping[str, Any]) -> None:
    """Of a run that is done, in the place of what it said of itself before."""
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

    start = plugin_data_pb2.SessionStartInfo()
    for name, value in settings.items():
        kind = "bool" if isinstance(value, bool) else "string" if isinstance(value, str) else ""
        setattr(start.hparams[name], f"{kind or 'number'}_value", value)
    end = plugin_data_pb2.SessionEndInfo(status=api_pb2.STATUS_SUCCESS, end_time_secs=time.time())
    said = {
        metadata.SESSION_START_INFO_TAG: {"session_start_info": start},
        metadata.SESSION_END_INFO_TAG: {"session_end_info": end},
    }
    _write_events(run_dir, said)


def write_columns(
    folder: Path, settings: Sequence[Mapping[str, Any]], figures: Sequence[str]
) -> None:
    """Above several runs: the settings in which they differ, then the figures, by tag."""
    from tensorboard.plugins.hparams import api_pb2, metadata

    names = dict.fromkeys(name for one in settings for name in one)
    differ = [name for name in names if len({str(one.get(name)) for one in settings}) > 1]
    experiment = api_pb2.Experiment(
        hparam_infos=[
            _column(name, [one[name] for one in settings if name in one]) for name in differ
        ],
        metric_infos=[api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag)) for tag in figures],
    )
    _write_events(folder, {metadata.EXPERIMENT_TAG: {"experiment": experiment}})


def _column(name: str, values: Sequence[Any]) -> Any:
    """Numbers have an interval to filter by, anything else its values."""
    from tensorboard.plugins.hparams import api_pb2

    info = api_pb2.HParamInfo(name=name, differs=True)
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        info.type = api_pb2.DATA_TYPE_FLOAT64
        info.domain_interval.min_value = min(values)
        info.domain_interval.max_value = max(values)
    elif all(isinstance(value, bool) for value in values):
        info.type = api_pb2.DATA_TYPE_BOOL
        info.domain_discrete.extend(sorted(set(values)))
    else:
        info.type = api_pb2.DATA_TYPE_STRING
        info.domain_discrete.extend(sorted({str(value) for value in values}))
    return info


def _write_events(folder: Path, said: Mapping[str, Mapping[str, Any]]) -> None:
    """By tag, into an event file of this time; the one before goes."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import metadata
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
    from tensorboard.summary.writer.record_writer import RecordWriter

    now, before = time.time(), list(folder.glob("events.out.tfevents.*.hparams"))
    values = [
        Summary.Value(
            tag=tag,
            metadata=metadata.create_summary_metadata(HParamsPluginData(**content)),
            tensor=metadata.NULL_TENSOR,
        )
        for tag, content in said.items()
    ]
    path = folder / f"events.out.tfevents.{now:.0f}.hparams"
    with whole(path) as temporary, temporary.open("wb") as file:
        writer = RecordWriter(file)
        writer.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
        writer.write(Event(wall_time=now, summary=Summary(value=values)).SerializeToString())
    for old in before:
        if old != path:
            old.unlink(missing_ok=True)
