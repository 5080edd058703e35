"""What the texts of a class are about: words that are frequent there and rare elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse import csr_array

N_WORDS = 6  # of a class
MOST_TEXTS, MOST_WORDS = 50_000, 30_000  # looked at
LONGEST = 4_000  # characters of a text


def key_words(texts: Any, labels: np.ndarray, n_classes: int, seed: int) -> list[list[str]]:
    """The words of each class that tf-idf puts first, all its texts taken as one; none where scikit-learn is missing.

    Source: Grootendorst, "BERTopic: neural topic modeling with a class-based TF-IDF procedure", arXiv:2203.05794.
    """
    try:
        from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer
    except ImportError:
        return [[] for _ in range(n_classes)]
    known = np.flatnonzero(labels >= 0)
    if len(known) > MOST_TEXTS:
        known = np.sort(np.random.default_rng(seed).choice(known, MOST_TEXTS, replace=False))
    counter = CountVectorizer(stop_words="english", max_features=MOST_WORDS, token_pattern=r"(?u)\b[^\W\d_][\w-]+\b")
    try:
        counts = counter.fit_transform(str(texts[i])[:LONGEST] for i in known.tolist())
    except ValueError:  # no word at all
        return [[] for _ in range(n_classes)]
    members = csr_array((np.ones(len(known)), (labels[known], np.arange(len(known)))), (n_classes, len(known)))
    weights = TfidfTransformer(sublinear_tf=True).fit_transform(members @ counts).tocsr()
    words, found = counter.get_feature_names_out(), []
    for k in range(n_classes):
        row = slice(weights.indptr[k], weights.indptr[k + 1])
        columns = weights.indices[row][np.lexsort((weights.indices[row], -weights.data[row]))[:N_WORDS]]
        found.append([str(words[column]) for column in columns])
    return found
