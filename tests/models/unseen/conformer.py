"""Speech commands from log-mel frames and their lengths: convolutional subsampling, Conformer blocks (GLU, Transformer-XL attention,
depthwise convolution), attentive statistics pooling."""

import math

import torch
import torch.nn.functional as F
from torch import nn


class Subsampling(nn.Module):
    def __init__(self, n_mels, d_model, channels=32):
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(1, channels, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 3, stride=2, padding=1), nn.ReLU()
        )
        self.out = nn.Linear(channels * (n_mels // 4), d_model)

    def forward(self, x):  # (batch, time, mels)
        x = self.conv(x.unsqueeze(1))
        b, c, t, f = x.size()
        return self.out(x.transpose(1, 2).contiguous().view(b, t, c * f))


class RelPositionalEncoding(nn.Module):
    def __init__(self, d_model, max_len=64):
        super().__init__()
        position = torch.arange(max_len - 1, -max_len, -1.0).unsqueeze(1)
        div_term = torch.exp(torch.arange(0, d_model, 2).float() * -(math.log(10000.0) / d_model))
        pe = torch.zeros(2 * max_len - 1, d_model)
        pe[:, 0::2] = torch.sin(position * div_term)
        pe[:, 1::2] = torch.cos(position * div_term)
        self.register_buffer("pe", pe.unsqueeze(0), persistent=False)
        self.max_len = max_len

    def forward(self, x):
        t = x.size(1)
        return self.pe[:, self.max_len - t : self.max_len + t - 1]


class RelPositionAttention(nn.Module):
    def __init__(self, d_model, n_head):
        super().__init__()
        self.h, self.d_k = n_head, d_model // n_head
        self.linear_q = nn.Linear(d_model, d_model)
        self.linear_k = nn.Linear(d_model, d_model)
        self.linear_v = nn.Linear(d_model, d_model)
        self.linear_out = nn.Linear(d_model, d_model)
        self.linear_pos = nn.Linear(d_model, d_model, bias=False)
        self.pos_bias_u = nn.Parameter(torch.empty(self.h, self.d_k))
        self.pos_bias_v = nn.Parameter(torch.empty(self.h, self.d_k))
        nn.init.xavier_uniform_(self.pos_bias_u)
        nn.init.xavier_uniform_(self.pos_bias_v)

    @staticmethod
    def rel_shift(x):  # (batch, head, time, 2 * time - 1)
        b, h, t, n = x.size()
        x = F.pad(x, (1, 0)).view(b, h, n + 1, t)
        return x[:, :, 1:].view(b, h, t, n)[..., : n // 2 + 1]

    def forward(self, x, pos_emb, mask):
        b = x.size(0)
        q = self.linear_q(x).view(b, -1, self.h, self.d_k)
        k = self.linear_k(x).view(b, -1, self.h, self.d_k).transpose(1, 2)
        v = self.linear_v(x).view(b, -1, self.h, self.d_k).transpose(1, 2)
        p = self.linear_pos(pos_emb).view(1, -1, self.h, self.d_k).transpose(1, 2)
        q_u = (q + self.pos_bias_u).transpose(1, 2)
        q_v = (q + self.pos_bias_v).transpose(1, 2)
        ac = torch.matmul(q_u, k.transpose(-2, -1))
        bd = self.rel_shift(torch.matmul(q_v, p.transpose(-2, -1)))
        scores = (ac + bd) / math.sqrt(self.d_k)
        scores = scores.masked_fill(mask.unsqueeze(1).unsqueeze(2), -1e4)
        attn = torch.softmax(scores, dim=-1)
        x = torch.matmul(attn, v).transpose(1, 2).contiguous().view(b, -1, self.h * self.d_k)
        return self.linear_out(x)


class ConvModule(nn.Module):
    def __init__(self, channels, kernel_size=15):
        super().__init__()
        self.pointwise_conv1 = nn.Conv1d(channels, 2 * channels, 1)
        self.depthwise_conv = nn.Conv1d(channels, channels, kernel_size, padding=(kernel_size - 1) // 2, groups=channels)
        self.norm = nn.BatchNorm1d(channels)
        self.pointwise_conv2 = nn.Conv1d(channels, channels, 1)
        self.activation = nn.SiLU()

    def forward(self, x, mask):
        x = x.transpose(1, 2)
        x = F.glu(self.pointwise_conv1(x), dim=1)
        x = x.masked_fill(mask.unsqueeze(1), 0.0)
        x = self.activation(self.norm(self.depthwise_conv(x)))
        return self.pointwise_conv2(x).transpose(1, 2)


class FeedForward(nn.Sequential):
    def __init__(self, d_model, expansion):
        super().__init__(
            nn.LayerNorm(d_model),
            nn.Linear(d_model, d_model * expansion),
            nn.SiLU(),
            nn.Dropout(0.1),
            nn.Linear(d_model * expansion, d_model),
        )


class ConformerBlock(nn.Module):
    def __init__(self, d_model, n_head):
        super().__init__()
        self.ff1 = FeedForward(d_model, 4)
        self.norm_mha = nn.LayerNorm(d_model)
        self.self_attn = RelPositionAttention(d_model, n_head)
        self.norm_conv = nn.LayerNorm(d_model)
        self.conv = ConvModule(d_model)
        self.ff2 = FeedForward(d_model, 4)
        self.norm_final = nn.LayerNorm(d_model)

    def forward(self, x, pos_emb, mask):
        x = x + 0.5 * self.ff1(x)
        x = x + self.self_attn(self.norm_mha(x), pos_emb, mask)
        x = x + self.conv(self.norm_conv(x), mask)
        x = x + 0.5 * self.ff2(x)
        return self.norm_final(x)


class AttentiveStatsPool(nn.Module):
    def __init__(self, dim, bottleneck=24):
        super().__init__()
        self.score = nn.Sequential(nn.Conv1d(dim, bottleneck, 1), nn.Tanh(), nn.Conv1d(bottleneck, dim, 1))

    def forward(self, x, mask):  # (batch, dim, time)
        alpha = self.score(x).masked_fill(mask.unsqueeze(1), -1e4).softmax(dim=2)
        mean = torch.einsum("bct,bct->bc", alpha, x)
        var = torch.sum(alpha * x**2, dim=2) - mean**2
        return torch.cat([mean, torch.sqrt(var.clamp(min=1e-6))], dim=1)


class SpeechCommands(nn.Module):
    def __init__(self, n_mels=40, d_model=64, n_head=4, n_blocks=2, n_classes=12):
        super().__init__()
        self.subsample = Subsampling(n_mels, d_model)
        self.pos_enc = RelPositionalEncoding(d_model)
        self.xscale = math.sqrt(d_model)
        self.blocks = nn.ModuleList([ConformerBlock(d_model, n_head) for _ in range(n_blocks)])
        self.pool = AttentiveStatsPool(d_model)
        self.classifier = nn.Linear(2 * d_model, n_classes)

    def forward(self, feats, lengths):
        x = self.subsample(feats) * self.xscale
        mask = torch.arange(x.size(1), device=x.device)[None, :] * 4 >= lengths[:, None]  # true where padded
        pos_emb = self.pos_enc(x)
        for block in self.blocks:
            x = block(x, pos_emb, mask)
        return self.classifier(self.pool(x.transpose(1, 2), mask))


def make():
    return SpeechCommands()


def example(batch):
    return torch.randn(batch, 80, 40), torch.randint(20, 81, (batch,))
