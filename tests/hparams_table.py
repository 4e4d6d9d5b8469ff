"""TensorBoard's HPARAMS table of a folder, as its own backend makes it of the files there."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tensorboard import context
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2, backend_context, get_experiment
from tensorboard.plugins.hparams import list_session_groups as listing

STATUSES = ("STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING")


class Shown:
    """The table of `tensorboard --logdir FOLDER`."""

    def __init__(self, folder: Path) -> None:
        runs = EventMultiplexer().AddRunsFromDirectory(str(folder))
        runs.Reload()
        provider = MultiplexerDataProvider(runs, str(folder))
        of = TBContext(data_provider=provider, logdir=str(folder), multiplexer=runs)
        backend, request = backend_context.Context(of), context.RequestContext()
        asked = api_pb2.GetExperimentRequest()
        columns = get_experiment.Handler(request, backend, "", asked).run()
        self.settings = {info.name: info for info in columns.hparam_infos}
        self.figures = [info.name.tag for info in columns.metric_infos]
        statuses = [getattr(api_pb2, name) for name in STATUSES]
        wanted = api_pb2.ListSessionGroupsRequest(slice_size=99, allowed_statuses=statuses)
        answer = listing.Handler(request, backend, "", wanted).run()
        self.groups = {group.name: group for group in answer.session_groups}

    def values(self, run: str) -> dict[str, Any]:
        kinds = ((name, value, value.WhichOneof("kind")) for name, value in self.hparams(run))
        return {name: getattr(value, kind) for name, value, kind in kinds}

    def hparams(self, run: str) -> Iterator[tuple[str, Any]]:
        yield from self.groups[run].hparams.items()

    def metrics(self, run: str) -> dict[str, float]:
        return {metric.name.tag: metric.value for metric in self.groups[run].metric_values}
