"""Encoder, predictor and decoder of NAO (Luo et al., NeurIPS 2018, arXiv 1808.07233), as in the authors' renqianluo/NAO_pytorch.

An architecture is a sequence of tokens, several of which make a step (two in the paper: predecessor and operation). Its steps are embedded
on the unit sphere; what the gradient of the predictor moves there is decoded again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

Legal = Callable[[np.ndarray, int], np.ndarray]  # tokens (N, L), of which those before a position are decided -> bool (N, vocabulary)


@dataclass(frozen=True)
class SequenceRecipe:
    """The defaults are those of the authors' train_search.py; the paper's trade-off is .9.

    trade_off: lambda, the weight of the predictor's squared error against the decoder's cross entropy. per_step: tokens in a step.
    unlabelled: how many random architectures without a score train encoder and decoder, too: ours, because a hundred scored sequences are
    too few to be decoded (0 as published).
    """

    embedding: int = 48
    hidden: int = 96
    mlp_layers: int = 3
    mlp_width: int = 200
    dropout: float = 0.1
    trade_off: float = 0.8
    lr: float = 1e-3
    weight_decay: float = 1e-4
    batch_size: int = 100
    epochs: int = 1000
    clip: float = 5.0
    per_step: int = 1
    unlabelled: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.trade_off <= 1 or min(self.epochs, self.batch_size, self.per_step, self.hidden, self.embedding) < 1:
            raise ValueError(f"{self}: trade_off is from 0 to 1, sizes and epochs are at least 1")


class Autoencoder(nn.Module):
    """Token 0 begins a sequence and stands where a decision does not exist."""

    def __init__(self, vocabulary: int, length: int, recipe: SequenceRecipe) -> None:
        super().__init__()
        self.length, self.per_step = length, recipe.per_step
        self.embedding = nn.Embedding(vocabulary, recipe.embedding)
        self.encoder = nn.LSTM(recipe.embedding * recipe.per_step, recipe.hidden, batch_first=True)
        sizes = [recipe.hidden] + [recipe.mlp_width] * recipe.mlp_layers
        layers: list[nn.Module] = [nn.Dropout(recipe.dropout)]
        for a, b in pairwise(sizes):
            layers += [nn.Linear(a, b), nn.ReLU(), nn.Dropout(recipe.dropout)]
        self.predictor = nn.Sequential(*layers, nn.Linear(sizes[-1], 1))
        self.word = nn.Embedding(vocabulary, recipe.hidden)
        self.decoder = nn.LSTM(recipe.hidden, recipe.hidden, batch_first=True)
        self.attention = nn.Linear(2 * recipe.hidden, recipe.hidden)
        self.out = nn.Linear(recipe.hidden, vocabulary)

    @property
    def steps(self) -> int:
        return -(-self.length // self.per_step)

    def encode(self, tokens: Tensor) -> Tensor:  # (B, L) -> (B, T, H), each step of length 1
        missing = self.steps * self.per_step - self.length
        embedded = self.embedding(F.pad(tokens, (0, missing))).flatten(1).view(len(tokens), self.steps, -1)
        return F.normalize(self.encoder(embedded)[0], dim=-1)

    def score(self, steps: Tensor) -> Tensor:  # (B, T, H) -> (B,) from 0 to 1
        return torch.sigmoid(self.predictor(pooled(steps))).squeeze(1)

    def decode_given(self, steps: Tensor, tokens: Tensor) -> Tensor:
        """(B, L, V): logits of each token, given those before it."""
        before = F.pad(tokens[:, :-1], (1, 0))
        state = pooled(steps).unsqueeze(0)
        return self._attended(self.decoder(self.word(before), (state, state))[0], steps)

    def decode(self, steps: Tensor, legal: Legal) -> np.ndarray:
        """int64 (B, L): the likeliest legal token at each place, one after the other."""
        tokens = np.zeros((len(steps), self.length), dtype=np.int64)
        hidden = pooled(steps).unsqueeze(0)
        state, last = (hidden, hidden), torch.zeros(len(steps), 1, dtype=torch.long)
        for position in range(self.length):
            output, state = self.decoder(self.word(last), state)
            logits = self._attended(output, steps)[:, 0].detach().numpy()
            tokens[:, position] = np.where(legal(tokens, position), logits, -np.inf).argmax(1)
            last = torch.from_numpy(tokens[:, position : position + 1])
        return tokens

    def _attended(self, outputs: Tensor, steps: Tensor) -> Tensor:
        """Dot-product attention over the encoder's steps; tanh of what it and the decoder say together."""
        context = torch.softmax(outputs @ steps.transpose(1, 2), -1) @ steps
        return self.out(torch.tanh(self.attention(torch.cat([context, outputs], -1))))


