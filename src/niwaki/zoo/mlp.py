"""Multi-layer perceptrons for tables of numbers: niwaki's own family, and the space that TabNAS searched for Criteo.

A row enters as a flat vector (`Columns`): numbers as they are, and codes, which the first layer turns into learned features.
"""

from __future__ import annotations

from niwaki.net.block import Columns, encoder
from niwaki.net.control import Chain, Network, OneOf, Repeat, Residual
from niwaki.net.layer import Activation, BatchNorm, Dropout, Identity, Layer, Linear
from niwaki.space.choice import Choice

WIDTHS = (4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
DEPTHS = (1, 2, 3, 4)
DROPOUT = 0.1
# Yang et al., NeurIPS 2022, the Criteo space: 20 sizes for each of three layers, 1,027 features (13 numbers, and 26 embeddings of 39)
TABNAS_WIDTHS = (8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 208, 224, 240, 256, 384, 512)
TABNAS_FEATURES = 1027
TABNAS_BUDGET = 41_153  # parameters, those of 32-144-24, the reference


def mlp(columns: Columns, outputs: int = 10, *, widths: tuple[int, ...] = WIDTHS, depths: tuple[int, ...] = DEPTHS, dropout: float = DROPOUT) -> Network:  # fmt: skip
    """The family: 1 to 4 hidden layers, each of a width of its own, with a shortcut wherever two of the same width follow each other.

    Linear, BatchNorm, activation (ReLU or Swish) and dropout or none, the same in all layers: networks this small learn some tables by heart
    and never come to the end of others. The widths of the features that columns become are choices, too.
    """

    def layer(name: str) -> Chain:
        return Chain(
            Linear(Choice(widths), bias=False, name="linear"),
            BatchNorm(name="bn"),
            Activation(Choice(("relu", "swish"), "/activation"), name="act"),
            *(
                [OneOf(Identity(name="no"), Dropout(dropout, name="yes"), by=Choice(("no", "yes"), "/dropout"), name="dropout")]
                if dropout
                else []
            ),
            name=name,
        )

    return Network(
        Chain(
            *encoder(columns, curves=Choice((1, 2, 3), "/curves.width"), categories=Choice((1, 2, 3, 4, 6, 8), "/embedding.width")),
            layer("hidden"),
            Repeat(Residual(layer("more"), name="more"), Choice(depths, "/depth") - min(depths)),
            Linear(outputs, name="output"),
        ),
        (columns.size,),
    )


def tabnas_criteo(columns: Columns | None = None, outputs: int = 1) -> Network:
    """TabNAS's space of three hidden layers of 8 to 512 units, 8,000 networks: linear layers with bias, and ReLU.

    columns: of another table; left out, Criteo's 1,027 features, whose embeddings the published count of parameters leaves out.
    """
    columns = columns or Columns(TABNAS_FEATURES)
    layers: list[Layer] = []
    for number in range(1, 4):
        layers += [
            Linear(Choice(TABNAS_WIDTHS, f"/hidden{number}"), init="he", name=f"hidden{number}"),
            Activation("relu", name=f"act{number}"),
        ]
    return Network(Chain(*encoder(columns, curves=1, categories=4), *layers, Linear(outputs, name="output")), (columns.size,))
