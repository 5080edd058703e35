"""
VOC2007 classification with a self-labelled network
===================================================

Which of 20 kinds of objects are in a photograph, several at a time: the first task beyond ImageNet that networks
trained without labels are judged by. The backbone that ``otlabel export`` has written gets a layer of 20 outputs.
All of it, what follows the convolutions, or the new layer alone is trained on VOC's ``trainval`` and judged on ``test``
by the mean over classes of the average precision: by VOC2007's eleven points, and by all points.

The data is a folder in VOC's format, ``VOCdevkit/VOC2007`` with ``JPEGImages`` and ``ImageSets/Main``, from
http://host.robots.ox.ac.uk/pascal/VOC/voc2007. Random crops, mirrored images and ten crops to judge by are usual; rate
and schedule are ours.

Run: python examples/voc_classification.py VOCdevkit/VOC2007 backbone.safetensors
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from torch import nn
from torch.utils.data import DataLoader, Dataset

from otlabel.training.entry import Entry
from otlabel.training.networks import network
from otlabel.training.networks.common import absorbed

MEAN, SPREAD = 0.5, 0.25  # what `otlabel train` shows its networks: (x / 255 - 0.5) / 0.25


class VOC(Dataset):
    """Images of a split and, of each class, 1 where it is there, 0 where not, -1 where it is hard to tell."""

    def __init__(self, folder, split, size, training):
        lists = sorted(Path(folder, "ImageSets/Main").glob(f"*_{split}.txt"))
        if not lists:
            raise FileNotFoundError(f"{folder} has no ImageSets/Main/CLASS_{split}.txt: give the folder VOC2007 itself")
        self.classes = [path.name.removesuffix(f"_{split}.txt") for path in lists]
        read = [dict(line.split() for line in path.read_text().splitlines() if line.strip()) for path in lists]
        names = sorted(read[0])
        self.truth = np.array([[{"1": 1, "-1": 0, "0": -1}[one[name]] for one in read] for name in names])
        self.paths = [Path(folder, "JPEGImages", f"{name}.jpg") for name in names]
        self.size, self.training = size, training

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        with Image.open(self.paths[i]) as image:
            views = random_crop(image, self.size) if self.training else ten_crops(image, self.size)
        pixels = torch.from_numpy(np.stack([np.asarray(view.convert("RGB")) for view in views]))
        views = (pixels.permute(0, 3, 1, 2).float() / 255 - MEAN) / SPREAD
        return views, torch.from_numpy(self.truth[i])


def random_crop(image, size):
    """A part of 8 % to all of the area, of a shape from 3:4 to 4:3, enlarged to the whole; half of them mirrored."""
    width, height = image.size
    for _ in range(10):
        area = width * height * torch.empty(1).uniform_(0.08, 1).item()
        shape = torch.empty(1).uniform_(np.log(3 / 4), np.log(4 / 3)).exp().item()
        w, h = (area * shape) ** 0.5, (area / shape) ** 0.5
        if w <= width and h <= height:
            break
    else:
        w = h = min(width, height)
    left, top = torch.rand(2).tolist()
    left, top = left * (width - w), top * (height - h)
    view = image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + w, top + h))
    return [view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if torch.rand(1) < 0.5 else view]


def ten_crops(image, size):
    """The corners and the middle, 7/8 of the shorter side, and these mirrored."""
    width, height = image.size
    side = 7 / 8 * min(width, height)
    right, low = width - side, height - side
    views = []
    for left, top in ((0, 0), (right, 0), (0, low), (right, low), (right / 2, low / 2)):
        view = image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
        views += [view, view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    return views


def average_precision(truth, scores, eleven=True):
    """Of one class; images where it is hard to tell (-1) do not count.

    eleven: the mean over recalls of 0, .1, ... 1 of the best precision at that recall or above, as VOC2007 has it.
    Otherwise the area under the precision that is made falling: VOC2010 and later.
    """
    known = truth >= 0
    order = np.argsort(-scores[known], kind="stable")
    right = truth[known][order] == 1
    if not right.any():
        return float("nan")
    recall = np.cumsum(right) / right.sum()
    precision = np.cumsum(right) / np.arange(1, len(right) + 1)
    falling = np.maximum.accumulate(precision[::-1])[::-1]
    if eleven:
        points = np.linspace(0, 1, 11)
        return float(np.mean([falling[recall >= point - 1e-12].max(initial=0) for point in points]))
    return float(np.sum(np.diff(recall, prepend=0) * falling))


def network_of(weights, n_classes, size):
    """The exported backbone, and a linear layer on its features, standardised as they were for the heads."""
    with safe_open(weights, "pt") as file:
        about, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    layers = absorbed(network(about["backbone"], int(about["channels"]), **json.loads(about["options"])).layers).eval()
    layers.load_state_dict(tensors)
    if (entry := json.loads(about["entry"])) is not None:  # other constants, or slopes
        layers.register_forward_pre_hook(Entry(**entry))
    with torch.no_grad():
        feature_dim = layers(torch.zeros(1, 3, size, size)).shape[1]
    return nn.Sequential(layers, nn.BatchNorm1d(feature_dim, affine=False), nn.Linear(feature_dim, n_classes))


def learned(model, layers):
    """The parameters that are trained; all others, and their batch norms' averages, stay."""
    parts = {"all": [model], "head": [model[2]], "fc6-8": [getattr(model[0], "classifier", nn.Identity()), model[2]]}[
        layers
    ]
    model.requires_grad_(False)
    for part in parts:
        part.requires_grad_(True)
    return [parameter for parameter in model.parameters() if parameter.requires_grad], parts


