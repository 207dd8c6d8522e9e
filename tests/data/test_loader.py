import multiprocessing
import os
import signal
from contextlib import suppress
from itertools import islice

import lightning.pytorch as pl
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import Callback

from uniattn_pl.data import Collator, EncodedRows, ResumableLoader, ResumedProgress, ScoredSpans, epoch_order
from uniattn_pl.errors import RunFailure, UserError

ROWS = 43
LENGTHS = torch.randint(4, 60, (ROWS,), generator=torch.Generator().manual_seed(1))


def encoded(lengths=LENGTHS):
    """Rows whose every token is the row's index, so that a batch shows which rows it holds."""
    tokens = torch.arange(len(lengths), dtype=torch.int32).repeat_interleave(lengths)
    return EncodedRows(tokens, lengths, ScoredSpans.behind(torch.ones_like(lengths), lengths))


def loader(lengths=LENGTHS, **options):
    defaults = {"batch_size": 12, "micro_batch_size": 4, "seed": 0}
    return ResumableLoader(encoded(lengths), Collator(pad_id=0), **{**defaults, **options})


def row_ids(batch):
    """The rows of a batch that count, in the order of their places."""
    counting = batch["rows"] >= 0
    assert torch.equal(batch["input_ids"][counting, 0], batch["rows"][counting])
    assert (batch["labels"][~counting] == -100).all()
    return tuple(batch["rows"][counting].tolist())


def endless(source):
    while True:
        yield from source


def steps_of(ranks):
    """One epoch as the set of rows of each optimizer step, over all ranks."""
    epochs = [[row_ids(batch) for batch in rank] for rank in ranks]
    (micro_batches,) = {len(epoch) for epoch in epochs}
    accumulate = ranks[0].accumulate
    return [
        sorted(row for epoch in epochs for batch in epoch[start : start + accumulate] for row in batch)
        for start in range(0, micro_batches, accumulate)
    ]


@st.composite
def sizes(draw):
    """(rows, accumulate, micro batch size, world size)."""
    return tuple(draw(st.integers(1, most)) for most in (90, 4, 4, 4))


