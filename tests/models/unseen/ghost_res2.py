"""Image classifier of Ghost bottlenecks, a Res2Net stage, a selective-kernel unit and CBAM; in-place operators and hard-coded widths."""

import math

import torch
import torch.nn.functional as F
from torch import nn


class GhostModule(nn.Module):
    def __init__(self, inp, oup, kernel_size=1, ratio=2, dw_size=3, stride=1, relu=True):
        super().__init__()
        self.oup = oup
        init_channels = math.ceil(oup / ratio)
        new_channels = init_channels * (ratio - 1)
        self.primary_conv = nn.Sequential(
            nn.Conv2d(inp, init_channels, kernel_size, stride, kernel_size // 2, bias=False),
            nn.BatchNorm2d(init_channels),
            nn.ReLU(inplace=True) if relu else nn.Sequential(),
        )
        self.cheap_operation = nn.Sequential(
            nn.Conv2d(init_channels, new_channels, dw_size, 1, dw_size // 2, groups=init_channels, bias=False),
            nn.BatchNorm2d(new_channels),
            nn.ReLU(inplace=True) if relu else nn.Sequential(),
        )

    def forward(self, x):
        x1 = self.primary_conv(x)
        x2 = self.cheap_operation(x1)
        out = torch.cat([x1, x2], dim=1)
        return out[:, : self.oup, :, :]


class SELayer(nn.Module):
    def __init__(self, channel, reduction=4):
        super().__init__()
        self.conv_reduce = nn.Conv2d(channel, channel // reduction, 1)
        self.conv_expand = nn.Conv2d(channel // reduction, channel, 1)

    def forward(self, x):
        y = x.mean((2, 3), keepdim=True)
        y = self.conv_expand(F.relu(self.conv_reduce(y), inplace=True))
        y = F.relu6(y + 3.0, inplace=True).div_(6.0)
        x *= y
        return x


class GhostBottleneck(nn.Module):
    def __init__(self, inp, mid, oup, stride, use_se):
        super().__init__()
        self.stride = stride
        self.ghost1 = GhostModule(inp, mid, relu=True)
        if stride > 1:
            self.conv_dw = nn.Conv2d(mid, mid, 3, stride, 1, groups=mid, bias=False)
            self.bn_dw = nn.BatchNorm2d(mid)
        self.se = SELayer(mid) if use_se else None
        self.ghost2 = GhostModule(mid, oup, relu=False)
        if inp == oup and stride == 1:
            self.shortcut = nn.Sequential()
        else:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inp, inp, 3, stride, 1, groups=inp, bias=False),
                nn.BatchNorm2d(inp),
                nn.Conv2d(inp, oup, 1, bias=False),
                nn.BatchNorm2d(oup),
            )

    def forward(self, x):
        residual = x
        x = self.ghost1(x)
        if self.stride > 1:
            x = self.conv_dw(x)
            x = self.bn_dw(x)
        if self.se is not None:
            x = self.se(x)
        x = self.ghost2(x)
        x += self.shortcut(residual)
        return x


class Res2Block(nn.Module):
    """Bottle2neck: a quarter of the channels passes, the others go through a chain of 3x3 convolutions."""

    def __init__(self, inplanes, width=14, scale=4):
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, width * scale, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width * scale)
        self.nums = scale - 1
        self.convs = nn.ModuleList([nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(self.nums)])
        self.bns = nn.ModuleList([nn.BatchNorm2d(width) for _ in range(self.nums)])
        self.conv3 = nn.Conv2d(width * scale, inplanes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(inplanes)
        self.relu = nn.ReLU(inplace=True)
        self.width = width

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        spx = torch.split(out, self.width, 1)
        for i in range(self.nums):
            sp = spx[i] if i == 0 else sp + spx[i]  # noqa: F821
            sp = self.relu(self.bns[i](self.convs[i](sp)))
            out = sp if i == 0 else torch.cat((out, sp), 1)
        out = torch.cat((out, spx[self.nums]), 1)
        out = self.bn3(self.conv3(out))
        out += x
        return self.relu(out)


class SKConv(nn.Module):
    def __init__(self, features, branches=2, groups=8, reduction=4):
        super().__init__()
        d = max(features // reduction, 16)
        self.features = features
        self.convs = nn.ModuleList()
        for i in range(branches):
            self.convs.append(
                nn.Sequential(
                    nn.Conv2d(features, features, 3, padding=1 + i, dilation=1 + i, groups=groups, bias=False),
                    nn.BatchNorm2d(features),
                    nn.ReLU(inplace=False),
                )
            )
        self.fc = nn.Linear(features, d)
        self.fcs = nn.ModuleList([nn.Linear(d, features) for _ in range(branches)])
        self.softmax = nn.Softmax(dim=1)

    def forward(self, x):
        for i, conv in enumerate(self.convs):
            fea = conv(x).unsqueeze_(dim=1)
            feas = fea if i == 0 else torch.cat([feas, fea], dim=1)  # noqa: F821
        fea_u = torch.sum(feas, dim=1)
        fea_s = fea_u.mean(-1).mean(-1)
        fea_z = self.fc(fea_s)
        for i, fc in enumerate(self.fcs):
            vector = fc(fea_z).unsqueeze_(dim=1)
            attention = vector if i == 0 else torch.cat([attention, vector], dim=1)  # noqa: F821
        attention = self.softmax(attention)
        attention = attention.unsqueeze(-1).unsqueeze(-1)
        return (feas * attention).sum(dim=1)


class CBAM(nn.Module):
    def __init__(self, gate_channels=80, reduction_ratio=8):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Flatten(),
            nn.Linear(gate_channels, gate_channels // reduction_ratio),
            nn.ReLU(),
            nn.Linear(gate_channels // reduction_ratio, gate_channels),
        )
        self.spatial = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.spatial_bn = nn.BatchNorm2d(1)

    def forward(self, x):
        avg_pool = F.avg_pool2d(x, (x.size(2), x.size(3)), stride=(x.size(2), x.size(3)))
        max_pool = F.max_pool2d(x, (x.size(2), x.size(3)), stride=(x.size(2), x.size(3)))
        att = self.mlp(avg_pool) + self.mlp(max_pool)
        scale = torch.sigmoid(att).unsqueeze(2).unsqueeze(3).expand_as(x)
        x = x * scale
        compress = torch.cat((torch.max(x, 1)[0].unsqueeze(1), torch.mean(x, 1).unsqueeze(1)), dim=1)
        return x * torch.sigmoid(self.spatial_bn(self.spatial(compress)))


class GhostRes2Net(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.conv_stem = nn.Conv2d(3, 16, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.act1 = nn.ReLU(inplace=True)
        self.blocks = nn.Sequential(
            GhostBottleneck(16, 32, 16, 1, False),
            GhostBottleneck(16, 48, 24, 2, False),
            GhostBottleneck(24, 72, 24, 1, True),
            GhostBottleneck(24, 72, 40, 2, True),
        )
        self.res2 = nn.Sequential(Res2Block(40), Res2Block(40))
        self.expand = nn.Conv2d(40, 80, 1, bias=False)
        self.sk = SKConv(80)
        self.cbam = CBAM(80)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(80 * 2 * 2, num_classes))

    def forward(self, x):
        x = self.act1(self.bn1(self.conv_stem(x)))
        x = self.blocks(x)
        x = self.res2(x)
        x = self.sk(self.expand(x))
        x = self.cbam(x)
        x = F.adaptive_avg_pool2d(x, 2)
        x = x.view(-1, 80 * 2 * 2)
        return self.classifier(x)


def make():
    return GhostRes2Net()


def example(batch):
    return torch.randn(batch, 3, 48, 48)
