"""A small language model: does attention help to predict Python's manual, character by character?

The text comes with Python (``pydoc_data.topics``). Every fifth topic, in alphabetical order, is test data. A sample is
a stretch of 32 characters, and its loss is their mean. The scores are bits per character over all test text, and over
the worst tenth of its stretches, which attention should improve first.
"""

from __future__ import annotations

import math
from pydoc_data.topics import topics
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from examples.paired_arms import Task, compare
else:
    from paired_arms import Task, compare

LENGTH = 32
TRAIN_STRETCHES = 1280


def load() -> tuple[torch.Tensor, torch.Tensor, int]:
    """Training and test stretches, each (n, LENGTH + 1) of character numbers, and the number of characters."""
    names = sorted(topics)
    test_names = names[::5]
    train_text = "".join(topics[name] for name in names if name not in test_names)
    test_text = "".join(topics[name] for name in test_names)
    number = {character: index for index, character in enumerate(sorted(set(train_text)), start=1)}

    def stretches(text: str) -> torch.Tensor:
        numbers = torch.tensor([number.get(character, 0) for character in text])
        return numbers.unfold(0, LENGTH + 1, LENGTH + 1)

    # Every third stretch, to cover the whole manual; every version of Python has enough of them.
    return stretches(train_text)[::3][:TRAIN_STRETCHES], stretches(test_text), len(number) + 1


class CharacterModel(nn.Module):
    """A GRU that predicts the next character.

    Args:
        characters: Number of different characters.
    """

    def __init__(self, characters: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, 24)
        self.gru = nn.GRU(24, 64, batch_first=True)
        self.head = nn.Linear(64, characters)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        """Logits of the next character: (batch, characters, length) for (batch, length)."""
        hidden, _ = self.gru(self.embedding(text))
        scores: torch.Tensor = self.head(hidden).transpose(1, 2)
        return scores


def losses(model: nn.Module, stretches: torch.Tensor) -> torch.Tensor:
    """(batch,), the mean over the characters of each stretch, in nats."""
    return nn.functional.cross_entropy(model(stretches[:, :-1]), stretches[:, 1:], reduction="none").mean(dim=1)


def in_bits(losses_of_test: torch.Tensor) -> tuple[float, float]:
    """The mean over all stretches, and over the worst tenth of them."""
    bits = losses_of_test / math.log(2)
    return bits.mean().item(), bits.topk(len(bits) // 10).values.mean().item()


def main() -> None:
    train_stretches, test_stretches, characters = load()

    @torch.no_grad()
    def test(model: nn.Module) -> tuple[float, float]:
        return in_bits(losses(model, test_stretches))

    # The character frequencies of the training text; a character that does not occur counts as once.
    frequencies = torch.bincount(train_stretches.flatten(), minlength=characters).clamp(min=1).float()
    nats_of_constant = -(frequencies / frequencies.sum()).log()[test_stretches[:, 1:]].mean(dim=1)
    task = Task(
        samples=len(train_stretches),
        make_model=lambda: CharacterModel(characters),
        losses=lambda model, indices: losses(model, train_stretches[indices]),
        test=test,
        scores=("bits per character", "bits, worst tenth"),
        constant=in_bits(nats_of_constant),
        learning_rate=5e-3,
    )
    compare(task, __doc__, seeds=8, epochs=10)


if __name__ == "__main__":
    main()
