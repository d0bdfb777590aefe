"""Your own family of networks, described as data: see what it costs before anything is trained, then search it."""

import niwaki
from niwaki import Chain, Choice, Conv, Flatten, GlobalPool, Linear, Network, OneOf, Repeat, conv_bn_act, mbconv


def stage(name: str, width: Choice) -> Chain:
    """Halves the map; then up to three inverted residuals, each with a kernel size and an expansion of its own, all of the stage's width."""
    block = mbconv(width, Choice((3, 5), "kernel"), expand=Choice((2, 3, 4), "expand"), name="block")
    return Chain(conv_bn_act(width, stride=2, name="down"), Repeat(block, Choice((0, 1, 2, 3), "depth")), name=name)


network = Network(
    Chain(
        OneOf(Conv(8, 3), Conv(8, 5), name="stem"),
        stage("stage1", Choice((8, 12, 16, 24), "width")),
        stage("stage2", Choice((16, 24, 32, 48), "width")),
        GlobalPool(),
        Flatten(),
        Linear(10),
    ),
    input_shape=(1, 8, 8),
)

if __name__ == "__main__":
    space, macs = niwaki.space_of(network), niwaki.count_macs(network)
    small = niwaki.within(space, [niwaki.Limit(macs, 200_000)])
    print(f"{space.size:,} architectures of {macs.minimum()[0]:,} to {macs.maximum()[0]:,} multiply-adds")
    print(f"{small.count.count:,} of them ({small.count.share:.1%}) have at most 200,000")
    print(niwaki.search(network, budget="macs<=200k", out="runs/own-network", minutes=3).metrics)
