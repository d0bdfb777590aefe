"""A small RetinaNet (Lin et al., arXiv:1708.02002): a feature pyramid and one head that is called at every level."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Backbone(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.c1 = self.stage(3, width)
        self.c2 = self.stage(width, 2 * width)
        self.c3 = self.stage(2 * width, 4 * width)
        self.c4 = self.stage(4 * width, 8 * width)

    @staticmethod
    def stage(i, o):
        return nn.Sequential(
            nn.Conv2d(i, o, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(o),
            nn.ReLU(inplace=True),
            nn.Conv2d(o, o, 3, padding=1, bias=False),
            nn.BatchNorm2d(o),
            nn.ReLU(inplace=True),
        )

    def forward(self, x):
        c2 = self.c2(self.c1(x))
        c3 = self.c3(c2)
        return c2, c3, self.c4(c3)


class FPN(nn.Module):
    def __init__(self, channels, out_channels):
        super().__init__()
        self.lateral = nn.ModuleList([nn.Conv2d(c, out_channels, 1) for c in channels])
        self.smooth = nn.ModuleList([nn.Conv2d(out_channels, out_channels, 3, padding=1) for _ in channels])

    def forward(self, features):
        laterals = [conv(f) for conv, f in zip(self.lateral, features, strict=False)]
        for i in range(len(laterals) - 1, 0, -1):
            laterals[i - 1] = laterals[i - 1] + F.interpolate(laterals[i], size=laterals[i - 1].shape[-2:], mode="nearest")
        return [conv(x) for conv, x in zip(self.smooth, laterals, strict=False)]


class Head(nn.Module):
    def __init__(self, in_channels, num_anchors, outputs):
        super().__init__()
        self.outputs = outputs
        self.conv = nn.Sequential(
            nn.Conv2d(in_channels, in_channels, 3, padding=1),
            nn.GroupNorm(4, in_channels),
            nn.ReLU(),
            nn.Conv2d(in_channels, in_channels, 3, padding=1),
            nn.ReLU(),
        )
        self.out = nn.Conv2d(in_channels, num_anchors * outputs, 3, padding=1)

    def forward(self, x):
        x = self.out(self.conv(x))
        x = x.permute(0, 2, 3, 1).contiguous()
        return x.view(x.shape[0], -1, self.outputs)


class RetinaNet(nn.Module):
    def __init__(self, num_classes=4, width=16, fpn=32, anchors=3):
        super().__init__()
        self.backbone = Backbone(width)
        self.fpn = FPN([2 * width, 4 * width, 8 * width], fpn)
        self.classification = Head(fpn, anchors, num_classes)
        self.regression = Head(fpn, anchors, 4)

    def forward(self, images):
        features = self.fpn(self.backbone(images))
        scores = torch.cat([self.classification(f) for f in features], dim=1)
        boxes = torch.cat([self.regression(f) for f in features], dim=1)
        return scores, boxes


def small():
    return RetinaNet(width=8, fpn=16)
