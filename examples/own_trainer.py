"""Your own LightningModule, your own Trainer, your own data loader; from uniattn_pl the model and some callbacks.

Two Trainers in a row: stage 1 fits W_c in closed form and trains it alone, stage 2 trains everything. A Trainer per
stage, since its optimizer is built from what trains when it starts. No callback knows of another one, or of the module:
take those you need.

    python examples/own_trainer.py
    python examples/own_trainer.py --model tiny-llama --steps 3     # random weights, in seconds: only to see it run

SmolLM2-135M with 20 steps a stage takes about 2 minutes on two CPU cores. Every tenth step of stage 2 writes a
checkpoint of three times the space of the model (1.6 GB), from which `stage2.fit(..., ckpt_path=...)` goes on.
"""

import argparse
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

import uniattn_pl
from uniattn_pl.data.embedded import embedded_rows
from uniattn_pl.data.prompt_ids import prompt_ids, text_ids
from uniattn_pl.modeling.loading.pretrained import load_tokenizer
from uniattn_pl.training.callbacks.compensation_init import CompensationInit
from uniattn_pl.training.callbacks.divergence_stop import DivergenceStop
from uniattn_pl.training.callbacks.ema_early_stop import EMAEarlyStop
from uniattn_pl.training.callbacks.provenance import Provenance
from uniattn_pl.training.callbacks.rng_state import RngState
from uniattn_pl.training.callbacks.stage_freezing import StageFreezing
from uniattn_pl.training.callbacks.throughput import Throughput

BATCH = 4


class Tuner(pl.LightningModule):
    """A module as anyone has it: a model, a loss, an optimizer over what trains."""

    def __init__(self, model, learning_rate):
        super().__init__()
        self.model, self.learning_rate = model, learning_rate

    def training_step(self, batch, batch_idx):
        loss = self.model(**batch, use_cache=False).loss
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self):
        # StageFreezing has set requires_grad by now
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=self.learning_rate)


class Questions:
    """Rows to batches; an ordinary collate function around a tokenizer."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def encode(self, row):
        """Tokens of prompt and response; apart, so that the prompt has the same tokens when the model generates."""
        prompt = prompt_ids(self.tokenizer, f"{row.instruction}\n\n{row.input}\n\nAnswer:\n")
        (response,) = text_ids(self.tokenizer, [row.output])
        return prompt, [*response, self.tokenizer.eos_token_id]

    def collate(self, rows):
        """Tensors [B, L], padded on the right as calibration wants them; the labels of prompt and padding are -100."""
        pairs = [self.encode(row) for row in rows]
        whole = [torch.tensor(prompt + response) for prompt, response in pairs]
        labels = [torch.tensor([-100] * len(prompt) + response) for prompt, response in pairs]
        pad = torch.nn.utils.rnn.pad_sequence
        return {
            "input_ids": pad(whole, batch_first=True),
            "attention_mask": pad([torch.ones_like(tokens) for tokens in whole], batch_first=True),
            "labels": pad(labels, batch_first=True, padding_value=-100),
        }


def main():
    """Both stages, from the command line's options to a saved model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="a name of `list models`, a local folder, or a hub id")
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps of 4 rows, at most, of each stage")
    parser.add_argument("--output", default="runs/own_trainer", help="folder for the trained model")
    args = parser.parse_args()
    output = Path(args.output)
    pl.seed_everything(0)

    # float32: bfloat16 rounds updates away that are smaller than 1/256 of a weight
    model = uniattn_pl.load_model(args.model, dtype="float32")
    num_superblocks = model.config.num_hidden_layers // 7  # over about half of the layers: 4 for 30, 1 for 8
    uniattn_pl.apply_architecture(model, "uniattn", superblock_size=4, num_superblocks=num_superblocks)
    model.train()  # load_model returns it for evaluation, and Lightning leaves that as it is

    questions = Questions(load_tokenizer(args.model))
    rows = embedded_rows(48 + BATCH * args.steps)
    held_out, fitted, trained = (
        DataLoader(part, batch_size=BATCH, collate_fn=questions.collate) for part in (rows[:16], rows[16:48], rows[48:])
    )  # not shuffled: the rows have no order

    init = CompensationInit(
        # a function, so that a fit that is resumed does not load what it has no use for
        original=lambda: uniattn_pl.load_model(args.model, dtype="float32"),
        batches=list(fitted),
        held_out=list(held_out),
        # W_c alone: until stage 2 all other weights are those of the pre-trained model. The default, which corrects
        # W_o as well, leaves less error.
        initialiser="least_squares",
    )
    early = EMAEarlyStop(patience=10)
    common = {"accelerator": "auto", "devices": 1, "max_epochs": 1, "logger": False, "gradient_clip_val": 1.0}
    stage1 = pl.Trainer(
        **common,
        enable_checkpointing=False,
        callbacks=[StageFreezing(stage=1), init, early, DivergenceStop(), Provenance(vars(args), output)],
    )
    stage1.fit(Tuner(model, learning_rate=1e-4), trained)
    print("\n".join(init.report.lines()))
    print(f"stage 1: {stage1.global_step} steps, stopped early: {early.stopped_at is not None}")
    model.save_pretrained(output / "stage1")

    throughput = Throughput()
    checkpoint = ModelCheckpoint(
        output / "checkpoints", filename="newest", every_n_train_steps=10, enable_version_counter=False
    )
    stage2 = pl.Trainer(
        **common,
        callbacks=[StageFreezing(stage=2), DivergenceStop(), throughput, RngState(), checkpoint],
    )
    stage2.fit(Tuner(model, learning_rate=2e-4), trained)
    print(f"stage 2: {stage2.global_step} steps, {throughput.tokens_per_second:.0f} tokens/s")

    model.eval()
    prompt = torch.tensor([questions.encode(rows[0])[0]])  # [1, L]
    answer = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=24, do_sample=False, pad_token_id=0
    )[0, prompt.shape[1] :]
    print(f"answer: {questions.tokenizer.decode(answer)!r}\ntokens: {answer.tolist()}")
    model.save_pretrained(output)  # for AutoModelForCausalLM.from_pretrained after `import uniattn_pl`
    questions.tokenizer.save_pretrained(output)


if __name__ == "__main__":
    main()