def loss_of(logits, truth):
    """Binary cross-entropy over all classes of an image, without those that are hard to tell."""
    each = nn.functional.binary_cross_entropy_with_logits(logits, truth.clamp(min=0).float(), reduction="none")
    return (each * (truth >= 0)).sum() / len(truth)


def main(folder, weights, layers="all", iterations=80_000, batch=16, lr=1e-3, size=224, workers=2):
    torch.manual_seed(0)
    train, test = VOC(folder, "trainval", size, True), VOC(folder, "test", size, False)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = network_of(weights, len(train.classes), size).to(device)
    parameters, parts = learned(model, layers)
    optimizer = torch.optim.SGD(parameters, lr, momentum=0.9, weight_decay=1e-6)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, max(1, iterations // 16), gamma=0.5)
    loader = DataLoader(train, batch, shuffle=True, drop_last=True, num_workers=workers)
    step = 0
    while step < iterations:
        model.eval()
        model[1].train()
        for part in parts:
            part.train()
        for views, truth in loader:
            loss = loss_of(model(views[:, 0].to(device)), truth.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
            if step % max(1, iterations // 20) == 0:
                print(f"step {step:>6}: loss {loss.item():.3f}")
            if step == iterations:
                break
    model.eval()
    scores = []
    with torch.no_grad():
        for views, _ in DataLoader(test, batch, num_workers=workers):
            logits = model(views.flatten(0, 1).to(device))
            scores.append(logits.view(*views.shape[:2], -1).mean(1).cpu().numpy())
    scores = np.concatenate(scores)
    found = {}
    for eleven, name in ((True, "mAP, 11 points"), (False, "mAP, all points")):
        each = [average_precision(test.truth[:, k], scores[:, k], eleven) for k in range(len(test.classes))]
        found[name] = float(np.nanmean(each))
        print(f"{name}: {found[name]:.3f}")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="VOC2007 multi-label classification of an exported backbone.")
    parser.add_argument("folder", help="VOCdevkit/VOC2007")
    parser.add_argument("weights", help="what otlabel export has written")
    parser.add_argument("--layers", choices=("all", "fc6-8", "head"), default="all", help="which are trained")
    parser.add_argument("--iterations", type=int, default=80_000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--workers", type=int, default=2)
    main(**vars(parser.parse_args()))
