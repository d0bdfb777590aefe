"""One-stage detector: frozen stem with FrozenBatchNorm, HRNet-like parallel branches, FPN, one head shared by three levels; a dict of outputs."""

import torch
import torch.nn.functional as F
from torch import nn


class FrozenBatchNorm2d(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.register_buffer("weight", torch.ones(n))
        self.register_buffer("bias", torch.zeros(n))
        self.register_buffer("running_mean", torch.zeros(n))
        self.register_buffer("running_var", torch.ones(n))

    def forward(self, x):
        w = self.weight.reshape(1, -1, 1, 1)
        b = self.bias.reshape(1, -1, 1, 1)
        rv = self.running_var.reshape(1, -1, 1, 1)
        rm = self.running_mean.reshape(1, -1, 1, 1)
        scale = w * (rv + 1e-5).rsqrt()
        return x * scale + (b - rm * scale)


def conv_bn(i, o, k=3, s=1, relu=True):
    layers = [nn.Conv2d(i, o, k, s, k // 2, bias=False), nn.BatchNorm2d(o, momentum=0.01)]
    if relu:
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


class BasicBlock(nn.Module):
    def __init__(self, planes):
        super().__init__()
        self.conv1 = conv_bn(planes, planes)
        self.conv2 = conv_bn(planes, planes, relu=False)

    def forward(self, x):
        return F.relu(self.conv2(self.conv1(x)) + x)


class HRModule(nn.Module):
    """Branches side by side; each output is the sum of all branches, resampled."""

    def __init__(self, widths):
        super().__init__()
        self.num_branches = len(widths)
        self.branches = nn.ModuleList([nn.Sequential(BasicBlock(w)) for w in widths])
        self.fuse_layers = nn.ModuleList()
        for i, wi in enumerate(widths):
            row = nn.ModuleList()
            for j, wj in enumerate(widths):
                if j > i:
                    row.append(conv_bn(wj, wi, 1, relu=False))
                elif j == i:
                    row.append(nn.Identity())
                else:
                    steps = [conv_bn(wj, wj, s=2) for _ in range(i - j - 1)] + [conv_bn(wj, wi, s=2, relu=False)]
                    row.append(nn.Sequential(*steps))
            self.fuse_layers.append(row)

    def forward(self, xs):
        xs = [branch(x) for branch, x in zip(self.branches, xs, strict=True)]
        fused = []
        for i in range(self.num_branches):
            y = 0
            for j in range(self.num_branches):
                z = self.fuse_layers[i][j](xs[j])
                if j > i:
                    z = F.interpolate(z, size=xs[i].shape[-2:], mode="bilinear", align_corners=False)
                y = y + z
            fused.append(F.relu(y))
        return fused


class FPN(nn.Module):
    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.inner = nn.ModuleList([nn.Conv2d(c, out_channels, 1) for c in in_channels])
        self.layer = nn.ModuleList([nn.Conv2d(out_channels, out_channels, 3, padding=1) for _ in in_channels])

    def forward(self, feats):
        last = self.inner[-1](feats[-1])
        results = [self.layer[-1](last)]
        for idx in range(len(feats) - 2, -1, -1):
            lateral = self.inner[idx](feats[idx])
            last = lateral + F.interpolate(last, size=lateral.shape[-2:], mode="nearest")
            results.insert(0, self.layer[idx](last))
        return results


class Scale(nn.Module):
    def __init__(self, value=1.0):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(value))

    def forward(self, x):
        return x * self.scale


class Head(nn.Module):
    """FCOS-like: the same towers on every level, one learned scale per level."""

    def __init__(self, channels, num_classes, levels, num_anchors=2):
        super().__init__()
        self.num_classes, self.num_anchors = num_classes, num_anchors

        def tower():
            layers = []
            for _ in range(2):
                layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.GroupNorm(8, channels), nn.ReLU(inplace=True)]
            return nn.Sequential(*layers)

        self.cls_tower, self.box_tower = tower(), tower()
        self.cls_logits = nn.Conv2d(channels, num_anchors * num_classes, 3, padding=1)
        self.bbox_pred = nn.Conv2d(channels, num_anchors * 4, 3, padding=1)
        self.ctrness = nn.Conv2d(channels, num_anchors, 3, padding=1)
        self.scales = nn.ModuleList([Scale() for _ in range(levels)])

    def forward(self, feats):
        logits, boxes, centers = [], [], []
        for level, x in enumerate(feats):
            c, b = self.cls_tower(x), self.box_tower(x)
            N, _, H, W = x.shape
            cls = self.cls_logits(c).view(N, -1, self.num_classes, H, W).permute(0, 3, 4, 1, 2)
            logits.append(cls.reshape(N, -1, self.num_classes))
            reg = F.relu(self.scales[level](self.bbox_pred(b)))
            boxes.append(reg.view(N, -1, 4, H, W).permute(0, 3, 4, 1, 2).reshape(N, -1, 4))
            centers.append(self.ctrness(b).permute(0, 2, 3, 1).flatten(1))
        return torch.cat(logits, dim=1), torch.cat(boxes, dim=1), torch.cat(centers, dim=1)


class Detector(nn.Module):
    def __init__(self, num_classes=5, widths=(16, 24, 40)):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1, bias=False), FrozenBatchNorm2d(16), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        )
        for p in self.stem.parameters():
            p.requires_grad_(False)
        self.transitions = nn.ModuleList([conv_bn(16 if i == 0 else widths[i - 1], w, s=1 if i == 0 else 2) for i, w in enumerate(widths)])
        self.stage = nn.ModuleList([HRModule(widths), HRModule(widths)])
        self.fpn = FPN(widths, 32)
        self.head = Head(32, num_classes, len(widths))
        points = torch.cat([self._points(64 // s, s) for s in (4, 8, 16)])
        self.register_buffer("points", points.repeat_interleave(2, dim=0))

    @staticmethod
    def _points(side, stride):
        ys, xs = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        return (torch.stack([xs, ys], -1).reshape(-1, 2).float() + 0.5) * stride

    def forward(self, images):
        x = self.stem(images)
        xs = []
        for t in self.transitions:
            x = t(x)
            xs.append(x)
        for module in self.stage:
            xs = module(xs)
        logits, ltrb, centerness = self.head(self.fpn(xs))
        lt, rb = ltrb[..., :2], ltrb[..., 2:]
        boxes = torch.cat([self.points - lt, self.points + rb], dim=-1)
        return {"scores": torch.sigmoid(logits) * torch.sigmoid(centerness)[..., None], "boxes": boxes, "centerness": centerness}


def make():
    return Detector()


def example(batch):
    return torch.rand(batch, 3, 64, 64)
