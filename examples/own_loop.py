"""
Self-labelling in the shortest loop
===================================

Any ``nn.Module`` will do: ``features=`` says how to get (B, D) features of a batch from it, ``heads=`` where its linear
layers are. The loop is that of supervised training, but that the labels come from ``labeler.loss`` and are made anew by
``labeler.update``, here before each epoch. The augmentation is noise, whose strength was chosen by the true classes.

Run: python examples/own_loop.py    (needs scikit-learn; some seconds)
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from otlabel import IndexedDataset, SelfLabeler, metrics


class Net(nn.Module):  # a model as one finds it: no list of heads, names of its own
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 64))
        self.norm, self.classifier = nn.BatchNorm1d(64, affine=False), nn.Linear(64, 10)

    def forward(self, x):
        return self.classifier(self.norm(self.body(x)))


def main(epochs=30):
    torch.manual_seed(0)
    images, digits = load_digits(return_X_y=True)
    data = IndexedDataset(TensorDataset(torch.tensor(images, dtype=torch.float32) / 8 - 1))  # yields (index, image)
    loader, full_loader = DataLoader(data, batch_size=128, shuffle=True), DataLoader(data, batch_size=512)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)
    labeler = SelfLabeler(len(data), 10, features=lambda m, x: m.norm(m.body(x)), heads=lambda m: [m.classifier])
    for epoch in range(epochs):
        (record,) = labeler.update(model, full_loader)
        if epoch % 5 == 0:
            nmi = metrics.nmi(digits, labeler.labels[0])
            print(f"epoch {epoch:>2}: {record['churn']:.1%} of the labels changed, NMI {nmi:.3f}")
        for index, x in loader:
            loss = labeler.loss(model(x + torch.randn_like(x)), index)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    print("class sizes", labeler.labels[0].bincount().tolist())
    return metrics.compare(digits, labeler.labels[0])


if __name__ == "__main__":
    main()
