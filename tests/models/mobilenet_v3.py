"""MobileNetV3 (Howard et al., arXiv:1905.02244)."""

import torch.nn as nn


def _make_divisible(v, divisor, min_value=None):
    if min_value is None:
        min_value = divisor
    new_v = max(min_value, int(v + divisor / 2) // divisor * divisor)
    if new_v < 0.9 * v:
        new_v += divisor
    return new_v


class h_sigmoid(nn.Module):
    def __init__(self, inplace=True):
        super().__init__()
        self.relu = nn.ReLU6(inplace=inplace)

    def forward(self, x):
        return self.relu(x + 3) / 6


class h_swish(nn.Module):
    def __init__(self, inplace=True):
        super().__init__()
        self.sigmoid = h_sigmoid(inplace=inplace)

    def forward(self, x):
        return x * self.sigmoid(x)


class SELayer(nn.Module):
    def __init__(self, channel, reduction=4):
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(
            nn.Linear(channel, _make_divisible(channel // reduction, 8)),
            nn.ReLU(inplace=True),
            nn.Linear(_make_divisible(channel // reduction, 8), channel),
            h_sigmoid(),
        )

    def forward(self, x):
        b, c, _, _ = x.size()
        y = self.avg_pool(x).view(b, c)
        y = self.fc(y).view(b, c, 1, 1)
        return x * y


class InvertedResidual(nn.Module):
    def __init__(self, inp, hidden_dim, oup, kernel_size, stride, use_se, use_hs):
        super().__init__()
        assert stride in [1, 2]
        self.identity = stride == 1 and inp == oup
        act = h_swish if use_hs else nn.ReLU
        layers = []
        if inp != hidden_dim:
            layers += [nn.Conv2d(inp, hidden_dim, 1, 1, 0, bias=False), nn.BatchNorm2d(hidden_dim), act()]
        layers += [
            nn.Conv2d(hidden_dim, hidden_dim, kernel_size, stride, (kernel_size - 1) // 2, groups=hidden_dim, bias=False),
            nn.BatchNorm2d(hidden_dim),
            act(),
            SELayer(hidden_dim) if use_se else nn.Identity(),
            nn.Conv2d(hidden_dim, oup, 1, 1, 0, bias=False),
            nn.BatchNorm2d(oup),
        ]
        self.conv = nn.Sequential(*layers)

    def forward(self, x):
        y = self.conv(x)
        if self.identity:
            return x + y
        return y


class MobileNetV3(nn.Module):
    def __init__(self, cfgs, last, num_classes=1000):
        super().__init__()
        self.cfgs = cfgs
        input_channel = 16
        layers = [nn.Sequential(nn.Conv2d(3, input_channel, 3, 2, 1, bias=False), nn.BatchNorm2d(input_channel), h_swish())]
        for k, exp_size, c, use_se, use_hs, s in self.cfgs:
            layers.append(InvertedResidual(input_channel, exp_size, c, k, s, use_se, use_hs))
            input_channel = c
        self.features = nn.Sequential(*layers)
        self.conv = nn.Sequential(nn.Conv2d(input_channel, exp_size, 1, 1, 0, bias=False), nn.BatchNorm2d(exp_size), h_swish())
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.classifier = nn.Sequential(nn.Linear(exp_size, last), h_swish(), nn.Dropout(0.2), nn.Linear(last, num_classes))
        self._initialize_weights()

    def forward(self, x):
        x = self.features(x)
        x = self.conv(x)
        x = self.avgpool(x)
        x = x.view(x.size(0), -1)
        return self.classifier(x)

    def _initialize_weights(self):
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                n = m.kernel_size[0] * m.kernel_size[1] * m.out_channels
                m.weight.data.normal_(0, (2.0 / n) ** 0.5)
                if m.bias is not None:
                    m.bias.data.zero_()
            elif isinstance(m, nn.BatchNorm2d):
                m.weight.data.fill_(1)
                m.bias.data.zero_()


def mobilenet_v3_large():
    return MobileNetV3(
        [
            # k, exp, c, SE, HS, s
            [3, 16, 16, 0, 0, 1],
            [3, 64, 24, 0, 0, 2],
            [3, 72, 24, 0, 0, 1],
            [5, 72, 40, 1, 0, 2],
            [5, 120, 40, 1, 0, 1],
            [5, 120, 40, 1, 0, 1],
            [3, 240, 80, 0, 1, 2],
            [3, 200, 80, 0, 1, 1],
            [3, 184, 80, 0, 1, 1],
            [3, 184, 80, 0, 1, 1],
            [3, 480, 112, 1, 1, 1],
            [3, 672, 112, 1, 1, 1],
            [5, 672, 160, 1, 1, 2],
            [5, 960, 160, 1, 1, 1],
            [5, 960, 160, 1, 1, 1],
        ],
        1280,
    )


def mobilenet_v3_small():
    return MobileNetV3(
        [
            [3, 16, 16, 1, 0, 2],
            [3, 72, 24, 0, 0, 2],
            [3, 88, 24, 0, 0, 1],
            [5, 96, 40, 1, 1, 2],
            [5, 240, 40, 1, 1, 1],
            [5, 240, 40, 1, 1, 1],
            [5, 120, 48, 1, 1, 1],
            [5, 144, 48, 1, 1, 1],
            [5, 288, 96, 1, 1, 2],
            [5, 576, 96, 1, 1, 1],
            [5, 576, 96, 1, 1, 1],
        ],
        1024,
    )


def small():
    return MobileNetV3([[3, 16, 16, 1, 0, 2], [3, 48, 24, 0, 1, 2], [5, 64, 24, 1, 1, 1]], 48, num_classes=10)