@settings(max_examples=60, deadline=None)
@given(sizes(), st.integers(0, 2))
def test_optimizer_steps_do_not_depend_on_ranks_or_micro_batches(size, epoch):
    rows, accumulate, micro, world = size
    lengths = torch.randint(2, 40, (rows,), generator=torch.Generator().manual_seed(rows))
    options = {"batch_size": accumulate * micro * world, "seed": epoch}
    ranks = [loader(lengths, micro_batch_size=micro, world_size=world, rank=r, **options) for r in range(world)]
    alone = loader(lengths, micro_batch_size=accumulate * micro * world, **options)
    for source in (*ranks, alone):
        source.epoch = epoch
    steps = steps_of(ranks)
    assert steps == steps_of([alone])
    assert len(steps) == -(-rows // options["batch_size"])
    assert sorted(row for step in steps for row in step) == list(range(rows))
    assert all(len(step) == options["batch_size"] for step in steps[:-1])


@settings(max_examples=60, deadline=None)
@given(sizes(), st.integers(1, 4), st.integers(1, 4), st.data())
def test_a_state_at_a_step_continues_with_the_same_rows_on_other_ranks(size, micro_after, world_after, data):
    rows, accumulate, micro, world = size
    batch_size = accumulate * micro * world
    assume(batch_size % (micro_after * world_after) == 0)
    lengths = torch.randint(2, 40, (rows,), generator=torch.Generator().manual_seed(rows))
    whole = loader(lengths, batch_size=batch_size, micro_batch_size=batch_size)
    first_epoch, second_epoch = steps_of([whole]), steps_of([whole])
    taken = data.draw(st.integers(0, len(first_epoch)))
    before = loader(lengths, batch_size=batch_size, micro_batch_size=micro, world_size=world, rank=world - 1)
    list(islice(before, min(taken * accumulate, len(before))))
    ranks = [
        loader(lengths, batch_size=batch_size, micro_batch_size=micro_after, world_size=world_after, rank=rank)
        for rank in range(world_after)
    ]
    for rank in ranks:
        rank.load_state_dict(before.state_dict())
    assert steps_of(ranks) == (first_epoch[taken:] or second_epoch)


def test_ranks_get_batches_of_similar_lengths():
    lengths = torch.randint(20, 500, (1_000,), generator=torch.Generator().manual_seed(2))
    ranks = [loader(lengths, batch_size=32, micro_batch_size=4, world_size=2, rank=rank) for rank in range(2)]
    widths = torch.tensor([[batch["input_ids"].shape[1] for batch in rank] for rank in ranks], dtype=torch.float)
    assert (widths[0] - widths[1]).abs().mean() < 10 < widths.std()


def test_epochs_differ_and_are_reproducible():
    first = loader()
    epochs = [[row_ids(batch) for batch in first] for _ in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]
    again = loader()
    assert [[row_ids(batch) for batch in again] for _ in range(3)] == epochs
    assert [row_ids(batch) for batch in loader(seed=1)] != epochs[0]


def test_length_grouping_leaves_little_padding():
    lengths = torch.randint(20, 500, (2_000,), generator=torch.Generator().manual_seed(2))

    def padding(order):
        longest = lengths[order].max(dim=1, keepdim=True).values
        return 1 - (lengths[order].sum() / (longest * order.shape[1]).sum()).item()

    grouped = epoch_order(lengths, 8, seed=0, epoch=0).view(-1, 8)
    shuffled = torch.randperm(2_000, generator=torch.Generator().manual_seed(0)).view(-1, 8)
    assert padding(grouped) < 0.05 < 0.3 < padding(shuffled)


def test_blank_places_cost_little_and_count_for_nothing():
    lengths = torch.tensor([9, 3, 5, 7, 4])
    (batch,) = loader(lengths, batch_size=8, micro_batch_size=8)
    assert batch["rows"].tolist() == [-1, -1, -1, 1, 4, 2, 3, 0]
    assert batch["input_ids"][:3, 0].tolist() == [1, 1, 1]  # copies of the shortest row
    assert batch["attention_mask"][:3].sum(1).tolist() == [3, 3, 3]
    assert int(batch["num_tokens"]) == int(lengths.sum())


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("taken", [0, 1, 7, 11, 15])
def test_a_restored_loader_continues_with_the_next_batch(taken, num_workers):
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


@pytest.mark.parametrize("changed", [{"batch_size": 24}, {"seed": 5}, {"lengths": LENGTHS[:40]}])
def test_a_state_of_other_settings_is_refused(changed):
    with pytest.raises(UserError, match=r"was .* and is now"):
        loader(**changed).load_state_dict(loader().state_dict())


def test_a_state_inside_an_optimizer_step_needs_the_same_micro_batches():
    source = loader()
    list(islice(source, 4))
    with pytest.raises(UserError, match=r"inside an optimizer step, after 1 of its 3 micro batches.*micro_batch_size"):
        loader(micro_batch_size=6).load_state_dict(source.state_dict())
    loader(micro_batch_size=2, world_size=2).load_state_dict(source.state_dict())  # the same rows together


def test_micro_batches_must_divide_the_batch():
    with pytest.raises(UserError, match=r"training.batch_size must be a multiple of 10"):
        loader(micro_batch_size=5, world_size=2)


def test_a_killed_worker_ends_the_run_with_an_explanation():
    batches = iter(loader(num_workers=1))
    next(batches)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()  # nothing is raised here, where PyTorch would
    with pytest.raises(RunFailure, match=r"data worker process died \(killed by SIGKILL; usually") as caught:
        list(batches)
    assert "same command resumes the fit" in str(caught.value)
    assert "data.num_workers=0" in str(caught.value)


def broken(_):
    raise RuntimeError("not about processes")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_other_errors_pass_as_they_are(num_workers):
    source = ResumableLoader(encoded(), broken, batch_size=4, micro_batch_size=4, seed=0, num_workers=num_workers)
    with pytest.raises(RuntimeError, match="not about processes"):
        next(iter(source))


class Recorder(pl.LightningModule):
    """Writes down the rows of each training batch, and of each optimizer step."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen, self.steps, self.running = [], [], []

    def training_step(self, batch, _):
        self.seen.append(row_ids(batch))
        self.running += self.seen[-1]
        return self.weight * batch["input_ids"].float().mean()

    def on_before_optimizer_step(self, _):
        self.steps.append(sorted(self.running))
        self.running = []

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


def fit(path=None, callbacks=(), **options):
    module, source = Recorder(), loader(**options)
    trainer = pl.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accumulate_grad_batches=source.accumulate,
        callbacks=[ResumedProgress(source), *callbacks],
    )
    with suppress(KeyboardInterrupt, SystemExit):  # Lightning turns the interrupt into an exit
        trainer.fit(module, train_dataloaders=source, ckpt_path=path)
    return module


@pytest.mark.parametrize("batch_size", [4, 12])
@pytest.mark.parametrize("stop", [1, 6, 11, 12, 26])
def test_a_lightning_run_that_was_stopped_continues_exactly(tmp_path, stop, batch_size):
    whole = fit(batch_size=batch_size).seen
    assert len(whole) == 33
    path = tmp_path / "stopped.ckpt"
    first = fit(callbacks=[SaveAndStop(path, stop)], batch_size=batch_size).seen
    assert len(first) == stop
    second = fit(path, batch_size=batch_size).seen
    assert first + second == whole


@pytest.mark.parametrize("micro_batch_size", [2, 6, 12])
@pytest.mark.parametrize("steps", [1, 3, 4, 7, 11])
def test_a_lightning_run_continues_with_other_micro_batches(tmp_path, steps, micro_batch_size):
    whole = fit()
    assert len(whole.steps) == 3 * 4  # ceil(43 / 12) optimizer steps an epoch
    epochs, inside = divmod(steps, 4)
    path = tmp_path / "stopped.ckpt"
    first = fit(callbacks=[SaveAndStop(path, epochs * 11 + inside * 3)])
    second = fit(path, micro_batch_size=micro_batch_size)
    assert first.steps + second.steps == whole.steps
    assert len(first.steps) == steps


def test_a_lightning_run_with_worker_processes_continues_exactly(tmp_path):
    path = tmp_path / "stopped.ckpt"
    first = fit(callbacks=[SaveAndStop(path, 4)], num_workers=1).seen
    assert first + fit(path, num_workers=1).seen == fit().seen
