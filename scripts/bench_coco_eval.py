"""Times COCO's measure on a drawn set of the size of val2017, by each engine in its own process.

    python scripts/bench_coco_eval.py                      # 5,000 images, 500,000 detections
    python scripts/bench_coco_eval.py --images 500 --masks

Truths have COCO's frequencies: few classes have most of the objects. Of the detections some are
truths, jittered; the rest is noise of low score. The time is of the measure alone, from the compact
records to the twelve figures; the peak is of the process without what it held before.
"""

import argparse
import json
import os
import subprocess
import sys
import time

import numpy as np

from cvtrain.metrics.coco_map import coco_map
from cvtrain.metrics.detections import Detections

CLASSES = 80
OBJECTS, FOUND = 7.34, 100.0  # of an image, on average: 36,700 and 500,000 for 5,000 images
ENGINES = ("pycocotools", "hotcoco")


def draw(images: int, *, masks: bool) -> Detections:
    rng = np.random.default_rng(0)
    often = 1 / np.arange(1, CLASSES + 1)
    often /= often.sum()
    detections = Detections(masks=masks)
    for number in range(images):
        size = np.array([480, 640])
        objects = int(min(rng.geometric(1 / (OBJECTS + 1)) - 1, 60))
        boxes = boxes_of(rng, objects)
        labels = 1 + rng.choice(CLASSES, objects, p=often)
        near = np.repeat(np.arange(objects), rng.integers(0, 6, objects))[: int(FOUND)]
        noise = int(FOUND) - len(near)
        sides = np.tile(boxes[near, 2:] - boxes[near, :2], 2)
        moved = boxes[near] + rng.normal(0, 0.07, (len(near), 4)) * sides
        rows = np.concatenate([moved, boxes_of(rng, noise)])
        rows[:, 2:] = np.maximum(rows[:, 2:], rows[:, :2] + 1)
        # A third of the noise is of a class that is in the image.
        other = 1 + rng.choice(CLASSES, noise, p=often)
        if objects:
            other = np.where(rng.random(noise) < 1 / 3, rng.choice(labels, noise), other)
        truth = {
            "size": size,
            "boxes": boxes,
            "labels": labels,
            "crowd": rng.random(objects) < 0.012,
            "area": 0.6 * (boxes[:, 2:] - boxes[:, :2]).prod(1),
        }
        found = {
            "boxes": rows,
            "scores": np.concatenate([rng.beta(3, 2, len(near)), rng.beta(1, 8, noise)]),
            "labels": np.concatenate([labels[near], other]),
        }
        if masks:  # their boxes, filled
            truth["rles"], found["rles"] = [None] * objects, [None] * len(rows)
        detections.add(number, truth, found)
    return detections


def boxes_of(rng: np.random.Generator, count: int) -> np.ndarray:
    sides = np.exp(rng.normal(4.0, 1.0, (count, 2))).clip(4, [600, 440])
    corners = rng.random((count, 2)) * ([640, 480] - sides)
    return np.concatenate([corners, corners + sides], 1)


def held(name: str) -> int:
    """Megabytes of this process, `VmRSS` or the largest so far, `VmHWM`."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name)) // 1000


def one(engine: str, images: int, masks: bool) -> None:
    """In a process of its own: the figures, the seconds and the peak, as a line of JSON."""
    detections = draw(images, masks=masks)
    coco_map(Detections(masks=True), ["none"], engine=engine)  # imports are not timed
    before, start = held("VmRSS"), time.perf_counter()
    iou_type = "segm" if masks else "bbox"
    result = coco_map(
        detections, [str(i) for i in range(CLASSES)], iou_type=iou_type, engine=engine
    )
    seconds = time.perf_counter() - start
    line = {
        "seconds": seconds,
        "records": before,
        "peak": held("VmHWM") - before,
        "objects": sum(len(record.labels) for record in detections.images.values()),
        "found": sum(len(record.scores) for record in detections.images.values()),
        "figures": result.figures,
    }
    print(json.dumps(line))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--masks", action="store_true", help="masks in place of boxes")
    parser.add_argument("--engine", choices=ENGINES, help="this one alone, as a line of JSON")
    options = parser.parse_args()
    if options.engine:
        return one(options.engine, options.images, options.masks)
    results = {}
    for engine in ENGINES:
        done = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--engine", engine],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        results[engine] = json.loads(done.stdout)
    slow, fast = (results[engine] for engine in ENGINES)
    print(
        f"{options.images} images, {slow['objects']} objects, {slow['found']} detections, "
        f"{'masks' if options.masks else 'boxes'}; {os.cpu_count()} cores, "
        f"load {os.getloadavg()[0]:.1f}"
    )
    for engine, result in results.items():
        print(
            f"  {engine:<12} {result['seconds']:8.2f} s   {result['peak']:6d} MB more at its peak"
        )
    print(
        f"  {slow['seconds'] / fast['seconds']:.0f} times as fast; mAP {slow['figures']['mAP']:.3f}"
    )
    apart = max(abs(slow["figures"][name] - fast["figures"][name]) for name in slow["figures"])
    print(f"  the twelve figures are at most {apart:.1e} per cent apart")


if __name__ == "__main__":
    main()
