"""A network of your own in plain PyTorch, as its owner wrote it: niwaki shrinks it to half its multiply-adds and hands back plain PyTorch.

    niwaki shrink examples/my_model.py:net --budget "macs<=50%"

It takes images with one channel. Without --data these are Fashion-MNIST, where ../shared/data/fashion_mnist has it, or else the digits that
come with scikit-learn. A network that was not trained yet, as this one, is trained first.
"""

from torch import Tensor, nn


class Block(nn.Module):
    """A residual block; its shortcut is a convolution where the shape changes."""

    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(into, out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU()
        self.shortcut = nn.Sequential()
        if stride > 1 or into != out:
            self.shortcut = nn.Sequential(nn.Conv2d(into, out, 1, stride=stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + self.shortcut(x))


class Net(nn.Module):
    """A small ResNet: 3.1 M multiply-adds on 28 x 28 images."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 12, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU())
        self.stage1 = nn.Sequential(Block(12, 12, 1), Block(12, 12, 1))
        self.stage2 = nn.Sequential(Block(12, 24, 2), Block(24, 24, 1))
        self.stage3 = nn.Sequential(Block(24, 48, 2), Block(48, 48, 1))
        self.head = nn.Linear(48, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage3(self.stage2(self.stage1(self.stem(x))))
        return self.head(x.mean((2, 3)))


def net() -> Net:
    """What `niwaki shrink examples/my_model.py:net` shrinks; load your own weights here."""
    return Net()