def pooled(steps: Tensor) -> Tensor:
    """The embedding of a whole architecture: the mean of its steps, of length 1."""
    return F.normalize(steps.mean(1), dim=-1)


def moved(model: Autoencoder, steps: Tensor, eta: float) -> Tensor:
    """The steps a way of `eta` along the gradient of the predicted score, each of length 1 again."""
    return F.normalize(steps.detach() + eta * _gradient(model, steps), dim=-1)


def moved_at_random(model: Autoencoder, steps: Tensor, eta: float) -> Tensor:
    """As far, in random directions: what the gradient is worth is the difference (NAO's control). The same model and eta give the same."""
    gradient = _gradient(model, steps)
    noise = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(round(1000 * eta)))
    return F.normalize(steps.detach() + eta * noise * (gradient.norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True)), dim=-1)


def _gradient(model: Autoencoder, steps: Tensor) -> Tensor:
    steps = steps.detach().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(model.score(steps).sum(), steps)
    return gradient


def fit_autoencoder(
    tokens: np.ndarray,
    scores: np.ndarray,
    vocabulary: int,
    recipe: SequenceRecipe,
    *,
    seed: int,
    symmetric: Callable[[np.ndarray, np.random.Generator], np.ndarray] | None = None,
    unlabelled: np.ndarray | None = None,
) -> Autoencoder:
    """Encoder, predictor and decoder, trained together on sequences (N, L) and their scores (N,), which are scaled to [0, 1] by their own range.

    symmetric: rewrites sequences, each as another one of the same architecture, at random; then each is seen as it is and rewritten, with the
    same score. unlabelled: (M, L) further sequences, for reconstruction alone. The same seed gives the same bits.
    """
    span = float(scores.max() - scores.min()) or 1.0
    wanted = torch.from_numpy((scores - scores.min()) / span).float()
    given, generator = torch.from_numpy(np.ascontiguousarray(tokens)).long(), np.random.default_rng(seed)
    extra = None if unlabelled is None or not len(unlabelled) else torch.from_numpy(np.ascontiguousarray(unlabelled)).long()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Autoencoder(vocabulary, tokens.shape[1], recipe).train()
        optimizer = torch.optim.Adam(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
        for _ in range(recipe.epochs):
            sequences, targets = given, wanted
            if symmetric is not None:
                rewritten = torch.from_numpy(np.ascontiguousarray(symmetric(tokens, generator))).long()
                sequences, targets = torch.cat([given, rewritten]), torch.cat([wanted, wanted])
            for batch in torch.randperm(len(sequences)).split(recipe.batch_size):
                optimizer.zero_grad(set_to_none=True)
                steps = model.encode(sequences[batch])
                error = F.mse_loss(model.score(steps), targets[batch])
                wrong = _reconstruction(model, steps, sequences[batch])
                if extra is not None:
                    more = extra[torch.randint(len(extra), (recipe.batch_size,))]
                    wrong = (wrong + _reconstruction(model, model.encode(more), more)) / 2
                (recipe.trade_off * error + (1 - recipe.trade_off) * wrong).backward()
                nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
                optimizer.step()
    return model.eval()


def _reconstruction(model: Autoencoder, steps: Tensor, tokens: Tensor) -> Tensor:
    return F.cross_entropy(model.decode_given(steps, tokens).flatten(0, 1), tokens.flatten())
