"""MaskedConv2d in a module of one's own: masks that are fixed in training, and speed without gradients.

The mask is a buffer: it travels in the state dict, and the gradient of a dropped weight is zero.
"""

import argparse

import torch
from torch import Tensor, nn

from prunekit.nn import MaskedConv2d


class Classifier(nn.Module):
    """Two masked convolutions and a linear layer, for small images."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.first = MaskedConv2d(3, 64, 3, padding=1)
        self.second = MaskedConv2d(64, 64, 3, stride=2, padding=1)
        self.head = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [N, 3, H, W] to logits [N, classes]."""
        y = self.second(self.first(x).relu()).relu()
        return self.head(y.mean(dim=(2, 3)))


def main() -> None:
    """Draw masks, train through them, and check what they promise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200, help="of training")
    options = parser.parse_args()
    torch.manual_seed(0)

    model = Classifier(num_classes=3)
    for layer in (model.first, model.second):
        layer.mask.copy_(torch.rand_like(layer.weight) < 0.2)  # keep a fifth, at random
    images = torch.rand(64, 3, 16, 16)
    labels = images.mean(dim=(2, 3)).argmax(dim=1)  # which channel is brightest

    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(options.steps + 1):
        loss = nn.functional.cross_entropy(model(images), labels)
        if step in (0, options.steps):
            print(f"step {step}: loss {loss.item():.3f}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    grad = model.second.weight.grad
    print(f"largest gradient of a dropped weight: {grad[~model.second.mask].abs().max():.0f}")
    model.eval()
    with torch.no_grad():  # now the layers run on packed filters, which hold the kept weights alone
        print(f"accuracy {(model(images).argmax(dim=1) == labels).float().mean():.2f}")


if __name__ == "__main__":
    main()
