"""MLP-Mixer (Tolstikhin et al., arXiv:2105.01601)."""

import torch.nn as nn


class MlpBlock(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, x):
        return self.net(x)


class MixerLayer(nn.Module):
    def __init__(self, tokens, dim, tokens_mlp, channels_mlp):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.token_mixing = MlpBlock(tokens, tokens_mlp)
        self.channel_mixing = MlpBlock(dim, channels_mlp)

    def forward(self, x):
        y = self.norm1(x).transpose(1, 2)
        x = x + self.token_mixing(y).transpose(1, 2)
        return x + self.channel_mixing(self.norm2(x))


class Mixer(nn.Module):
    def __init__(self, image=224, patch=16, dim=768, depth=12, tokens_mlp=384, channels_mlp=3072, num_classes=1000):
        super().__init__()
        self.stem = nn.Conv2d(3, dim, patch, stride=patch)
        tokens = (image // patch) ** 2
        self.layers = nn.Sequential(*[MixerLayer(tokens, dim, tokens_mlp, channels_mlp) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, x):
        x = self.stem(x)
        b, c, h, w = x.shape
        x = x.view(b, c, h * w).transpose(1, 2)
        x = self.layers(x)
        return self.head(self.norm(x).mean(dim=1))


def mixer_b_16():
    return Mixer()


def small():
    return Mixer(32, 8, 24, 2, 12, 48, 10)
