"""Ranks as threads of one process, which need no torch."""

import threading

from batch_sampler_attn.errors import RankTimeoutError

SECONDS = 60


class Bus:
    """Carries messages between threads, in the order in which each sends them."""

    def __init__(self, ranks):
        self.ranks = ranks
        self.sent = [[] for _ in range(ranks)]
        self.condition = threading.Condition()

    def exchange(self, rank, value):
        with self.condition:
            self.sent[rank].append(value)
            turn = len(self.sent[rank])
            self.condition.notify_all()

        def wait():
            with self.condition:
                if not self.condition.wait_for(lambda: all(len(sent) >= turn for sent in self.sent), SECONDS):
                    raise RankTimeoutError(f"rank {rank} waited in vain for answers to: {value}")
                return [sent[turn - 1] for sent in self.sent]

        return wait


class OverBus:
    """A ``RankTransport`` between threads."""

    def __init__(self, bus, rank):
        self.bus, self.rank, self.ranks = bus, rank, bus.ranks

    def claim(self):
        pass

    def start(self, message):
        return self.bus.exchange(self.rank, message._replace(loss=float(message.loss)))

    def gather(self, value):
        return self.bus.exchange(self.rank, value)()


def on_threads(ranks, work):
    """What ``work(rank, transport)`` returned, or raised, for each rank."""
    bus, results = Bus(ranks), [None] * ranks

    def run(rank):
        try:
            results[rank] = work(rank, OverBus(bus, rank))
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
