"""Batch-attention with a DataLoader with workers, random augmentation and wrong labels.

With ``repeats="deferred"``, the workers fetch a repeat like any other batch, with new random augmentation. Some labels
are wrong on purpose, and the batches repeated most often point to them.
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler

from batch_sampler_attn import BatchAttentionSampler, BatchAttentionSchedule
from batch_sampler_attn.recorders import MemoryRecorder, most_repeated

EPOCHS = 6
WRONG_LABELS = 30


class AugmentedDigits(Dataset[tuple[Tensor, Tensor]]):
    """The first 1400 digits, with random shift and noise; the first 30 labels are wrong."""

    def __init__(self) -> None:
        digits = load_digits()
        self.images = torch.tensor(digits.images[:1400] / 16, dtype=torch.float32)
        self.labels = torch.tensor(digits.target[:1400])
        self.labels[:WRONG_LABELS] = (self.labels[:WRONG_LABELS] + 1) % 10

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self.images[index].roll(int(torch.randint(-1, 2, ())), dims=1)
        return image + 0.05 * torch.randn_like(image), self.labels[index]


def main() -> None:
    torch.manual_seed(0)
    dataset = AugmentedDigits()
    recorder = MemoryRecorder()
    schedule = BatchAttentionSchedule(k=1.5, budget=0.2, recorders=[recorder])
    sampler = BatchAttentionSampler(RandomSampler(dataset), 16, schedule=schedule, repeats="deferred")
    # Repeats that remain after the last batch need another iteration of the loader, so keep its workers.
    loader = DataLoader(dataset, batch_sampler=sampler, num_workers=2, persistent_workers=True)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    first_views: dict[int, Tensor] = {}
    are_new = []
    for _ in range(EPOCHS):
        for x, y in schedule.attend(loader):
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.decide(loss)

            visit = recorder.visits[-1]
            if visit.visit == 1:
                first_views[visit.batch] = x
            else:
                are_new.append(not torch.equal(x, first_views[visit.batch]))

    print(*recorder.summaries, sep="\n")
    print(f"{sum(are_new)} of {len(are_new)} repeats were augmented again")
    suspects = {index for batch in most_repeated(recorder.visits, n=10) for index in batch.indices or ()}
    found = sum(index < WRONG_LABELS for index in suspects)
    by_chance = WRONG_LABELS * len(suspects) / len(dataset)
    print(
        f"the ten batches repeated most often hold {found} of {WRONG_LABELS} wrong labels ({by_chance:.1f} by chance)"
    )


if __name__ == "__main__":
    main()
