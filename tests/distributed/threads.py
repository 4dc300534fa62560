"""Ranks as threads of one process, which need no torch."""

import threading
from concurrent.futures import ThreadPoolExecutor

from batch_sampler_attn.errors import RankTimeoutError

SECONDS = 60


class OverThreads:
    """A ``RankTransport``: each thread appends to its list in ``sent``, and waits until all lists are as long."""

    def __init__(self, rank, sent, condition):
        self.rank, self.ranks, self.sent, self.condition = rank, len(sent), sent, condition

    def claim(self):
        pass

    def start(self, message):
        return self._exchange(message._replace(loss=float(message.loss)))

    def gather(self, value):
        return self._exchange(value)()

    def _exchange(self, value):
        with self.condition:
            self.sent[self.rank].append(value)
            turn = len(self.sent[self.rank])
            self.condition.notify_all()

        def wait():
            with self.condition:
                if not self.condition.wait_for(lambda: all(len(sent) >= turn for sent in self.sent), SECONDS):
                    raise RankTimeoutError(f"rank {self.rank} waited in vain for answers to: {value}")
                return [sent[turn - 1] for sent in self.sent]

        return wait


def attempt(call):
    """What a call returned or raised."""
    try:
        return call()
    except Exception as error:
        return error


def on_threads(ranks, work):
    """What ``work(rank, transport)`` returned, or raised, for each rank."""
    sent, condition = [[] for _ in range(ranks)], threading.Condition()
    with ThreadPoolExecutor(ranks) as pool:
        return [*pool.map(lambda rank: attempt(lambda: work(rank, OverThreads(rank, sent, condition))), range(ranks))]
