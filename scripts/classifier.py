"""A small classifier of digits: its features and its opinion measure generated ones."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from digits import Digits
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

BATCH, RATE, SHIFT = 256, 3e-3, 2


class Classifier(nn.Module):
    """Three convolutions; pixels (N, 1, 28, 28) in -1..1 -> 128 features -> 10 logits."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(inner, out, 3, padding=1) for inner, out in ((1, 32), (32, 48), (48, 64)))
        self.hidden, self.out = nn.Linear(64 * 3 * 3, 128), nn.Linear(128, 10)

    def features(self, x: Tensor) -> Tensor:
        for convolution in self.convolutions:
            x = F.max_pool2d(F.gelu(convolution(x)), 2)
        return F.gelu(self.hidden(F.dropout(x.flatten(1), 0.3, self.training)))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.dropout(self.features(x), 0.3, self.training))


def scaled(images: Tensor) -> Tensor:
    """uint8 (N, 28, 28) -> (N, 1, 28, 28) in -1..1, what the demo model makes."""
    return images[:, None].float() / 127.5 - 1


def train(digits: Digits, device: torch.device, epochs: int = 12) -> Classifier:
    """Adam with one cycle of the learning rate; every batch is shifted by up to `SHIFT` pixels."""
    torch.manual_seed(0)
    model = Classifier().to(device)
    images, labels = (torch.from_numpy(part).to(device) for part in digits[:2])
    steps = len(images) // BATCH
    optimiser = torch.optim.AdamW(model.parameters(), RATE)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=epochs * steps)
    for _ in range(epochs):
        for index in torch.randperm(len(images), device=device)[: steps * BATCH].split(BATCH):
            optimiser.zero_grad()
            F.cross_entropy(model(shifted(scaled(images[index]))), labels[index].long()).backward()
            optimiser.step()
            rate.step()
    return model.eval()


def shifted(x: Tensor) -> Tensor:
    down, right = torch.randint(-SHIFT, SHIFT + 1, (2,)).tolist()
    return x.roll((down, right), (2, 3))  # the border is empty


@torch.no_grad()
def examine(model: Classifier, x: Tensor) -> tuple[Tensor, Tensor]:
    """Features (N, 128) and the label it sees (N,) of pixels (N, 1, 28, 28) in -1..1."""
    features = torch.cat([model.features(part) for part in x.split(2000)])
    return features, model.out(features).argmax(1)


def accuracy(model: Classifier, digits: Digits, device: torch.device) -> float:
    """On the test images."""
    images, labels = (torch.from_numpy(part).to(device) for part in digits[2:])
    return float((examine(model, scaled(images))[1] == labels).double().mean())


def save(model: Classifier, path: Path) -> None:
    save_file({name: value.half().contiguous().cpu() for name, value in model.state_dict().items()}, path)


def load(path: Path, device: torch.device) -> Classifier:
    model = Classifier()
    model.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    return model.to(device).eval()
