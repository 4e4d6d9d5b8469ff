"""`cvtrain predict`: what a network says of pictures, videos, a camera or a stream.

What comes is decoded in one thread, the network runs in the main one, and what it says is drawn and
written in a third: a video takes as long as the network does.
"""

import logging
import sys
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from tqdm import tqdm

from cvtrain.compose import Composed
from cvtrain.config import Switch, TrainerConfig
from cvtrain.data.images import shown
from cvtrain.engine.distributed import Ranks
from cvtrain.engine.logs import speak
from cvtrain.engine.machine import mixed_precision, pick_device, settings
from cvtrain.engine.signals import StopFlag
from cvtrain.errors import MachineError, Stopped
from cvtrain.media.draw import line
from cvtrain.media.flow import Ahead, Behind, in_turns
from cvtrain.media.shots import Bad, Shot, Writer, shots
from cvtrain.media.sources import Item, Kind, find
from cvtrain.media.video import library
from cvtrain.media.window import Window, open_window
from cvtrain.tasks.base import Wanted
from cvtrain.trained.inputs import Inputs
from cvtrain.trained.network import Network, make_task, of_run
from cvtrain.verbs.predict_keys import Asked, precision_of, prepare, read_keys, typed_network

log = logging.getLogger(__name__)

FRAMES, FRAME_BYTES = 8, 2**26  # of a batch of video, at most


def predict(
    composed: Composed, overrides: list[str], *, run: str, source: str, out: str, **keys: str
) -> None:
    """Write `predictions.jsonl` (or .csv) and what is drawn into the folder `out`.

    Raises ConfigError, DataError (some could not be read; the others are done), CheckpointError,
    MachineError, Stopped.
    """
    speak(logging.INFO)
    asked = read_keys(out, **keys)
    items = find(source, asked.out)
    if any(item.kind is not Kind.picture for item in items):
        library()
    with StopFlag().listening() as stop:
        device = pick_device(composed.config.trainer.device, Ranks.from_environment())
        if run:
            network = of_run(run, composed, overrides, device=device)
        else:
            network = typed_network(composed, overrides, device=device)
        trainer = network.config.trainer
        trainer.precision = precision_of(asked.precision, trainer, device)
        least = prepare(network, asked)
        with settings(trainer):
            Predicting(network, asked, device, least).all_of(items, stop)


