"""
One, two or five labels a class
===============================

Images of clothes, of which a few of each class are labelled. A classifier that learns from these labels all others,
and a second one learns from its labels: pseudo-labelling as most people meet it. A few labels make a classifier that
favours some classes; equal sizes, which are right for these data, put that straight before the second one learns from
it.

The images are from Debian's package dataset-fashion-mnist, sought in ``$OTLABEL_DATA/fashion-mnist`` and
``/usr/share/datasets/fashion-mnist``; without it, scikit-learn's digits take their place.

Run: python examples/few_labels.py    (needs "otlabel[training]"; about a minute)
"""

import numpy as np
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

from otlabel import sinkhorn_assign
from otlabel.training.data import load_images

K = 10
LABELLED = (1, 2, 5)  # of each class
N_FEATURES = 40


def main(n: int = 3_000, n_seeds: int = 5) -> dict[str, dict[int, float]]:
    """Accuracy on test images, the mean over which images are labelled."""
    try:
        images = load_images("fashion-mnist", n_samples=n)
    except FileNotFoundError as error:
        print(f"{error}\nDigits in their place.\n")
        images = load_images("digits")
    train, test = (one.numpy().reshape(len(one), -1) / 255 for one in (images.train, images.test))
    truth, test_truth = images.train_labels.numpy(), images.test_labels.numpy()
    pca = PCA(min(N_FEATURES, train.shape[1]), whiten=True, random_state=0).fit(train)
    train, test = pca.transform(train), pca.transform(test)

    names = ("few labels alone", "pseudo-labels: best class", "pseudo-labels: equal sizes", "the same, surest 60 %")
    found: dict[str, dict[int, list[float]]] = {name: {m: [] for m in LABELLED} for name in names}
    for m in LABELLED:
        for seed in range(n_seeds):
            rng = np.random.default_rng(seed)
            labelled = np.concatenate([rng.choice(np.flatnonzero(truth == k), m, replace=False) for k in range(K)])
            first = LogisticRegression(C=0.1, max_iter=500).fit(train[labelled], truth[labelled])
            scores = first.predict_log_proba(train)
            answers = (
                None,
                scores.argmax(1),
                sinkhorn_assign(scores).labels,
                sinkhorn_assign(scores, abstain=0.4).labels,  # those that fit worst stay unlabelled
            )
            for name, labels in zip(names, answers, strict=True):
                model = first
                if labels is not None:
                    labels[labelled] = truth[labelled]
                    known = labels >= 0
                    model = LogisticRegression(C=0.1, max_iter=500).fit(train[known], labels[known])
                found[name][m].append(float(np.mean(model.predict(test) == test_truth)))

    means = {name: {m: float(np.mean(one)) for m, one in by.items()} for name, by in found.items()}
    print("accuracy on test images        " + "".join(f"{f'{m} a class':>12}" for m in LABELLED))
    for name, by in means.items():
        print(f"{name:<31}" + "".join(f"{by[m]:12.3f}" for m in LABELLED))
    return means


if __name__ == "__main__":
    main()
