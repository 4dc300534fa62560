"""Batch-attention with mixed precision and gradient accumulation, where whole windows are repeated.

A window is the list of micro-batches of one update. Its loss is the unscaled mean over its samples, before the update.
float16 on CUDA, bfloat16 elsewhere.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from batch_sampler_attn import BatchAttentionSchedule, Decision
from batch_sampler_attn.accumulation import AccumulatedLoss, accumulate

EPOCHS = 10
ACCUMULATION_STEPS = 4


def main() -> None:
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.float16 if device == "cuda" else torch.bfloat16
    digits = load_digits()
    images, labels = torch.tensor(digits.images / 16, dtype=torch.float32), torch.tensor(digits.target)
    loader = DataLoader(TensorDataset(images[:1400], labels[:1400]), batch_size=16, shuffle=True)

    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    windows = accumulate(loader, ACCUMULATION_STEPS)
    # It ends above zero: updates too small to lower a window's loss would repeat it to no effect.
    lr_scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * len(windows), eta_min=2e-3)
    # bfloat16 has the range of float32, so only float16 needs its gradients scaled.
    scaler = torch.amp.GradScaler(device, enabled=dtype is torch.float16)
    schedule = BatchAttentionSchedule(k=1.2, budget=0.2)

    for _ in range(EPOCHS):
        for window in schedule.attend(windows):
            samples = sum(len(y) for _, y in window)
            window_loss = AccumulatedLoss()
            optimizer.zero_grad()
            for x, y in window:
                with torch.autocast(device, dtype=dtype):
                    logits = model(x.to(device))
                loss = nn.functional.cross_entropy(logits.float(), y.to(device))
                # Weighted by samples, since the last micro-batch of an epoch is shorter.
                scaler.scale(loss * (len(y) / samples)).backward()
                window_loss.add(loss, samples=len(y))
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
            scaler.step(optimizer)
            scaler.update()
            if schedule.decide(window_loss.mean) is Decision.ADVANCE:
                # Planned in windows: repeats must not advance the learning rate.
                lr_scheduler.step()

        print(schedule.last_summary)

    with torch.no_grad():
        predictions = model(images[1400:].to(device)).argmax(dim=1).cpu()
    print(f"test accuracy: {(predictions == labels[1400:]).float().mean():.3f}")


if __name__ == "__main__":
    main()
