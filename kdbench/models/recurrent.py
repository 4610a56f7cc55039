"""Recurrent networks: LSTM (Hochreiter & Schmidhuber, 1997) and GRU (Cho et al., 1406.1078), the mean of their states.

Features: `stages.0` … one for each layer [N, L, width], `pool` [N, width]; of texts also `embedding` [N, L, embedding].
"""

from torch import Tensor, nn

from kdbench.models.layers import Dropout, MaskedMean, word_vectors
from kdbench.records import Count

Cell = type[nn.LSTM] | type[nn.GRU]


class Layer(nn.Module):
    """One layer: [N, L, in_channels] to its hidden states [N, L, width]. From the first to the last step only."""

    def __init__(self, cell: Cell, in_channels: int, width: int) -> None:
        super().__init__()
        self.cell = cell(in_channels, width, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        states: Tensor = self.cell(x)[0]
        return states


def _layers(cell: Cell, in_channels: int, width: int, layers: int) -> nn.Sequential:
    return nn.Sequential(*(Layer(cell, width if i else in_channels, width) for i in range(layers)))


class TextRecurrent(nn.Module):
    """Embedding, layers, mean over the tokens, dropout, linear classifier. Padding behind a text changes nothing."""

    def __init__(
        self, cell: Cell, vocabulary: int, embedding: int, width: int, layers: int, dropout: float, classes: int
    ) -> None:
        super().__init__()
        self.embedding = word_vectors(vocabulary, embedding)
        self.stages = _layers(cell, embedding, width, layers)
        self.pool = MaskedMean()
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(self.dropout(self.pool(self.stages(self.embedding(tokens)), tokens)))
        return logits


class AudioRecurrent(nn.Module):
    """Layers over the frames, mean over them, dropout, linear classifier."""

    def __init__(self, cell: Cell, mels: int, width: int, layers: int, dropout: float, classes: int) -> None:
        super().__init__()
        self.stages = _layers(cell, mels, width, layers)
        self.pool = nn.AdaptiveAvgPool1d(1)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        states = self.stages(x.squeeze(1).transpose(1, 2))
        logits: Tensor = self.head(self.dropout(self.pool(states.transpose(1, 2)).flatten(1)))
        return logits


def lstm(
    classes: int,
    vocabulary: Count,
    embedding: Count = 128,
    width: Count = 128,
    layers: Count = 1,
    dropout: Dropout = 0.0,
) -> nn.Module:
    """Token ids [N, L] below `vocabulary`, 0 for padding, to logits [N, classes]."""
    return TextRecurrent(nn.LSTM, vocabulary, embedding, width, layers, dropout, classes)


def gru(
    classes: int,
    vocabulary: Count,
    embedding: Count = 128,
    width: Count = 128,
    layers: Count = 1,
    dropout: Dropout = 0.0,
) -> nn.Module:
    """Token ids [N, L] below `vocabulary`, 0 for padding, to logits [N, classes]."""
    return TextRecurrent(nn.GRU, vocabulary, embedding, width, layers, dropout, classes)


def audio_gru(
    input_shape: tuple[int, ...], classes: int, width: Count = 64, layers: Count = 1, dropout: Dropout = 0.0
) -> nn.Module:
    """Log-mel spectrograms [N, 1, mels, frames] to logits [N, classes]."""
    if len(input_shape) != 3 or input_shape[0] != 1:
        raise ValueError(f"takes spectrograms of shape (1, mels, frames), not {input_shape}")
    return AudioRecurrent(nn.GRU, input_shape[1], width, layers, dropout, classes)
