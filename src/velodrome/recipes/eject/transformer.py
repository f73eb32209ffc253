"""The GPT as a script has it: the classes of `recipes/models/transformer.py`, with their sizes as constants of the file."""

from __future__ import annotations

__all__ = ["GPT"]

_ATTENTION = '''\
class Attention(nn.Module):
    """Each position gathers from itself and the positions before it."""

    def __init__(self) -> None:
        super().__init__()
        self.query_key_value = nn.Linear(WIDTH, 3 * WIDTH)
        self.output = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        heads = self.query_key_value(x)
        heads = heads.view(batch, length, 3, NUM_HEADS, WIDTH // NUM_HEADS)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        dropout = DROPOUT if self.training else 0.0
        gathered = F.scaled_dot_product_attention(
            query, key, value, dropout_p=dropout, is_causal=True
        )
        return self.output(gathered.transpose(1, 2).reshape(batch, length, WIDTH))
'''
_BLOCK = '''\
class Block(nn.Module):
    """Attention, then two linear layers, each added to what it read."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(WIDTH)
        self.attention = Attention()
        self.feed_forward_norm = nn.LayerNorm(WIDTH)
        self.feed_forward = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
'''
_GPT = '''\
class GPT(nn.Module):
    """Predicts each next token: ids (N, T) to scores (N, VOCAB_SIZE, T)."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCAB_SIZE, WIDTH)
        self.positions = nn.Embedding(CONTEXT, WIDTH)
        self.dropout = nn.Dropout(DROPOUT)
        self.blocks = nn.ModuleList(Block() for _ in range(NUM_LAYERS))
        self.norm = nn.LayerNorm(WIDTH)
        self.apply(initialise)
        # 2 * NUM_LAYERS parts are added up: smaller ones keep their sum from growing.
        for name, parameter in self.named_parameters():
            if name.endswith(("attention.output.weight", "feed_forward.2.weight")):
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * NUM_LAYERS))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x)
        # One matrix reads tokens and scores them.
        return F.linear(self.norm(x), self.tokens.weight).transpose(1, 2)
'''
_INITIALISE = '''\
def initialise(module: nn.Module) -> None:
    """Draw weights with a standard deviation of 0.02, as GPT-2 does; biases are 0."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
'''
GPT = (_ATTENTION, _BLOCK, _GPT, _INITIALISE)
