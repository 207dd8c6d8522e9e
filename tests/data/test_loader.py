from contextlib import suppress
from itertools import islice

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from uniattn_pl.data import Collator, EncodedRows, ResumableLoader, epoch_order
from uniattn_pl.errors import UserError

ROWS = 43
LENGTHS = torch.randint(4, 60, (ROWS,), generator=torch.Generator().manual_seed(1))


def encoded(lengths=LENGTHS):
    """Rows whose every token is the row's index, so that a batch shows which rows it holds."""
    tokens = torch.arange(len(lengths), dtype=torch.int32).repeat_interleave(lengths)
    return EncodedRows(tokens, lengths, torch.ones_like(lengths))


def loader(lengths=LENGTHS, **options):
    return ResumableLoader(encoded(lengths), Collator(pad_id=0), **{"batch_size": 4, "seed": 0, **options})


def row_ids(batch):
    return tuple(batch["input_ids"][:, 0].tolist())


def test_an_epoch_holds_every_row_and_full_batches_only():
    batches = list(loader())
    assert len(batches) == len(loader()) == 11
    assert all(len(row_ids(batch)) == 4 for batch in batches)
    seen = [row for batch in batches for row in row_ids(batch)]
    assert set(seen) == set(range(ROWS))
    assert len(seen) - ROWS == 1  # the last group is filled up


def test_epochs_differ_and_are_reproducible():
    first = loader()
    epochs = [[row_ids(batch) for batch in first] for _ in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]
    again = loader()
    assert [[row_ids(batch) for batch in again] for _ in range(3)] == epochs
    assert [row_ids(batch) for batch in loader(seed=1)] != epochs[0]


def test_fewer_rows_than_a_group_still_fill_it():
    (batch,) = loader(torch.tensor([5, 6]), batch_size=5)
    assert set(row_ids(batch)) == {0, 1}
    assert epoch_order(torch.tensor([5, 6]), 5, seed=0, epoch=0).shape == (1, 5)


def test_length_grouping_leaves_little_padding():
    lengths = torch.randint(20, 500, (2_000,), generator=torch.Generator().manual_seed(2))

    def padding(order):
        longest = lengths[order].max(dim=1, keepdim=True).values
        return 1 - (lengths[order].sum() / (longest * order.shape[1]).sum()).item()

    grouped = epoch_order(lengths, 8, seed=0, epoch=0)
    shuffled = torch.randperm(2_000, generator=torch.Generator().manual_seed(0)).view(-1, 8)
    assert padding(grouped) < 0.05 < 0.3 < padding(shuffled)


@pytest.mark.parametrize("rows", [43, 41, 42, 3])
def test_two_ranks_see_different_rows_and_as_many_batches(rows):
    ranks = [loader(LENGTHS[:rows], rank=rank, world_size=2, batch_size=3) for rank in range(2)]
    batches = [[row_ids(batch) for batch in rank] for rank in ranks]
    assert len(batches[0]) == len(batches[1]) == len(ranks[0])
    both = [row for share in batches for batch in share for row in batch]
    assert set(both) == set(range(rows))
    assert len(both) - rows < 6  # no more repeated than one group


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("taken", [0, 1, 7, 11, 15])
def test_a_restored_loader_continues_with_the_next_batch(taken, num_workers):
    def endless(source):
        while True:
            yield from source

    whole = [row_ids(batch) for batch in islice(endless(loader()), 30)]
    interrupted = loader(num_workers=num_workers)
    before = [row_ids(batch) for batch in islice(endless(interrupted), taken)]
    state = interrupted.state_dict()
    resumed = loader(num_workers=num_workers)
    resumed.load_state_dict(state)
    after = [row_ids(batch) for batch in islice(endless(resumed), 30 - taken)]
    assert before + after == whole


def test_the_global_random_state_is_left_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(loader())
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("changed", [{"batch_size": 2}, {"seed": 5}, {"world_size": 2}])
def test_a_state_of_other_settings_is_refused(changed):
    with pytest.raises(UserError, match=r"was .* and is now"):
        loader(**changed).load_state_dict(loader().state_dict())


class Recorder(pl.LightningModule):
    """Writes down the rows of each training batch."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def training_step(self, batch, _):
        self.seen.append(row_ids(batch))
        return self.weight * batch["input_ids"].float().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class SaveAndStop(Callback):
    """Saves a checkpoint at the end of a batch, then kills the run."""

    def __init__(self, path, after):
        self.path, self.after = path, after

    def on_train_batch_end(self, trainer, module, *_):
        if len(module.seen) == self.after:
            trainer.save_checkpoint(self.path)
            raise KeyboardInterrupt


def fit(path=None, callbacks=(), accumulate=1, **options):
    module = Recorder()
    trainer = pl.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accumulate_grad_batches=accumulate,
        callbacks=list(callbacks),
    )
    with suppress(KeyboardInterrupt, SystemExit):  # Lightning turns the interrupt into an exit
        trainer.fit(module, train_dataloaders=loader(**options), ckpt_path=path)
    return module


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("stop", [1, 6, 11, 12, 26])
def test_a_lightning_run_that_was_stopped_continues_exactly(tmp_path, stop, accumulate):
    whole = fit(accumulate=accumulate).seen
    assert len(whole) == 33
    path = tmp_path / "stopped.ckpt"
    first = fit(callbacks=[SaveAndStop(path, stop)], accumulate=accumulate).seen
    assert len(first) == stop
    second = fit(path, accumulate=accumulate).seen
    assert first + second == whole


def test_a_lightning_run_with_worker_processes_continues_exactly(tmp_path):
    path = tmp_path / "stopped.ckpt"
    first = fit(callbacks=[SaveAndStop(path, 4)], num_workers=1).seen
    assert first + fit(path, num_workers=1).seen == fit().seen