class Predicting:
    """A network at work on sources, with what it has done so far."""

    def __init__(self, network: Network, asked: Asked, device: torch.device, least: float) -> None:
        self.network, self.asked, self.least = network, asked, least
        self.inputs, self.task = Inputs(network, device), make_task(network)
        self.wanted = Wanted(network.source.info.shown, asked.top, asked.threshold or 0.0)
        self.autocast, _ = mixed_precision(network.config.trainer.precision, device)
        self.done, self.bad = 0, Bad()
        self.laps: list[tuple[int, float]] = []  # images and seconds of the network

    def all_of(self, items: list[Item], stop: StopFlag) -> None:
        """Until all is done, or `stop`. Raises as `predict`."""
        asked = self.asked
        window = open_window(items[0].name) if asked.show else None
        kept = window is not None
        writer = Writer(
            *(asked.out, asked.format, self.bad), drawn=asked.draw, kept=kept, least=self.least
        )
        stop.finish_the_step()
        begun = perf_counter()
        try:
            with in_turns(), closing(writer), Behind(writer, depth=2 * FRAMES) as behind:
                self._go(items, stop, behind, writer, window)
        except BaseException:
            if writer.written:
                log.warning("%d results are kept in %s", writer.written, shown(asked.out))
            raise
        if self.done:
            self.say(items, writer, perf_counter() - begun)
        if stop:
            what = f"stopped by {stop.name}; {writer.written} results are kept"
            raise Stopped(what, shown(asked.out), signum=stop.signum)
        if window and not window.closed and writer.latest is not None:
            window.show(writer.latest)
            if items[-1].kind is Kind.picture:  # a video has ended, and its window with it
                window.wait(lambda: bool(stop))
        if self.bad.errors:
            raise self.bad.error(len(items), self.done, asked.out)

    def _go(
        self,
        items: list[Item],
        stop: StopFlag,
        behind: Behind[tuple[Shot, dict[str, Any]]],
        writer: Writer,
        window: Window | None,
    ) -> None:
        live = items[0].kind is Kind.live
        reading = shots(items, self.inputs, self.bad)
        ahead = Ahead(reading, depth=self.depth(items), stop=lambda: bool(stop), newest=live)
        bar = progress(self.network.config.trainer, items)
        with closing(batches(ahead, self.limit)) as groups, bar:
            for group in groups:
                if bar.total is None and len(items) == 1 and group[0].clip:
                    bar.total = group[0].clip.count or None
                for shot, told in zip(group, self.told(group), strict=True):
                    behind.put((shot, told))
                    if shot.frame is None:
                        text = line(told, self.least)
                        bar.write(f"{shown(shot.item.name)}: {text}", file=sys.stdout)
                self.done += len(group)
                bar.update(len(group))
                if window and writer.latest is not None:
                    window.show(writer.latest)
                if window and window.closed:
                    break
        if ahead.lost:
            log.info("%d frames came while the network was busy and were left out", ahead.lost)

    @torch.no_grad()
    def told(self, group: list[Shot]) -> list[dict[str, Any]]:
        begun, seen = perf_counter(), [shot.seen for shot in group]
        try:
            with self.autocast:
                predictions = self.task.predict(self.network.model, self.inputs.batch(seen))
        except Exception as error:
            if not self.asked.compile or self.laps:
                raise
            why = str(error).strip().partition("\n")[0]
            fix = "type compile=false"
            raise MachineError(f"cannot compile: {why}", "", fix, name="COMPILE") from error
        told = self.task.told(predictions, seen, self.wanted)  # which waits for the device
        self.laps.append((len(group), perf_counter() - begun))
        return told

    def limit(self, shot: Shot) -> int:
        """How many such go into a batch."""
        config = self.network.config
        if shot.frame is None:
            own = config.data.batch_size if config.data.task == "detection" else 256
            return config.eval.batch_size or own
        if shot.item.kind is Kind.live:  # none waits for the next
            return 1
        return max(1, min(FRAMES, FRAME_BYTES // shot.frame.pixels.nbytes))

    def depth(self, items: list[Item]) -> int:
        return 1 if items[0].kind is Kind.live else FRAMES

    def say(self, items: list[Item], writer: Writer, seconds: float) -> None:
        """How many, how fast, and where the results are."""
        kind = "picture" if all(item.kind is Kind.picture for item in items) else "frame"
        laps = self.laps[1:]  # the first one warms up
        images, busy = sum(n for n, _ in laps), sum(s for _, s in laps)
        rate = f"; the network alone {images / busy:.1f}/s" if laps else ""
        where = shown(self.asked.out / f"predictions.{self.asked.format}")
        if self.asked.draw:
            drawn = writer.file if len(items) == 1 else f"*{Path(writer.file).suffix}"
            where += f", {shown(self.asked.out / drawn)}"
        many = "" if self.done == 1 else "s"
        print(f"{self.done} {kind}{many}, {self.done / seconds:.1f}/s{rate}: {where}", flush=True)


def batches(ahead: Ahead[Shot], limit: Callable[[Shot], int]) -> Generator[list[Shot], None, None]:
    """Pictures with pictures, frames with those of the same video."""
    group: list[Shot] = []
    with closing(iter(ahead)) as all_shots:
        for shot in all_shots:
            if group and (shot.clip is not group[0].clip):
                yield group
                group = []
            group.append(shot)
            if len(group) >= limit(shot):
                yield group
                group = []
    if group:
        yield group


def progress(trainer: TrainerConfig, items: list[Item]) -> Any:
    shown_always = trainer.progress is Switch.yes
    bar = shown_always or (trainer.progress is Switch.auto and sys.stderr.isatty())
    pictures = all(item.kind is Kind.picture for item in items)
    unit = "pictures" if pictures else "frames"
    return tqdm(total=len(items) if pictures else None, unit=f" {unit}", disable=not bar)
