"""Classifiers of images, their weight files, data sets from CIFAR to folders of photos, and accuracy.

The networks need torch alone; data and the task need the extra "study", and are imported when they are first used.
"""

from typing import TYPE_CHECKING

from prunekit.classification.mobilenet import mobilenetv2
from prunekit.classification.mobilevit import mobilevit_s
from prunekit.classification.models import MODELS
from prunekit.classification.resnet import resnet18, resnet20, resnet50, wrn28_4
from prunekit.classification.state_dicts import load_state_dict
from prunekit.classification.vgg import vgg16, vgg16_bn
from prunekit.lazy import lazy

if TYPE_CHECKING:
    from prunekit.classification.data import ClassificationData
    from prunekit.classification.task import ClassificationTask

__all__ = [
    "MODELS",
    "ClassificationData",
    "ClassificationTask",
    "load_state_dict",
    "mobilenetv2",
    "mobilevit_s",
    "resnet18",
    "resnet20",
    "resnet50",
    "vgg16",
    "vgg16_bn",
    "wrn28_4",
]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "prunekit.classification.data": ["ClassificationData"],
        "prunekit.classification.task": ["ClassificationTask"],
    },
    extra="study",
)
