"""Models as others write them in plain PyTorch, each with an example of its input; they know nothing of niwaki."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from models import (
    alexnet,
    autoencoder,
    convnext,
    densenet,
    edsr,
    efficientnet,
    gpt,
    image_and_table,
    inception,
    lstm_tagger,
    mixer,
    mobilenet_v2,
    mobilenet_v3,
    preact_resnet,
    regnet,
    resnet,
    retina,
    shufflenet_v2,
    text_cnn,
    unet,
    vit,
)


@dataclass(frozen=True)
class Model:
    """make: gives the model. inputs: shapes for one example; integers are drawn below `below`. is_convolutional: at least 80 % of its
    parameters must lie in searchable groups. has_opaque: some layer of it is not understood, and said so."""

    make: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...] = ((1, 3, 32, 32),)
    below: int | None = None
    is_convolutional: bool = True
    has_opaque: bool = False

    def example(self, batch: int = 1, seed: int = 0) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(seed)
        draw = partial(torch.randn, generator=generator) if self.below is None else partial(torch.randint, self.below, generator=generator)
        return tuple(draw((batch, *shape[1:])) for shape in self.shapes)


SMALL = {
    "resnet-basic": Model(resnet.small_basic),
    "resnet-bottleneck": Model(resnet.small_bottleneck),
    "preact-resnet": Model(preact_resnet.small),
    "densenet": Model(densenet.small),
    "mobilenet-v2": Model(mobilenet_v2.small),
    "mobilenet-v3": Model(mobilenet_v3.small),
    "shufflenet-v2": Model(shufflenet_v2.small),
    "efficientnet": Model(efficientnet.small),
    "regnet-x": Model(regnet.small_x),
    "regnet-y": Model(regnet.small_y),
    "convnext": Model(convnext.small),
    "unet": Model(unet.small),
    "unet-bilinear": Model(unet.small_bilinear, ((1, 1, 36, 36),)),
    "inception": Model(inception.small),
    "vgg": Model(alexnet.small),
    "vit": Model(vit.small, is_convolutional=False),
    "vit-multihead": Model(vit.small_multihead, is_convolutional=False),
    "vit-encoder": Model(vit.small_encoder, is_convolutional=False),
    "mixer": Model(mixer.small, is_convolutional=False),
    "gpt": Model(gpt.small, ((1, 16),), below=65, is_convolutional=False),
    "gpt-flash": Model(gpt.small_flash, ((1, 12),), below=65, is_convolutional=False),
    "lstm-tagger": Model(lstm_tagger.small, ((1, 9),), below=50, is_convolutional=False, has_opaque=True),
    "text-cnn": Model(text_cnn.small, ((1, 20),), below=60),
    "image-and-table": Model(image_and_table.small, ((1, 1, 28, 28), (1, 12))),
    "edsr": Model(edsr.small, ((1, 3, 12, 12),)),
    "vae": Model(autoencoder.small),
    "denoiser": Model(autoencoder.small_two_outputs, ((1, 1, 28, 28),)),
    "retina": Model(retina.small, ((1, 3, 64, 64),)),
}
_IMAGENET = ((1, 3, 224, 224),)
FULL = {
    "resnet18": Model(resnet.resnet18, _IMAGENET),
    "resnet50": Model(resnet.resnet50, _IMAGENET),
    "preact-resnet18": Model(preact_resnet.preact_resnet18),
    "densenet121": Model(densenet.densenet121, _IMAGENET),
    "mobilenet-v2-1.0": Model(mobilenet_v2.mobilenet_v2, _IMAGENET),
    "mobilenet-v3-small": Model(mobilenet_v3.mobilenet_v3_small, _IMAGENET),
    "mobilenet-v3-large": Model(mobilenet_v3.mobilenet_v3_large, _IMAGENET),
    "shufflenet-v2-x1.0": Model(shufflenet_v2.shufflenet_v2_x1_0, _IMAGENET),
    "efficientnet-b0": Model(efficientnet.efficientnet_b0, _IMAGENET),
    "regnet-x-400mf": Model(regnet.regnet_x_400mf, _IMAGENET),
    "regnet-y-400mf": Model(regnet.regnet_y_400mf, _IMAGENET),
    "convnext-tiny": Model(convnext.convnext_tiny, _IMAGENET),
    "unet-64": Model(unet.unet, ((1, 3, 96, 96),)),
    "inception-v3": Model(inception.inception_v3, ((1, 3, 299, 299),)),
    "alexnet": Model(alexnet.alexnet, _IMAGENET),
    "vgg11-bn": Model(alexnet.vgg11_bn, _IMAGENET),
    "vit-tiny-16": Model(vit.vit_tiny_patch16, _IMAGENET, is_convolutional=False),
    "vit-base-16": Model(vit.vit_base_patch16, _IMAGENET, is_convolutional=False),
    "vit-b-16-multihead": Model(vit.vit_b_16, _IMAGENET, is_convolutional=False),
    "mixer-b-16": Model(mixer.mixer_b_16, _IMAGENET, is_convolutional=False),
    "gpt2": Model(gpt.gpt2, ((1, 64),), below=50257, is_convolutional=False),
    "edsr-baseline-x2": Model(edsr.edsr_baseline_x2, ((1, 3, 48, 48),)),
}
