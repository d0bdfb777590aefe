"""EfficientNet (Tan and Le, arXiv:1905.11946), with squeeze and excitation and stochastic depth."""

import math

import torch
from torch import nn
from torch.nn import functional as F


class Swish(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x)


def drop_connect(inputs, p, training):
    if not training:
        return inputs
    batch_size = inputs.shape[0]
    keep_prob = 1 - p
    random_tensor = keep_prob
    random_tensor = random_tensor + torch.rand([batch_size, 1, 1, 1], dtype=inputs.dtype, device=inputs.device)
    binary_tensor = torch.floor(random_tensor)
    return inputs / keep_prob * binary_tensor


def round_filters(filters, multiplier, divisor=8):
    filters *= multiplier
    new_filters = max(divisor, int(filters + divisor / 2) // divisor * divisor)
    if new_filters < 0.9 * filters:
        new_filters += divisor
    return int(new_filters)


class MBConvBlock(nn.Module):
    def __init__(self, kernel_size, stride, expand_ratio, input_filters, output_filters, se_ratio=0.25, drop_connect_rate=0.0):
        super().__init__()
        self.stride = stride
        self.expand_ratio = expand_ratio
        self.input_filters, self.output_filters = input_filters, output_filters
        self.drop_connect_rate = drop_connect_rate

        # Expansion phase (Inverted Bottleneck)
        inp = input_filters
        oup = input_filters * expand_ratio
        if expand_ratio != 1:
            self._expand_conv = nn.Conv2d(inp, oup, kernel_size=1, bias=False)
            self._bn0 = nn.BatchNorm2d(oup, momentum=0.01, eps=1e-3)

        # Depthwise convolution phase
        self._depthwise_conv = nn.Conv2d(oup, oup, groups=oup, kernel_size=kernel_size, stride=stride, padding=kernel_size // 2, bias=False)
        self._bn1 = nn.BatchNorm2d(oup, momentum=0.01, eps=1e-3)

        # Squeeze and Excitation layer
        num_squeezed_channels = max(1, int(input_filters * se_ratio))
        self._se_reduce = nn.Conv2d(oup, num_squeezed_channels, kernel_size=1)
        self._se_expand = nn.Conv2d(num_squeezed_channels, oup, kernel_size=1)

        # Pointwise convolution phase
        self._project_conv = nn.Conv2d(oup, output_filters, kernel_size=1, bias=False)
        self._bn2 = nn.BatchNorm2d(output_filters, momentum=0.01, eps=1e-3)
        self._swish = Swish()

    def forward(self, inputs):
        x = inputs
        if self.expand_ratio != 1:
            x = self._expand_conv(inputs)
            x = self._bn0(x)
            x = self._swish(x)

        x = self._depthwise_conv(x)
        x = self._bn1(x)
        x = self._swish(x)

        x_squeezed = F.adaptive_avg_pool2d(x, 1)
        x_squeezed = self._se_reduce(x_squeezed)
        x_squeezed = self._swish(x_squeezed)
        x_squeezed = self._se_expand(x_squeezed)
        x = torch.sigmoid(x_squeezed) * x

        x = self._project_conv(x)
        x = self._bn2(x)

        if self.stride == 1 and self.input_filters == self.output_filters:
            if self.drop_connect_rate:
                x = drop_connect(x, p=self.drop_connect_rate, training=self.training)
            x = x + inputs  # skip connection
        return x


class EfficientNet(nn.Module):
    def __init__(self, blocks, width=1.0, depth=1.0, num_classes=1000, head=1280, dropout=0.2, drop_connect_rate=0.2):
        super().__init__()
        out_channels = round_filters(32, width)
        self._conv_stem = nn.Conv2d(3, out_channels, kernel_size=3, stride=2, padding=1, bias=False)
        self._bn0 = nn.BatchNorm2d(out_channels, momentum=0.01, eps=1e-3)

        self._blocks = nn.ModuleList([])
        total = sum(math.ceil(depth * r) for _, r, *_ in blocks)
        for kernel, repeat, stride, expand, i, o in blocks:
            i, o = round_filters(i, width), round_filters(o, width)
            for n in range(math.ceil(depth * repeat)):
                rate = drop_connect_rate * len(self._blocks) / total
                self._blocks.append(MBConvBlock(kernel, stride if n == 0 else 1, expand, i if n == 0 else o, o, drop_connect_rate=rate))

        in_channels = o
        out_channels = round_filters(head, width)
        self._conv_head = nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False)
        self._bn1 = nn.BatchNorm2d(out_channels, momentum=0.01, eps=1e-3)
        self._avg_pooling = nn.AdaptiveAvgPool2d(1)
        self._dropout = nn.Dropout(dropout)
        self._fc = nn.Linear(out_channels, num_classes)
        self._swish = Swish()

    def extract_features(self, inputs):
        x = self._swish(self._bn0(self._conv_stem(inputs)))
        for block in self._blocks:
            x = block(x)
        return self._swish(self._bn1(self._conv_head(x)))

    def forward(self, inputs):
        x = self.extract_features(inputs)
        x = self._avg_pooling(x)
        x = x.flatten(start_dim=1)
        x = self._dropout(x)
        return self._fc(x)


def efficientnet_b0():
    return EfficientNet(
        [
            # kernel, repeat, stride, expand, in, out
            (3, 1, 1, 1, 32, 16),
            (3, 2, 2, 6, 16, 24),
            (5, 2, 2, 6, 24, 40),
            (3, 3, 2, 6, 40, 80),
            (5, 3, 1, 6, 80, 112),
            (5, 4, 2, 6, 112, 192),
            (3, 1, 1, 6, 192, 320),
        ]
    )


def small():
    return EfficientNet([(3, 1, 1, 1, 32, 16), (3, 2, 2, 6, 16, 24), (5, 2, 2, 4, 24, 40)], width=0.5, num_classes=10, head=96)
