"""Bag of embeddings: the mean of a text's token vectors, and a linear layer (Joulin et al., 1607.01759).

Features: `embedding` [N, L, width], `pool` [N, width].
"""

from torch import Tensor, nn

from kdbench.models.layers import MaskedMean, word_vectors
from kdbench.records import Count


class EmbeddingBag(nn.Module):
    """Written as lookup and masked mean, which every runtime knows; ONNX has no operator for `nn.EmbeddingBag`."""

    def __init__(self, vocabulary: int, width: int, classes: int) -> None:
        super().__init__()
        self.embedding = word_vectors(vocabulary, width)
        self.pool = MaskedMean()
        self.head = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(self.pool(self.embedding(tokens), tokens))
        return logits


def embedding_bag(classes: int, vocabulary: Count, width: Count = 64) -> nn.Module:
    """Token ids [N, L] below `vocabulary`, 0 for padding, to logits [N, classes]."""
    return EmbeddingBag(vocabulary, width, classes)
