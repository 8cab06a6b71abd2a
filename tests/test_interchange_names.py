"""A table of names is read in both directions, and nothing that it does not know goes through unseen."""

import pytest
import torch
from torch.testing import assert_close

from hf_attn.interchange.names import STACKED, TRANSPOSED, VECTOR, Change, Names, Row, looked_at, with_bias

TABLE_ROWS = [
    Row("cls", "token", VECTOR),
    Row("blocks.{}.qkv", ("layers.{}.q", "layers.{}.k", "layers.{}.v"), STACKED),
    Row("blocks.{}.kernel", "layers.{}.weight", TRANSPOSED),
    *with_bias("norm", "final_norm"),
]
TABLE = Names(TABLE_ROWS, beside=[r".*\.num_batches_tracked"])


def theirs() -> dict[str, torch.Tensor]:
    layers = {f"blocks.{n}.{name}": torch.randn(6, 4) for n in (0, 11) for name in ("qkv", "kernel")}
    return {"cls": torch.randn(1, 1, 4), "norm.weight": torch.randn(4), "norm.bias": torch.randn(4), **layers}


def test_there_and_back_nothing_changes():
    before = theirs()
    taken = TABLE.take({**before, "bn.num_batches_tracked": torch.tensor(3)})
    assert taken["token"].shape == (4,) and taken["layers.11.k"].shape == (2, 4)
    assert_close(taken["layers.11.k"], before["blocks.11.qkv"][2:4])
    assert_close(taken["layers.0.weight"], before["blocks.0.kernel"].T)
    after = TABLE.give(taken)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_each_of_ours_is_a_storage_of_its_own_and_only_what_is_transposed_is_copied():
    before = theirs()
    stacked = before["blocks.0.qkv"].untyped_storage()
    memory = range(stacked.data_ptr(), stacked.data_ptr() + stacked.nbytes())
    taken = TABLE.take(before)
    for name, tensor in taken.items():
        assert tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
        assert (tensor.data_ptr() in memory) == (name in ("layers.0.q", "layers.0.k", "layers.0.v"))
    key = taken.pop("layers.0.k")
    expected = before["blocks.0.qkv"][2:4].clone()
    del before, taken, stacked
    assert torch.equal(key, expected)


def test_what_no_row_has_is_named():
    with pytest.raises(ValueError, match=r"2 tensors that no such model has: blocks.x.qkv, norms.weight"):
        TABLE.take({**theirs(), "norms.weight": torch.ones(4), "blocks.x.qkv": torch.ones(6, 4)})
    with pytest.raises(ValueError, match=r"1 tensor that the format has no name for: layers.0.gate"):
        TABLE.give({"layers.0.gate": torch.ones(1)})


def test_of_two_tensors_that_are_one_of_ours_none_is_chosen():
    table = Names([*TABLE_ROWS, Row("blocks.{}.q", "layers.{}.q")])
    with pytest.raises(ValueError, match=r"blocks\.11\.q and another tensor are both layers\.11\.q; leave one"):
        table.take({**theirs(), "blocks.11.q": torch.randn(2, 4)})


def test_a_name_of_ours_is_told_in_theirs():
    assert TABLE.theirs("layers.3.k") == "blocks.3.qkv"
    assert TABLE.theirs("final_norm.bias") == "norm.bias"
    assert TABLE.theirs("unknown") == "unknown"


def test_several_of_theirs_may_be_one_of_ours():
    halves = Change(lambda a, b: [torch.cat([a, b], dim=-1)], lambda ours: ours[0].chunk(2, dim=-1))
    table = Names([Row(("heads.{}.left", "heads.{}.right"), "classifiers.{}", halves)])
    before = {"heads.0.right": torch.randn(2, 3), "heads.0.left": torch.randn(2, 3)}
    taken = table.take(before)
    assert_close(taken["classifiers.0"][:, :3], before["heads.0.left"])
    after = table.give(taken)
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert table.theirs("classifiers.0") == "heads.0.left"
    with pytest.raises(ValueError, match=r"there is heads\.0\.right, but not heads\.0\.left"):
        table.take({"heads.0.right": torch.randn(2, 3)})


def test_a_tensor_may_be_looked_at_and_left_out():
    def ones(tensor: torch.Tensor) -> None:
        if not (tensor == 1).all():
            raise ValueError("it is not 1")

    table = Names([*with_bias("norm", "final_norm"), looked_at("layers.{}.scale", ones)])
    ours = {"norm.weight": torch.randn(4), "norm.bias": torch.randn(4)}
    assert table.take({**ours, "layers.3.scale": torch.ones(2)}).keys() == {"final_norm.weight", "final_norm.bias"}
    assert table.give(table.take(ours)).keys() == ours.keys()
    with pytest.raises(ValueError, match=r"layers.3.scale: it is not 1"):
        table.take({**ours, "layers.3.scale": torch.zeros(2)})
