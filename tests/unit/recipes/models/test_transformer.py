from __future__ import annotations

import math

import pytest
import torch

from velodrome.errors import ArgumentError, DataError
from velodrome.recipes.models import gpt


@pytest.fixture
def model():
    torch.manual_seed(0)
    return gpt(11, context=8, num_layers=2, num_heads=2, width=16, dropout=0.1)


def test_gpt_scores_every_token_at_every_position_as_cross_entropy_wants_them(model):
    ids = torch.randint(0, 11, (3, 8))
    scores = model(ids)
    assert scores.shape == (3, 11, 8)
    # Untrained, with small weights, every token is about as likely as another.
    assert torch.nn.functional.cross_entropy(scores, (ids + 1) % 11).item() == pytest.approx(math.log(11), abs=0.05)


def test_gpt_number_of_parameters(model):
    # a block: two norms, 16*48+48 + 16*16+16 of attention, 16*64+64 + 64*16+16 of two linear layers
    block = 2 * 32 + 16 * 48 + 48 + 16 * 16 + 16 + 16 * 64 + 64 + 64 * 16 + 16
    # embeddings of 11 tokens and 8 positions, the last norm; the scores use the tokens' matrix
    assert sum(p.numel() for p in model.parameters()) == 11 * 16 + 8 * 16 + 2 * block + 32


def test_gpt_looks_back_and_never_ahead(model):
    model.eval()
    ids = torch.arange(8).unsqueeze(0)
    changed = ids.clone()
    changed[0, 5] = 10
    before, after = model(ids)[0], model(changed)[0]
    assert torch.equal(before[:, :5], after[:, :5])
    assert all(not torch.equal(before[:, i], after[:, i]) for i in (5, 6, 7))


def test_gpt_takes_fewer_positions_than_its_context(model):
    model.eval()
    ids = torch.arange(8).unsqueeze(0)
    torch.testing.assert_close(model(ids[:, :3]), model(ids)[:, :, :3])


def test_gpt_reads_and_scores_tokens_with_one_matrix(model):
    model.eval()
    with torch.no_grad():
        model.tokens.weight[7] *= 2
        model.norm.weight.zero_()
        model.norm.bias.copy_(model.tokens.weight[7])
        scores = model(torch.zeros(1, 1, dtype=torch.int64))[0, :, 0]
    torch.testing.assert_close(scores, model.tokens.weight @ model.tokens.weight[7])


def test_gpt_begins_as_gpt_2_does():
    torch.manual_seed(0)
    model = gpt(50, context=64, num_layers=8, num_heads=2, width=64)
    block = model.blocks[0]
    for weight in (model.tokens.weight, model.positions.weight, block.feed_forward[0].weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    for weight in (block.attention.output.weight, block.feed_forward[2].weight):
        assert weight.std().item() == pytest.approx(0.02 / math.sqrt(16), rel=0.05)  # two parts a block
    assert not block.feed_forward[0].bias.any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r'vocab_size=\'auto\' must be a positive number\. Only a recipe may say "auto"'),
        ({"vocab_size": 5}, "context='auto' must be a positive number"),
        ({"vocab_size": 5, "context": 4, "num_layers": 0}, "num_layers=0 must be a positive number"),
        (
            {"vocab_size": 5, "context": 4, "width": 10, "num_heads": 4},
            r"num_heads=4 does not divide width=10 \(10 % 4 = 2\)\. Use width=8 or width=12",
        ),
        ({"vocab_size": 5, "context": 4, "dropout": 1.5}, "dropout=1.5 must be at least 0 and less than 1"),
    ],
)
def test_gpt_wrong_argument_is_refused(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        gpt(**arguments)


@pytest.mark.parametrize("shape", [(2, 9), (8,)])
def test_gpt_ids_that_do_not_fit_are_refused(model, shape):
    with pytest.raises(DataError, match="with at most 8 positions: use shorter windows"):
        model(torch.zeros(shape, dtype=torch.int64))
