"""
Codes for the batches of SwAV
=============================

SwAV has no labels of the whole data: in each step ``soft_assign`` makes codes of the batch, soft labels whose classes
take nearly the same mass, and each view of an image is trained to predict the code of the other. A queue of earlier
features (here of one batch) makes the batch larger for the codes. Without balance the codes are the softmax of the
same logits: the loss gets smaller, all images fall into a few prototypes, and features get worse than untrained ones.

Caron, Misra, Mairal, Goyal, Bojanowski, Joulin, "Unsupervised learning of visual features by contrasting cluster
assignments", NeurIPS 2020.

Run: python examples/swav_batches.py    (needs scikit-learn; a quarter of a minute on one core)
"""

import math

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from otlabel import metrics, soft_assign

N_PROTOTYPES, EPSILON, TEMPERATURE = 30, 0.05, 0.1


def view(images: Tensor) -> Tensor:
    """Each image moved by up to a pixel, with noise."""
    moves = torch.randint(-1, 2, (2,)).tolist()
    return torch.roll(images, moves, (2, 3)) + 0.3 * torch.randn_like(images)


def train(images: Tensor, epochs: int, balanced: bool = True) -> tuple[nn.Module, Tensor, float]:
    """Swapped prediction; returns the encoder, the prototypes and the last epoch's loss."""
    torch.manual_seed(0)
    encoder = nn.Sequential(
        nn.Conv2d(1, 32, 3, 1, 1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 64, 3, 2, 1), nn.BatchNorm2d(64), nn.ReLU(),
        nn.Flatten(), nn.Linear(1024, 64), nn.BatchNorm1d(64, affine=False),
    )  # fmt: skip
    prototypes = nn.Linear(64, N_PROTOTYPES, bias=False)
    optimizer = torch.optim.Adam([*encoder.parameters(), *prototypes.parameters()], lr=1e-3)
    queue, losses = torch.empty(0, 64), [math.nan]
    for _ in range(epochs):
        losses = []
        for index in torch.randperm(len(images)).split(128):
            prototypes.weight.data = F.normalize(prototypes.weight.data)
            features = [F.normalize(encoder(view(images[index]))) for _ in range(2)]
            logits = [prototypes(one) for one in features]  # cosines
            with torch.no_grad():
                earlier = prototypes(queue)
                if balanced:
                    codes = [soft_assign(torch.cat([one, earlier]), EPSILON)[: len(index)] for one in logits]
                else:
                    codes = [F.softmax(one / EPSILON, 1) for one in logits]
            loss = sum(F.cross_entropy(logits[i] / TEMPERATURE, codes[1 - i]) for i in range(2)) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            queue = features[0].detach()
            losses.append(loss.item())
    return encoder.eval(), F.normalize(prototypes.weight.detach()), sum(losses) / len(losses)


def main(epochs: int = 40) -> dict[str, float]:
    """Train with and without balance, and judge features and prototypes by the truth."""
    pixels, digits = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1
    found: dict[str, float] = {}
    print("codes              loss  prototypes in use  largest share    NMI    kNN")
    for name, how in {"none: untrained": (0,), "balanced": (epochs,), "softmax alone": (epochs, False)}.items():
        encoder, prototypes, loss = train(images[:1300], *how)
        with torch.no_grad():
            features = F.normalize(encoder(images))
        nearest = (features @ prototypes.T).argmax(1)
        sizes = nearest.bincount(minlength=N_PROTOTYPES)
        nmi = metrics.nmi(digits, nearest)
        knn = metrics.knn_accuracy(features[:1300], digits[:1300], features[1300:], digits[1300:], k=10)
        in_use, largest = int((sizes > 0).sum()), float(sizes.max() / len(images))
        print(f"{name:<16} {loss:>6.3f} {in_use:>12} of {N_PROTOTYPES} {largest:>14.3f} {nmi:>7.3f} {knn:>6.3f}")
        found |= {f"{name}: loss": loss, f"{name}: in use": in_use, f"{name}: NMI": nmi, f"{name}: kNN": knn}
    return found


if __name__ == "__main__":
    main()
