"""
A network that labels images for itself
=======================================

Self-labelling in a training loop of one's own: any model, any data set, three lines more than supervised training.
The data here are scikit-learn's digits, without their labels. `otlabel train` does the same from a TOML file, with
augmentation, checkpoints and resume; this is what to copy into other code.

Run: python examples/selflabel_images.py    (needs scikit-learn; ten seconds on one core; writes labels.h5)
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from otlabel import IndexedDataset, MultiHead, OptimalTransport, QuadraticSchedule, SelfLabeler, metrics

EPOCHS = 20


def backbone() -> nn.Module:
    """Any module that gives features. Without weights of its own, the last normalisation keeps them on one scale."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, 1, 1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 64, 3, 2, 1), nn.BatchNorm2d(64), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.BatchNorm1d(256, affine=False),
    )  # fmt: skip


def shifted(images: torch.Tensor) -> torch.Tensor:
    """An augmentation: what a model is to ignore."""
    moves = torch.randint(-1, 2, (2,)).tolist()
    return torch.roll(images, moves, (2, 3))


def main(epochs: int = EPOCHS) -> dict[str, float]:
    """Train, then compare the labels with the truth."""
    torch.manual_seed(0)
    pixels, digits = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1

    dataset = IndexedDataset(TensorDataset(images))  # yields (index, image)
    loader = DataLoader(dataset, batch_size=64, shuffle=True)
    full_loader = DataLoader(dataset, batch_size=512)
    model = MultiHead(backbone(), feature_dim=256, n_classes=[10, 10, 10])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)
    labeler = SelfLabeler(
        len(dataset),
        n_classes=[10, 10, 10],
        labeling=OptimalTransport(epsilon=0.04),
        schedule=QuadraticSchedule(epochs, n_relabels=30),
    )
    for epoch in range(epochs):
        for step, (index, batch) in enumerate(loader):
            if labeler.due(epoch + step / len(loader)):
                labeler.update(model, full_loader)
            loss = labeler.loss(model(shifted(batch)), index)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    labeler.save_labels("labels.h5")
    found = metrics.compare(digits, labeler.labels[0])
    print(f"{labeler.n_updates} relabellings, class sizes {labeler.labels[0].bincount().tolist()}")
    print(f"NMI {found['nmi']:.3f}, accuracy {found['accuracy']:.3f}; labels of all heads: labels.h5")
    return found


if __name__ == "__main__":
    main()
