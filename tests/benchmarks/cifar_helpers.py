"""Small image folders, and the CIFAR benchmark's command run on them."""

import json
import multiprocessing
import os

import numpy as np
from PIL import Image

from benchmarks.reading import read_records

OPTIONS = ["--model", "small_resnet", "--device", "cpu", "--k", "0.7", "--learning-rate", "0.003", "--epochs", "3"]
SMALL = ["--seeds", "0", "--epochs", "3"]
WHOLE = ["--label-noise", "3", "--epoch-loss", "first", "last", "--seeds", "0", "1"]


def write_digits(folder, train_per_class=14, test_per_class=6, classes=10, size=28, mode="L"):
    """Scikit-learn's digits as an image folder."""
    from sklearn.datasets import load_digits  # takes a second, for which other tests do not wait

    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8) * 15.9).astype(np.uint8)
    for label in range(classes):
        of_class = images[labels == label][: train_per_class + test_per_class]
        for number, pixels in enumerate(of_class):
            split = "train" if number < train_per_class else "test"
            path = folder / split / f"digit {label}" / f"{number:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR).convert(mode).save(path)
    return folder


def run_benchmark(data, out, *options):
    """The command, in this process."""
    from benchmarks.cifar import main  # as above

    main(["--data", str(data), "--data-dir", str(data.parent / "cache"), "--out", str(out), *OPTIONS, *options])
    return out


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_lines(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def records_without_times(folder):
    """Of each run, less what differs between two runs of the same computation."""
    times, records = {"seconds", "evaluation_seconds", "finished_at", "shared_device"}, read_records(folder)
    of_runs = {name: run.model_dump(exclude={"surroundings"}) for name, run in records.runs.items()}
    return {name: [run, *(e.model_dump(exclude=times) for e in records.epochs[name])] for name, run in of_runs.items()}


# Starts a process with everything imported in no time.
FORK_SERVER = multiprocessing.get_context("forkserver")
FORK_SERVER.set_forkserver_preload([__name__, "benchmarks.cifar", "torchvision.models"])


def run_quietly(data, folder, options):
    """The command in a process of its own, which may be killed."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    run_benchmark(data, folder, *options)
