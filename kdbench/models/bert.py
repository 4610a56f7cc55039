"""BERT, the encoder of the Transformer (Devlin et al., 1810.04805); small ones as in Turc et al., 1908.08962.

Of one text at a time: without segment embeddings. Features: `stages.0` … one for each layer [N, L, width], `pool`
[N, width].
"""

from torch import Tensor, nn
from torch.nn import functional

from kdbench.models.layers import PAD, Dropout
from kdbench.records import Count

HIDDEN = -1e4
"""Added to the scores of padding. As good as −∞ behind the softmax; fits half precision, and keeps a text of nothing
but padding finite."""


class Attention(nn.Module):
    """Multi-head self-attention: [N, L, width] to the same; `mask` [N, 1, 1, L] is added to the scores."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        n, length, _ = x.shape
        query, key, value = (  # as wide as the heads that pruning left
            part(x).reshape(n, length, self.heads, part.out_features // self.heads).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        dropout = self.dropout if self.training else 0.0
        attended = functional.scaled_dot_product_attention(query, key, value, mask, dropout)
        mixed: Tensor = self.output(attended.transpose(1, 2).reshape(n, length, self.output.in_features))
        return mixed


class Layer(nn.Module):
    """Attention and two linear layers, each added to its input and normed behind."""

    def __init__(self, width: int, heads: int, feed_forward: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(width, heads, dropout)
        self.norm1 = nn.LayerNorm(width, eps=1e-12)
        self.feed_forward = nn.Sequential(nn.Linear(width, feed_forward), nn.GELU(), nn.Linear(feed_forward, width))
        self.norm2 = nn.LayerNorm(width, eps=1e-12)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.norm1(x + self.dropout(self.attention(x, mask)))
        y: Tensor = self.norm2(x + self.dropout(self.feed_forward(x)))
        return y


class FirstToken(nn.Module):
    """The paper's pooler: [N, L, width] to tanh of a linear layer on the first token [N, width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return functional.tanh(self.linear(x[:, 0]))


class BERT(nn.Module):
    """Embeddings of tokens and positions, layers, pooler, linear classifier."""

    def __init__(
        self,
        vocabulary: int,
        positions: int,
        layers: int,
        heads: int,
        width: int,
        feed_forward: int,
        dropout: float,
        classes: int,
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width, padding_idx=PAD)
        self.positions = nn.Embedding(positions, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.dropout = nn.Dropout(dropout)
        self.stages = nn.ModuleList([Layer(width, heads, feed_forward, dropout) for _ in range(layers)])
        self.pool = FirstToken(width)
        self.head = nn.Linear(width, classes)
        self.apply(_initial)

    def forward(self, tokens: Tensor) -> Tensor:
        mask = (tokens == PAD)[:, None, None, :].to(self.positions.weight.dtype) * HIDDEN
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        x = self.dropout(self.norm(x))
        for layer in self.stages:
            x = layer(x, mask)
        logits: Tensor = self.head(self.dropout(self.pool(x)))
        return logits


def _initial(module: nn.Module) -> None:
    """The paper's first weights: small normal ones, biases and padding 0."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        nn.init.zeros_(module.weight[module.padding_idx])


def bert(
    input_shape: tuple[int, ...],
    classes: int,
    vocabulary: Count,
    layers: Count = 2,
    heads: Count = 2,
    width: Count = 128,
    feed_forward: Count | None = None,
    positions: Count | None = None,
    dropout: Dropout = 0.1,
) -> nn.Module:
    """Token ids [N, L] below `vocabulary`, 0 for padding, to logits [N, classes]. The default is BERT-Tiny.

    Where nothing else is said, `feed_forward` is 4 · `width`, and `positions` the length of the texts.
    """
    positions = positions or input_shape[0]
    if width % heads:
        raise ValueError(f"width {width} should be a multiple of heads, {heads}")
    if positions < input_shape[0]:
        raise ValueError(f"positions {positions} are fewer than the {input_shape[0]} tokens of a text")
    return BERT(vocabulary, positions, layers, heads, width, feed_forward or 4 * width, dropout, classes)
