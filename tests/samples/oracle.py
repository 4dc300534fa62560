"""Attention to samples once more, slowly: everything is worked out from the whole history of visits."""

import hashlib
import math
import random
import struct
from collections import Counter


def brief(number):
    """In the precision in which losses are remembered, bfloat16: rounded up or down by a hash of their other bits."""
    largest = 3.38e38
    (bits,) = struct.unpack("<I", struct.pack("<f", max(-largest, min(number, largest))))
    bits += (bits * 0x9E3779B1 // 2**16) % 2**16
    return struct.unpack("<f", struct.pack("<I", bits - bits % 2**16))[0]


def one_lower(number):
    """The next lower number of bfloat16."""
    (bits,) = struct.unpack("<i", struct.pack("<f", number))
    return struct.unpack("<f", struct.pack("<i", bits - 2**16 if bits >= 2**16 else bits + 2**16))[0]


def mixed(number, key):
    number = ((number ^ key) * 0xFF51AFD7ED558CCD) % 2**64
    number = ((number ^ (number // 2**32)) * 0xC4CEB9FE1A85EC53) % 2**64
    return number // 2**32


def shuffled(size, text):
    """All of ``range(size)``, in the order that follows from a text, each with a number below 1 that looks random."""
    digest = hashlib.shake_128(text.encode()).digest(72)
    first, *keys = [int.from_bytes(digest[place : place + 8], "little") for place in range(0, 72, 8)]
    draws = [mixed(place, first) / 2**32 for place in range(size)]
    if size <= 1000:
        return [*zip(random.Random(text).sample(range(size), size), draws, strict=True)]
    rows = math.ceil(math.sqrt(size))
    columns = math.ceil(size / rows)
    goes_to = {}
    for place in range(rows * columns):
        row, column = place // columns, place % columns
        for number, key in enumerate(keys):
            if number % 2 == 0:
                row = (row + mixed(column, key)) % rows
            else:
                column = (column + mixed(row, key)) % columns
        goes_to[place] = row * columns + column
    order = []
    for place in range(size):
        place = goes_to[place]
        while place >= size:
            place = goes_to[place]
        order.append(place)
    return [*zip(order, draws, strict=True)]


class SampleOracle:
    """Told what went out and came back, says what goes out next.

    ``visits`` holds (epoch, is_extra, sample, weight, loss) of every visit whose loss came back, ``losses`` those of
    each sample by batch, ``made`` how often each went out in the epoch.
    """

    def __init__(
        self, samples, batch_size, updates, first_full_epoch=None, *, sampler=None, rank=0, world_size=1, **options
    ):
        self.samples, self.batch_size, self.updates = samples, batch_size, updates
        self.first_full_epoch, self.sampler, self.rank, self.ranks = first_full_epoch, sampler, rank, world_size
        self.k, self.prune_probability, self.weighted = options["k"], options["prune_probability"], options["weighted"]
        self.max_visits, self.floor, self.seed = options["max_visits"], options["floor"], options["seed"]
        self.remember_loss, self.select = options["remember_loss"], options.get("select", "loss")
        self.epoch = 0
        self.visits = []
        self.last, self.losses, self.made, self.owed = {}, {}, Counter(), 0
        self.means = {}
        self.order = []
        self.passes = 0
        self.pool = []
        self.out = []
        self.handed_out = 0
        self.pruned = 0

    def is_full(self):
        return self.first_full_epoch is not None and self.epoch >= self.first_full_epoch

    def mean(self):
        return self.means.get(self.epoch - 1)

    def hand_out(self):
        if self.handed_out == self.updates:
            return None
        if self.is_full() and self.handed_out == 0 and self.epoch == self.first_full_epoch:
            self.order, self.pool, self.owed = [], [], 0
        self.handed_out += 1
        if len(self.pool) >= self.batch_size:
            self.pool = [sample for sample in self.pool if self.made[sample] < self.max_visits]
        if len(self.pool) >= self.batch_size:
            samples, self.pool = self.pool[: self.batch_size], self.pool[self.batch_size :]
            self.out.append((True, [(sample, 1.0) for sample in samples]))
        else:
            self.out.append((False, [self.draw() for _ in range(self.batch_size)]))
        self.made.update(sample for sample, _ in self.out[-1][1])
        return [sample for sample, _ in self.out[-1][1]]

    def draw(self):
        while True:
            if not self.order:
                self.begin_pass()
            sample, judged, draw = self.order.pop(0)
            is_fitted = self.is_fitted(judged)
            if is_fitted and draw < self.prune_probability and (self.order or self.has_kept):
                self.pruned += 1
            else:
                self.has_kept = True
                return sample, (self.weights[is_fitted] if self.select == "loss" else 1.0)

    def is_fitted(self, sample):
        return self.limit is not None and sample in self.last and self.last[sample] < self.limit

    def begin_pass(self):
        text = f"{self.seed}, pass {self.passes}" + (f", rank {self.rank}" if self.ranks > 1 else "")
        if self.sampler is not None:
            self.sampler.set_epoch(self.passes)
        own = range(self.samples) if self.sampler is None else self.sampler
        own = [sample for sample in own if sample % self.ranks == self.rank]
        self.passes += 1
        self.limit = None
        if self.prune_probability and self.mean() is not None and not self.is_full():
            self.limit = one_lower(brief(self.mean()))
        order = shuffled(len(own), text)
        if self.sampler is not None:
            order = [(place, draw) for place, (_, draw) in enumerate(order)]
        others = shuffled(len(own), f"{text}, pruned") if self.select == "random" else order
        self.order = [(own[place], own[other], draw) for (place, _), (other, draw) in zip(order, others, strict=True)]
        self.has_kept = False
        share = 1 - self.prune_probability * sum(map(self.is_fitted, own)) / len(own)
        self.weights = [share, share / (1 - self.prune_probability)] if self.weighted else [1.0, 1.0]

    def report(self, losses):
        is_extra, batch = self.out.pop(0)
        mean, threshold = self.mean(), None
        if self.k is not None and mean is not None and not self.is_full():
            threshold = self.floor + self.k * (mean - self.floor)
        able = [sample for sample, _ in batch if self.made[sample] < self.max_visits and sample not in self.pool]
        wanted = []
        for (sample, weight), loss in zip(batch, losses, strict=True):
            self.visits.append((self.epoch, is_extra, sample, weight, loss))
            if not math.isfinite(loss):
                continue
            self.losses.setdefault(sample, {})[(len(self.visits) - 1) // self.batch_size] = loss
            if self.remember_loss == "last" or not is_extra:
                self.last[sample] = brief(loss)
            if threshold is not None and loss > threshold and sample in able and sample not in wanted:
                wanted.append(sample)
        if self.select == "random":
            able = [*dict.fromkeys(able)]
            rng = random.Random(f"{self.seed}, pool {self.epoch}, {self.handed_out - len(self.out) - 1}")
            drawn = rng.sample(able, min(self.owed, len(able)))
            self.owed += len(wanted) - len(drawn)
            wanted = drawn
        self.pool += wanted

    def averages(self):
        """The mean loss and the visits of each sample; twice in one batch is one visit."""
        return {sample: (sum(made.values()) / len(made), len(made)) for sample, made in self.losses.items()}

    def end_epoch(self):
        entered = [
            (weight, loss)
            for epoch, is_extra, _, weight, loss in self.visits
            if epoch == self.epoch and not is_extra and math.isfinite(loss)
        ]
        total = sum(weight for weight, _ in entered)
        self.means[self.epoch] = sum(weight * loss for weight, loss in entered) / total if total else self.mean()
        self.epoch += 1
        self.handed_out = 0
        self.made.clear()
