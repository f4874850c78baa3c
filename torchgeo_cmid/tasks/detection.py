# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""TorchGeo's object detection on the published backbones."""

import torchvision.models.detection
from timm.layers.norm_act import freeze_batch_norm_2d
from torchgeo.tasks import ObjectDetection
from torchgeo.tasks.utils import GeneralizedRCNNTransformNoOp
from torchvision.models._api import WeightsEnum
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

from ..models.architectures import ARCHITECTURES
from ..models.loading import get_state_dict
from ..models.pyramid import PyramidBackbone
from ..models.transfer import ENCODERS


class CMIDObjectDetection(ObjectDetection):
    """Object detection with horizontal boxes, by a Faster R-CNN on CMID's backbones.

    TorchGeo's own task builds torchvision's ResNets and takes weights for nothing else;
    losses, metrics and pictures are its.

    If you use this task in your research, please cite the following papers:

    * https://arxiv.org/abs/2304.09670
    * https://arxiv.org/abs/1506.01497
    """

    def __init__(
        self,
        model: str = 'faster-rcnn',
        backbone: str = 'cmid_resnet50',
        weights: WeightsEnum | str | bool | None = None,
        in_channels: int = 3,
        num_classes: int = 1000,
        trainable_layers: int = 3,
        lr: float = 1e-3,
        patience: int = 10,
        freeze_backbone: bool = False,
    ) -> None:
        """Initialize a new CMIDObjectDetection instance.

        Args:
            model: Name of the model, 'faster-rcnn'.
            backbone: Name of the backbone, 'cmid_resnet50' or 'cmid_swin_b'.
            weights: Initial weights of the backbone. Either a weight enum, the string
                representation of a weight enum, True for those pre-trained on
                MillionAID, False or None for random weights, or the path to a file.
            in_channels: Number of input channels to model.
            num_classes: Number of prediction classes (including the background).
            trainable_layers: Number of the backbone's stages that are trained, counted
                from the last, 0 to 5.
            lr: Learning rate for optimizer.
            patience: Patience for learning rate scheduler.
            freeze_backbone: Freeze the backbone network to fine-tune the detection
                head.

        Raises:
            ValueError: If *model* or *backbone* are invalid, or if *weights* do not fit
                the backbone.
        """
        super().__init__(
            model,
            backbone,
            weights,
            in_channels,
            num_classes,
            trainable_layers,
            lr,
            patience,
            freeze_backbone,
        )

    def configure_models(self) -> None:
        """Initialize the model.

        Raises:
            ValueError: If *model* or *backbone* are invalid.
        """
        name: str = self.hparams['backbone']
        if self.hparams['model'] != 'faster-rcnn':
            raise ValueError(f"model='{self.hparams['model']}' must be 'faster-rcnn'")
        if name not in ENCODERS:
            raise ValueError(f"backbone='{name}' must be one of {', '.join(ENCODERS)}")
        encoder = ENCODERS[name]()
        encoder.set_in_channels(self.hparams['in_channels'])
        weights: WeightsEnum | str | bool | None = self.weights
        if weights:
            encoder.load_state_dict(
                get_state_dict(name if weights is True else weights)
            )

        trained = ARCHITECTURES[name].stages[: self.hparams['trainable_layers']]
        for parameter_name, parameter in encoder.named_parameters():
            if self.hparams['freeze_backbone'] or not parameter_name.startswith(
                trained
            ):
                parameter.requires_grad_(False)
        self.model = torchvision.models.detection.FasterRCNN(
            PyramidBackbone(
                freeze_batch_norm_2d(encoder)  # type: ignore[no-untyped-call]
            ),
            self.hparams['num_classes'],
            rpn_anchor_generator=AnchorGenerator(
                sizes=((32,), (64,), (128,), (256,), (512,)),
                aspect_ratios=((0.5, 1.0, 2.0),) * 5,
            ),
            box_roi_pool=MultiScaleRoIAlign(
                featmap_names=['0', '1', '2', '3'], output_size=7, sampling_ratio=2
            ),
        )
        self.model.transform = GeneralizedRCNNTransformNoOp()
