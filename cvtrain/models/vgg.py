"""VGG (Simonyan and Zisserman 2014, Table 1): A, A-LRN, B, C, D and E, of 11 to 19 weight layers.

Names and shapes in the state dict are torchvision's vgg11, vgg13, vgg16 and vgg19 (A, B, D, E) and,
with `batch_norm="all"`, those of its *_bn: its weights load. Batch norm came after the paper: after
each convolution, whose bias stays, or (`"block"`) once at the end of each block, before its pool.

Weights are initialised after Glorot and Bengio (uniform), biases as 0: what the paper itself names
as the way to do without starting from a trained network A. Its own N(0, variance 0.01) is doubtful:
each layer of 512 maps would multiply what goes through it by nearly five.

Differs: images of other sizes than 224, which leave other maps than 7x7, are brought to 7x7 by
adaptive average pooling, as in torchvision (at 224 it does nothing); evaluation is on crops (one,
or those of eval.views and eval.scales), not dense over the whole image.
"""

from collections.abc import Iterator
from typing import Any, Literal

from torch import Tensor, nn

from cvtrain.errors import ConfigError
from cvtrain.models.alexnet import ResponseNorm
from cvtrain.models.resnet import check_choice

# Table 1: the kernel sizes of the convolutions in each block
BLOCKS = {
    "A": ((3,), (3,), (3, 3), (3, 3), (3, 3)),
    "A-LRN": ((3,), (3,), (3, 3), (3, 3), (3, 3)),
    "B": ((3, 3), (3, 3), (3, 3), (3, 3), (3, 3)),
    "C": ((3, 3), (3, 3), (3, 3, 1), (3, 3, 1), (3, 3, 1)),
    "D": ((3, 3), (3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)),
    "E": ((3, 3), (3, 3), (3, 3, 3, 3), (3, 3, 3, 3), (3, 3, 3, 3)),
}
WIDTHS = (64, 128, 256, 512, 512)
# torchvision's names of the networks that it has weights for; batch norm nowhere, or everywhere
PUBLISHED = {"A": "VGG11", "B": "VGG13", "D": "VGG16", "E": "VGG19"}
PUBLISHED_SUFFIX = {"none": "", "all": "_BN"}
SMALLEST = 32  # pixels: five pools halve it to one


def block(
    inputs: int, width: int, kernel_sizes: tuple[int, ...], *, batch_norm: str, lrn: bool
) -> Iterator[nn.Module]:
    """Convolutions that keep the image's size, each with its ReLU, and the pool that halves it."""
    for kernel_size in kernel_sizes:
        yield nn.Conv2d(inputs, width, kernel_size, padding=kernel_size // 2)
        if batch_norm == "all":
            yield nn.BatchNorm2d(width)
        yield nn.ReLU(inplace=True)
        inputs = width
    if lrn:
        yield ResponseNorm()
    if batch_norm == "block":
        yield nn.BatchNorm2d(width)
    yield nn.MaxPool2d(2)


class VGG(nn.Module):
    """Float images [N, in_channels, H, W] of 32 px and more to logits [N, num_classes].

    Raises ConfigError for a config or batch_norm that does not exist, or images below 32 px.
    """

    def __init__(
        self,
        *,
        config: str = "D",
        num_classes: int = 1000,
        in_channels: int = 3,
        image_size: int = 224,
        batch_norm: Literal["none", "all", "block"] = "none",
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        check_choice("config", config, tuple(BLOCKS))
        check_choice("batch_norm", batch_norm, ("none", "all", "block"))
        if image_size < SMALLEST:
            what = f"VGG cannot take images of {image_size} px"
            raise ConfigError(what, "model.input", f"type model.input='min {SMALLEST}'")
        layers: list[nn.Module] = []
        inputs = in_channels
        for number, (width, kernel_sizes) in enumerate(zip(WIDTHS, BLOCKS[config], strict=True)):
            lrn = config == "A-LRN" and number == 0
            layers += block(inputs, width, kernel_sizes, batch_norm=batch_norm, lrn=lrn)
            inputs = width
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(7)
        self.classifier = nn.Sequential(
            *(nn.Linear(512 * 7 * 7, 4096), nn.ReLU(inplace=True), nn.Dropout(dropout)),
            *(nn.Linear(4096, 4096), nn.ReLU(inplace=True), nn.Dropout(dropout)),
            nn.Linear(4096, num_classes),
        )
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    @staticmethod
    def imagenet_weights(
        *, config: str = "D", batch_norm: str = "none", **others: Any
    ) -> tuple[str, dict[str, Any]] | None:
        """torchvision's weights for this network, and the arguments that they want (none)."""
        if str(config) not in PUBLISHED or str(batch_norm) not in PUBLISHED_SUFFIX:
            return None
        network = PUBLISHED[config] + PUBLISHED_SUFFIX[batch_norm]
        return f"{network}_Weights.IMAGENET1K_V1", {}

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(images)).flatten(1))
