"""RegNetX and RegNetY (Radosavovic et al., arXiv:2003.13678): grouped convolutions, squeeze and excitation in Y."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class SE(nn.Module):
    """Squeeze-and-Excitation block."""

    def __init__(self, in_planes, se_planes):
        super().__init__()
        self.se1 = nn.Conv2d(in_planes, se_planes, kernel_size=1, bias=True)
        self.se2 = nn.Conv2d(se_planes, in_planes, kernel_size=1, bias=True)

    def forward(self, x):
        out = F.adaptive_avg_pool2d(x, (1, 1))
        out = F.relu(self.se1(out))
        out = self.se2(out).sigmoid()
        return x * out


class Block(nn.Module):
    def __init__(self, w_in, w_out, stride, group_width, se_ratio):
        super().__init__()
        # 1x1
        self.conv1 = nn.Conv2d(w_in, w_out, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm2d(w_out)
        # 3x3
        num_groups = w_out // group_width
        self.conv2 = nn.Conv2d(w_out, w_out, kernel_size=3, stride=stride, padding=1, groups=num_groups, bias=False)
        self.bn2 = nn.BatchNorm2d(w_out)
        # se
        self.with_se = se_ratio > 0
        if self.with_se:
            self.se = SE(w_out, round(w_in * se_ratio))
        # 1x1
        self.conv3 = nn.Conv2d(w_out, w_out, kernel_size=1, bias=False)
        self.bn3 = nn.BatchNorm2d(w_out)

        self.shortcut = nn.Sequential()
        if stride != 1 or w_in != w_out:
            self.shortcut = nn.Sequential(nn.Conv2d(w_in, w_out, kernel_size=1, stride=stride, bias=False), nn.BatchNorm2d(w_out))

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        if self.with_se:
            out = self.se(out)
        out = self.bn3(self.conv3(out))
        out += self.shortcut(x)
        return F.relu(out)


class RegNet(nn.Module):
    def __init__(self, cfg, num_classes=1000):
        super().__init__()
        self.cfg = cfg
        self.in_planes = 32
        self.conv1 = nn.Conv2d(3, 32, kernel_size=3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.layers = nn.ModuleList(self._make_layer(idx) for idx in range(len(cfg["depths"])))
        self.linear = nn.Linear(self.cfg["widths"][-1], num_classes)

    def _make_layer(self, idx):
        depth, width = self.cfg["depths"][idx], self.cfg["widths"][idx]
        layers = []
        for i in range(depth):
            s = 2 if i == 0 else 1
            layers.append(Block(self.in_planes, width, s, self.cfg["group_width"], self.cfg["se_ratio"]))
            self.in_planes = width
        return nn.Sequential(*layers)

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        for layer in self.layers:
            out = layer(out)
        out = F.adaptive_avg_pool2d(out, (1, 1))
        out = out.view(out.size(0), -1)
        return self.linear(out)


def regnet_x_400mf():
    return RegNet({"depths": [1, 2, 7, 12], "widths": [32, 64, 160, 400], "group_width": 16, "se_ratio": 0})


def regnet_y_400mf():
    return RegNet({"depths": [1, 3, 6, 6], "widths": [48, 104, 208, 440], "group_width": 8, "se_ratio": 0.25})


def small_x():
    return RegNet({"depths": [1, 2], "widths": [16, 32], "group_width": 8, "se_ratio": 0}, num_classes=10)


def small_y():
    return RegNet({"depths": [1, 2], "widths": [24, 48], "group_width": 4, "se_ratio": 0.25}, num_classes=10)


if __name__ == "__main__":
    print(regnet_y_400mf()(torch.randn(1, 3, 224, 224)).shape)
