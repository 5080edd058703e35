"""
Self-labelling on several processes
===================================

What ``DistributedDataParallel`` asks for, and nothing more: each process has its part of the data, for training and for
labelling, and calls ``labeler.update`` when the others do. It extracts and keeps the features of its own part; to find
the best labels of all the data together, processes tell each other a few numbers a class, and the labels. These are the
ones that one process would find from the same features: ``labels.h5`` is the same however many processes there are, if
the number of epochs is 0. (Training itself differs a little: each process normalizes by its own batches.)

Run: python examples/selflabel_ddp.py    (needs scikit-learn; some seconds)
     torchrun --nproc-per-node 2 examples/selflabel_ddp.py
"""

import os
import sys

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from otlabel import IndexedDataset, MultiHead, SelfLabeler, metrics


def main(epochs=20):
    several = "RANK" in os.environ  # torchrun sets it
    if several:
        dist.init_process_group("gloo")  # "nccl" with a GPU for each
    rank, n_ranks = (dist.get_rank(), dist.get_world_size()) if several else (0, 1)

    torch.manual_seed(0)
    images, digits = load_digits(return_X_y=True)
    data = IndexedDataset(TensorDataset(torch.tensor(images, dtype=torch.float32) / 8 - 1))  # yields (index, image)
    sampler = DistributedSampler(data, n_ranks, rank)
    loader = DataLoader(data, batch_size=128 // n_ranks, sampler=sampler)
    full_loader = DataLoader(data, batch_size=512, sampler=DistributedSampler(data, n_ranks, rank, shuffle=False))

    backbone = nn.Sequential(
        nn.Linear(64, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 64), nn.BatchNorm1d(64, affine=False)
    )
    model = MultiHead(backbone, feature_dim=64, n_classes=10)
    if several:
        model = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)
    labeler = SelfLabeler(len(data), 10)
    torch.manual_seed(rank)  # noise of its own

    for epoch in range(epochs):
        (record,) = labeler.update(model, full_loader)
        if epoch % 5 == 0 and rank == 0:
            nmi = metrics.nmi(digits, labeler.labels[0])
            print(f"epoch {epoch:>2}: {record['churn']:.1%} of the labels changed, NMI {nmi:.3f}")
        sampler.set_epoch(epoch)
        for index, x in loader:
            (logits,) = model(x + torch.randn_like(x))
            loss = labeler.loss(logits, index)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    labeler.update(model, full_loader)

    found = metrics.compare(digits, labeler.labels[0])
    if rank == 0:
        print(f"{n_ranks} processes: class sizes {labeler.labels[0].bincount().tolist()}, NMI {found['nmi']:.3f}")
        labeler.save_labels("labels.h5")
    if several:
        dist.destroy_process_group()
    return found


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
