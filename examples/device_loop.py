"""Batch-attention on a GPU: data, order and schedule stay on the device, and each update is a captured graph.

On a CPU the same loop runs eagerly. On a GPU the host waits a few times per epoch, not at every update.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

from batch_sampler_attn import BatchAttentionSchedule
from batch_sampler_attn.device import DeviceLoop


def main() -> None:
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    digits = load_digits()
    images = torch.tensor(digits.images / 16, dtype=torch.float32, device=device).unsqueeze(1)
    labels = torch.tensor(digits.target, device=device)

    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 8 * 8, 10),
    ).to(device)
    # A captured step must not read its counter on the host.
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, capturable=device.type == "cuda")
    loop = DeviceLoop(
        model,
        optimizer,
        nn.functional.cross_entropy,
        images[:1400],
        labels[:1400],
        32,
        schedule=BatchAttentionSchedule(k=1.2, budget=0.2),
        generator=torch.Generator().manual_seed(0),
    )

    for _ in range(6):
        summary = loop.run_epoch()
        print(summary)
        print(f"  the host waited {summary.host_reads} times for {summary.visits} updates")

    model.eval()
    with torch.no_grad():
        accuracy = (model(images[1400:]).argmax(dim=1) == labels[1400:]).float().mean()
    print(f"test accuracy: {accuracy:.3f}")


if __name__ == "__main__":
    main()
