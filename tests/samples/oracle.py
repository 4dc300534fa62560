"""Attention to samples once more, slowly: everything is worked out from the whole history of visits."""

import math
import random
import struct


def single(number):
    """In the precision in which losses are remembered, and compared with the mean."""
    return None if number is None else struct.unpack("f", struct.pack("f", number))[0]


class SampleOracle:
    """Told what went out and came back, says what goes out next.

    ``visits`` holds (epoch, is_extra, sample, weight, loss) of every visit whose loss came back, ``sent`` the epoch and
    sample of every one that went out.
    """

    def __init__(self, samples, batch_size, updates, first_full_epoch=None, **options):
        self.samples, self.batch_size, self.updates = samples, batch_size, updates
        self.first_full_epoch = first_full_epoch
        self.k, self.prune_probability, self.weighted = options["k"], options["prune_probability"], options["weighted"]
        self.max_visits, self.floor, self.seed = options["max_visits"], options["floor"], options["seed"]
        self.remember_loss = options["remember_loss"]
        self.epoch = 0
        self.visits = []
        self.sent = []
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

    def remembered(self, sample):
        for _, is_extra, other, _, loss in reversed(self.visits):
            if other == sample and math.isfinite(loss) and (self.remember_loss == "last" or not is_extra):
                return single(loss)
        return None

    def hand_out(self):
        if self.handed_out == self.updates:
            return None
        if self.is_full() and self.handed_out == 0 and self.epoch == self.first_full_epoch:
            self.order, self.pool = [], []
        self.handed_out += 1
        if len(self.pool) >= self.batch_size:
            self.pool = [sample for sample in self.pool if self.sent.count((self.epoch, sample)) < self.max_visits]
        if len(self.pool) >= self.batch_size:
            samples, self.pool = self.pool[: self.batch_size], self.pool[self.batch_size :]
            self.out.append((True, [(sample, 1.0) for sample in samples]))
        else:
            self.out.append((False, [self.draw() for _ in range(self.batch_size)]))
        self.sent += [(self.epoch, sample) for sample, _ in self.out[-1][1]]
        return [sample for sample, _ in self.out[-1][1]]

    def draw(self):
        while not self.order:
            self.begin_pass()
        return self.order.pop(0)

    def begin_pass(self):
        rng = random.Random(f"{self.seed}, pass {self.passes}")
        self.passes += 1
        order = list(range(self.samples))
        rng.shuffle(order)
        limit = None if self.is_full() or not self.prune_probability else single(self.mean())
        fitted = [
            limit is not None and self.remembered(sample) is not None and self.remembered(sample) < limit
            for sample in order
        ]
        gone = [is_fitted and rng.random() < self.prune_probability for is_fitted in fitted]
        if all(gone):
            gone = [False] * len(gone)
        expected_share = 1 - self.prune_probability * sum(fitted) / self.samples
        for sample, is_fitted, is_gone in zip(order, fitted, gone, strict=True):
            weight = expected_share / (1 - self.prune_probability if is_fitted else 1) if self.weighted else 1.0
            if is_gone:
                self.pruned += 1
            else:
                self.order.append((sample, weight))

    def report(self, losses):
        is_extra, batch = self.out.pop(0)
        mean, threshold = self.mean(), None
        if self.k is not None and mean is not None and not self.is_full():
            threshold = self.floor + self.k * (mean - self.floor)
        for (sample, weight), loss in zip(batch, losses, strict=True):
            self.visits.append((self.epoch, is_extra, sample, weight, loss))
            made = self.sent.count((self.epoch, sample))
            is_wanted = threshold is not None and math.isfinite(loss) and loss > threshold
            if is_wanted and made < self.max_visits and sample not in self.pool:
                self.pool.append(sample)

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
