"""Wrong config files, data files and command lines: each ends with exit code 2 and says what, where, what instead."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from uniattn_pl.cli import main

TINY = ("--config", "tiny.yaml")
GOOD_ROW = '{"instruction": "i", "input": "", "output": "o"}'


@dataclass(frozen=True)
class Wrong:
    """A command line in a folder with `tiny.yaml` and `files`, and what the message must contain."""

    argv: tuple[str, ...]
    expected: tuple[str, ...]
    files: dict[str, str] = field(default_factory=dict)


def config(text: str, *expected: str, **files: str) -> Wrong:
    """`fit` with a second config file `a.yaml`."""
    named = {name.replace("__", "."): content for name, content in files.items()}
    return Wrong(("fit", *TINY, "--config", "a.yaml", "--dry-run"), expected, {"a.yaml": text, **named})


def override(word: str, *expected: str, words: tuple[str, ...] = ()) -> Wrong:
    return Wrong(("fit", *TINY, word, *words, "--dry-run"), expected)


def fitted(text: str, *expected: str) -> Wrong:
    """`fit` of an architecture whose options are only checked when its layers are chosen."""
    few = ("data.num_samples=10", "data.max_length=700")
    return Wrong(("fit", *TINY, "--config", "a.yaml", *few), expected, {"a.yaml": text})


def given(content: str, *expected: str) -> Wrong:
    """`fit --dry-run` of the plan in a file."""
    return config("architecture: {name: given, plan: p.json}", "a.yaml:1: architecture: ", *expected, p__json=content)


def data(name: str, content: str, *expected: str, words: tuple[str, ...] = ()) -> Wrong:
    """`fit --dry-run` on a data file."""
    return Wrong(("fit", *TINY, f"data.source={name}", "--dry-run", *words), expected, {name: content})


WRONG = {
    # config files
    "unknown key": config("model:\n  sorce: x", "a.yaml:2: unknown key 'model.sorce'", "Did you mean 'model.source'?"),
    "unknown section": config("trainig: {seed: 1}", "a.yaml:1: unknown key 'trainig'", "Did you mean 'training'?"),
    "key in the wrong section": config("max_length: 9", "unknown key 'max_length'", "Did you mean 'data.max_length'?"),
    "dotted key": config("model.source: x", "a.yaml:1: unknown key 'model.source'", "nested, not dotted"),
    "wrong type": config(
        "training:\n  batch_size: big", "a.yaml:2: training.batch_size: expected a whole number", "'big'"
    ),
    "not a boolean": config("trainer: {deterministic: 1}", "trainer.deterministic: expected true or false, got 1"),
    "list instead of text": config("name: [a]", "a.yaml:1: name: expected text"),
    "section with a value": config("model: tiny-llama", "a.yaml:1: model: expected keys below it"),
    "below minimum": config("data: {max_length: 2}", "a.yaml:1: data.max_length: must be at least 8, got 2"),
    "not allowed": config("model: {dtype: bf16}", "model.dtype: must be one of auto, float32", "'bfloat16'?"),
    "infinite": config("training: {max_grad_norm: .inf}", "training.max_grad_norm: expected a number"),
    "infinite ridge": config("calibration: {ridge: .inf}", "calibration.ridge: expected auto or a number", "'.inf'"),
    "key set twice": config("seed: 1\nseed: 2", "a.yaml:2: 'seed' is set twice, first at a.yaml:1"),
    "no value given": config("name: ???", "name: a value must be given"),
    "architecture name": config(
        "architecture: {name: unatn}", "a.yaml:1: architecture.name", "Did you mean 'uniattn'?"
    ),
    "architecture option": config(
        "architecture:\n  name: cla\n  superblok_size: 2",
        "a.yaml:3: unknown key 'architecture.superblok_size'",
        "'cla'",
        "Did you mean 'architecture.superblock_size'?",
    ),
    "architecture option type": config(
        "architecture: {name: llmdrop, layers: [a]}", "architecture.layers: expected a list, each item a whole number"
    ),
    "architecture option range": config(
        "architecture: {superblock_size: 1}", "architecture.superblock_size: must be at least 2, got 1"
    ),
    "plan does not fit": config(
        "architecture: {name: uniattn, superblock_size: 4, num_superblocks: 4}", "a.yaml:1: architecture: ", "8"
    ),
    "layer not in the model": config(
        "architecture: {name: llmdrop, layers: [3, 12]}", "a.yaml:1: architecture: ", "layers 0 to 7", "12"
    ),
    "YAML syntax": config("a: [1\nb: 2", "a.yaml:2: not valid YAML"),
    "tab": config("model:\n\tsource: x", "a.yaml:2: not valid YAML"),
    "empty file": config("# nothing\n", "a.yaml: the file is empty"),
    "not a mapping": config("- seed\n", "a.yaml:1: a config file holds `key: value` lines, not a list"),
    "missing include": config(
        "include: blok.yaml", "a.yaml:1: include 'blok.yaml' does not exist", "'block.yaml'?", block__yaml="seed: 1"
    ),
    "include cycle": config(
        "include: b.yaml", "b.yaml:1: include 'a.yaml'", "includes itself", b__yaml="include: a.yaml"
    ),
    "include of a number": config("include: 3", "a.yaml:1: include: expected a file name"),
    "problem in an included file": config(
        "include: b.yaml", "b.yaml:1: unknown key 'sed'", "'seed'?", b__yaml="sed: 1"
    ),
    "interpolation of a missing key": config(
        "name: run-${sede}", "a.yaml:1: name: ${sede} is not a key", "Did you mean 'seed'?"
    ),
    "interpolation of itself": config("name: ${name}", "a.yaml:1: name:", "ecursive"),
    "interpolation of the wrong type": config(
        "seed: ${model.source}", "a.yaml:1: seed: expected a whole number, got 'tiny-llama'"
    ),
    "unfinished interpolation": config("name: 'a${seed'", "a.yaml:1: name:", "not a complete interpolation"),
    "forbidden resolver": config("name: ${oc.decode:x}", "a.yaml:1: name:", "calls 'oc.decode'"),
    "unset variable": config("name: ${oc.env:UNIATTN_NOPE}", "variable UNIATTN_NOPE is not set"),
    "a source trained on twice": config(
        "data: {source: embedded, further_sources: [self, embedded]}",
        "a.yaml:1: data.further_sources: 'embedded' is trained on already",
    ),
    "maps beside a cache": config(
        "training:\n  distillation: {teacher: original, top_k: 8, cache: true, stage2: {maps: 1}}",
        "a.yaml:2: training.distillation.cache: the cache keeps logits, no attention maps, which stage2.maps compares",
    ),
    "maps that nobody reads": config(
        "architecture: {name: llmdrop, layers: [3]}\n"
        "training: {distillation: {teacher: original, stage1: {maps: 0.1}, stage2: {maps: 0.1}}}",
        "training.distillation.stage1.maps and training.distillation.stage2.maps: no layer of this plan uses the",
        "set it to 0, or choose an architecture with reuse layers (uniattn, shared_attention)",
    ),
    "negative weight of maps": config(
        "training: {distillation: {stage1: {maps: -1}}}", "training.distillation.stage1.maps: must be at least 0"
    ),
    "text of the model held out": config(
        "data: {validation_source: self}", "a.yaml:1: data.validation_source: held-out rows are not sampled"
    ),
    "prompts of the model's own text": config(
        "data: {source: {self: 4, prompts: self}}",
        "data.self_text.prompts: its own text has no prompts; expected 'bos'",
    ),
    "texts beyond the positions": config(
        "data: {source: {self: 4, prompts: embedded, tokens: 5000}}",
        "a.yaml:1: data.self_text.tokens: 5000 tokens are more than the 2048 positions",
    ),
    "micro batches": config(
        "training:\n  batch_size: 6\n  micro_batch_size: 4",
        "a.yaml:3, a.yaml:2: training.micro_batch_size: 4 does not divide training.batch_size=6. It may be 1, 2, 3, 6.",
    ),
    "single on several devices": config(
        "training: {strategy: single}\ntrainer: {devices: 4}", "training.strategy: single uses one device"
    ),
    "offload without shards": config(
        "training: {cpu_offload: true}", "training.cpu_offload: needs training.strategy=fsdp"
    ),
    "shards without fsdp": config(
        "training: {checkpoint_format: sharded, strategy: ddp}", "needs training.strategy=fsdp, which is 'ddp'"
    ),
    "flash in mixed precision": config(
        "model: {attn_implementation: flash_attention_2, dtype: bfloat16}\ntraining: {precision: bf16-mixed}",
        "training.precision: flash_attention_2 computes in bfloat16 and float16 only",
    ),
    "flash over packed rows": config(
        "model: {attn_implementation: flash_attention_3, dtype: bfloat16}\ndata: {packing: true}",
        "training.micro_batch_size: flash_attention_3 keeps packed rows apart in micro batches of 1 only",
    ),
    "maps kept by flash": config(
        "model: {attn_implementation: flash_attention_2, dtype: bfloat16, reuse: materialise}",
        "model.reuse: flash_attention_2 takes no masks that fit a map",
    ),
    "unknown kernel": config(
        "model: {attn_implementation: flash_attention}", "model.attn_implementation: must be one of sdpa", "'flash_att"
    ),
    "scaled gradients on shards": config(
        "training: {precision: 16-mixed, strategy: fsdp}", "training.precision: 16-mixed scales gradients"
    ),
    "unknown strategy": config("training: {strategy: fdsp}", "training.strategy", "Did you mean 'fsdp'?"),
    "dropout of one": config("training: {lora: {dropout: 1}}", "training.lora.dropout: must be below 1"),
    "unknown projection": fitted(
        "training: {lora: {enabled: true, target_modules: [q_prj]}}",
        "training.lora.target_modules: the model has no 'q_prj'. Did you mean 'q_proj'?",
    ),
    "8-bit states on shards": config(
        "training: {optimizer: adamw_8bit, strategy: fsdp}",
        "training.optimizer: adamw_8bit is bitsandbytes', whose kernels take no shards (DTensor)",
    ),
    "unknown optimizer": config("training: {optimizer: moun}", "training.optimizer", "Did you mean 'muon'?"),
    "a rate for W_c where it alone trains": config(
        "training: {stage1: {w_c_learning_rate: 1}}", "training.stage1.w_c_learning_rate: stage 1 trains W_c alone"
    ),
    "a rate for W_c of a plan without one": config(
        "architecture: {name: baseline}\ntraining: {stage2: {w_c_learning_rate: 1}}",
        "training.stage2.w_c_learning_rate: no layer of this plan has a W_c",
    ),
    "a stage twice": config(
        "training: {early_stop: {stages: [2, 2]}}",
        "training.early_stop.stages: expected 1, 2 or both, once each; got [2, 2]",
    ),
    "a monitor of what is not measured": config(
        "training: {early_stop: {monitor: held_out_loss, stages: [1, 2]}}",
        "training.early_stop.monitor: the held-out loss is not measured before the end of a stage",
        "set training.eval_every_steps or more than one epoch",
    ),
    "the best of one": config(
        "training: {keep: best, eval_every_steps: 9, stage1: {max_steps: 5}, stage2: {max_steps: 9}}",
        "training.keep: the held-out loss is not measured before the end of a stage",
        "set training.eval_every_steps, below 9, or more than one epoch",
    ),
    "lengths without updates": config(
        "training: {lora: {dora: true}}", "training.lora.dora: is of low-rank updates; it needs training.lora.enabled"
    ),
    "4 bits without updates": config(
        "training: {lora: {quantization: 4bit}}", "training.lora.quantization: is of low-rank updates"
    ),
    "4 bits that are offloaded": config(
        "training: {strategy: fsdp, cpu_offload: true, lora: {enabled: true, quantization: 4bit}}",
        "training.lora.quantization: 4bit weights go with scales that no strategy offloads",
    ),
    "name with a slash": config("name: a/b", "a.yaml:1: name: it names a folder"),
    "share above one": config("training: {stage1: {warmup_ratio: 3}}", "training.stage1.warmup_ratio: is a share"),
    "no training rows": config("data: {num_samples: 5, validation_size: 5}", "data.num_samples: 5 rows leave none"),
    # overrides and command lines
    "override without =": override("seed", "override 'seed': expected key.path=value"),
    "second file without --config": override("b.yaml", "--config 'b.yaml' does not exist"),
    "override of an unknown key": override(
        "training.stage3.enabled=no", "unknown key 'training.stage3'", "Did you mean 'training.stage"
    ),
    "override of a wrong type": override("seed=x", "override 'seed=x': seed: expected a whole number, got 'x'"),
    "override below a value": override("seed.x=1", "unknown key 'seed.x': 'seed' has no keys below it"),
    "override that is not YAML": override("name=[a", "override 'name=[a': not a YAML value"),
    "model folder": override(
        "model.source=./tiny_lama", "model.source: there is no model folder", "Did you mean 'tiny_llama'?"
    ),
    "model name": override("model.source=tiny-lama", "tiny-lama", "Did you mean 'tiny-llama'?"),
    "missing config": Wrong(("fit", "--config", "tny.yaml"), ("--config 'tny.yaml' does not exist", "'tiny.yaml'?")),
    "config is a folder": Wrong(("plan", "--config", "tiny_llama"), ("'tiny_llama' is a folder, not a file",)),
    "no config": Wrong(("fit",), ("fit needs to know what: --config FILE",)),
    "misspelt preset": Wrong(("fit", "--config", "uniattn_pl://quikstart"), ("no preset 'quikstart'", "'quickstart'?")),
    "unknown command": Wrong(("fitt",), ("unknown command 'fitt'. Did you mean 'fit'?",)),
    "unknown option": Wrong(("fit", *TINY, "--dryrun"), ("unknown option '--dryrun'. Did you mean '--dry-run'?",)),
    "option without a value": Wrong(("fit", "--config"), ("--config: expected one argument",)),
    "not a number": Wrong(("plan", *TINY, "--length", "long"), ("--length: expected a whole number, got 'long'",)),
    "length of zero": Wrong(("plan", *TINY, "--length", "0"), ("at least 1",)),
    "list topic": Wrong(("list", "model"), ("cannot list 'model'. Did you mean 'models'?",)),
    "generate from a wrong folder": Wrong(
        ("generate", "--from", "runs/quickstrat", "--prompt", "x"),
        ("there is no folder 'runs/quickstrat'", "Did you mean 'quickstart'?"),
        {"runs/quickstart/final/config.json": "{}"},
    ),
    "generate from a run without a model": Wrong(
        ("generate", "--from", "runs/new", "--prompt", "x"),
        ("'runs/new' holds no model",),
        {"runs/new/x": ""},
    ),
    "generate without a prompt": Wrong(("generate", "--from", "."), ("at least one --prompt",)),
    "export without a target": Wrong(("export", "--from", "."), ("export needs --to",)),
    "export over something": Wrong(
        ("export", "--from", "m", "--to", "out"), ("'out' is not empty",), {"m/config.json": "{}", "out/x": ""}
    ),
    "no such bits": Wrong(
        ("generate", "--from", "m", "--prompt", "x", "--quantization", "9bit"),
        ("there is no quantization '9bit'", "Did you mean '8bit'?", "8bit, 4bit"),
        {"m/config.json": "{}"},
    ),
    "layers to drop": Wrong(
        ("export", "--from", "m", "--to", "out", "--drop", "a,b"),
        ("--drop: expected layer indices separated by commas, got 'a,b'",),
        {"m/config.json": "{}"},
    ),
    "place of the compensation": override(
        "architecture.compensation_input=valu", "must be one of attention_input, value, heads", "Did you mean 'value'?"
    ),
    "dropped layers that reuse nothing": override(
        "architecture.dropped_layers=[3]", "layer 3 reuses no attention map; reuse layers: 5, 6, 7"
    ),
    # layers chosen by measurement, and what calibration does with them
    "unknown selection": override(
        "architecture.selection=gredy", "must be one of top, similarity, greedy, given", "Did you mean 'greedy'?"
    ),
    "selection given without layers": override("architecture.selection=given", "architecture: layers must be a list"),
    "search budget below zero": config(
        "architecture:\n  name: search\n  budget: -1", "a.yaml:3: architecture.budget: must be at least 0, got -1"
    ),
    "search budget above one": fitted("architecture: {name: search, budget: 1.5}", "between 0 and 1; got 1.5"),
    "unknown kinds": fitted("architecture: {name: search, kinds: [skip]}", "some of reuse, share_kv, drop", "['skip']"),
    "unknown cost": config("architecture: {name: search, cost: kv_byte}", "Did you mean 'kv_bytes'?"),
    "given without a file": config("architecture: {name: given}", "a.yaml:1: architecture: given needs plan"),
    "given a file that is not there": config("architecture: {name: given, plan: gone.json}", "no file 'gone.json'"),
    "given a file that is not JSON": given("{oops", "'p.json' is not valid JSON"),
    "given a list": given("[1]", "'p.json' holds a list; it must be a JSON object"),
    "given something else": given('{"points": []}', "this is not a layer plan"),
    "given another model's plan": given('{"num_layers": 9, "rows": []}', "the plan has 9 layers"),
    "given a layer outside": given(
        '{"num_layers": 8, "rows": [{"index": 8, "map_from": 4, "key_from": null, "value_from": 8}]}', "layers 0 to 7"
    ),
    "ridge that is a word": override("calibration.ridge=abc", "calibration.ridge: expected auto or a number", "'abc'"),
    "ridge below zero": override("calibration.ridge=-1", "calibration.ridge: expected auto or a number of at least 0"),
    "head alignment": override("calibration.head_alignment=similarty", "Did you mean 'similarity'?"),
    "head alignment of nothing": config(
        "architecture: {compensation: false}\ncalibration: {head_alignment: similarity}",
        "a.yaml:2, a.yaml:1: calibration.head_alignment",
        "leaves nothing to fit",
    ),
    "bias of nothing": config(
        "architecture: {compensation: false}\ncalibration: {bias: true}", "a.yaml:2, a.yaml:1: calibration.bias", "W_c"
    ),
    "refinement without steps": override(
        "calibration.refine.learning_rate=1", "calibration.refine", "learning_rate is of a refinement, which takes"
    ),
    "refinement of nothing": config(
        "architecture: {compensation: false}\ncalibration: {refine: {steps: 2}}", "calibration.refine.steps", "W_c"
    ),
    "refined by an unknown error": override("calibration.refine.error=cosin", "Did you mean 'cosine'?"),
    "no row left to calibrate on": fitted("calibration: {skip_samples: 100}", "leaves no row to calibrate on"),
    "rank that is a word": override("calibration.rank=most", "expected auto or a whole number of at least 1", "'most'"),
    "rank chosen without knowing the error": override(
        "calibration.rank=auto",
        "calibration.rank: auto goes by the error that W_c repairs, which zero does not know",
        "may be least_squares or joint_least_squares",
        words=("calibration.initialiser=zero",),
    ),
    "share of a rank that is given": override(
        "calibration.rank_keeps=0.9", "calibration.rank_keeps: is for a rank that is chosen", "which is not set"
    ),
    "share of nothing": override(
        "calibration.rank_keeps=0", "is a share, above 0 and at most 1; got 0", words=("calibration.rank=auto",)
    ),
    "share above all": override("calibration.rank_keeps=2", "calibration.rank_keeps: must be at most 1, got 2"),
    "rank of zero": override("calibration.rank=0", "calibration.rank: must be at least 1, got 0"),
    # data files
    "missing data file": Wrong(
        ("fit", *TINY, "data.source=rows.jsnl.json"),
        ("data.source: there is no data file 'rows.jsnl.json'", "Did you mean 'rows.jsonl'?"),
        {"rows.jsonl": GOOD_ROW},
    ),
    "broken JSON line": data("rows.jsonl", f"{GOOD_ROW}\n{{oops\n", "rows.jsonl, line 2", "invalid JSON"),
    "row without a key": data("rows.jsonl", f'{GOOD_ROW}\n{{"instruction": "i"}}\n', "rows.jsonl, line 2", "output"),
    "row that is not an object": data("rows.jsonl", f"{GOOD_ROW}\n3\n", "rows.jsonl, line 2"),
    "truncated JSON array": data("rows.json", f"[{GOOD_ROW},", "rows.json", "invalid JSON"),
    "empty data file": data("rows.jsonl", "", "rows.jsonl", "is empty"),
    "wrong format": data("rows.jsonl", f"{GOOD_ROW}\n", "rows.jsonl", "no usable row", words=("data.format=tulu3",)),
    "too few rows": data(
        "rows.jsonl", f"{GOOD_ROW}\n" * 3, "no row to train on out of the 3 rows of 'rows.jsonl'", "must be at most 2"
    ),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a valid tiny experiment."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny_llama").mkdir()
    (tmp_path / "tiny.yaml").write_text(
        "name: tiny\nmodel: {source: tiny-llama}\ndata: {validation_size: 8}\n"
        "architecture: {name: uniattn, superblock_size: 4, num_superblocks: 1}\n"
    )
    return tmp_path


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG.keys())
def test_wrong_input_is_named(case: Wrong, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, content in case.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    code = main(case.argv)
    printed = capsys.readouterr().err
    assert code == 2, printed
    assert "Traceback" not in printed
    for part in case.expected:
        assert part in printed
    messages = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert len(messages) == len(set(messages)) == 1, "one problem, one message"


def test_all_problems_are_reported_at_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "a.yaml").write_text(
        "sed: 1\nmodel: {dtype: int8}\narchitecture: {name: cla, x: 1}\ninclude: gone.yaml\n"
    )
    code = main(["fit", "--config", "a.yaml", "training.batch_size=big", "oops", "data.source=gone.json"])
    printed = capsys.readouterr().err
    assert code == 2
    for part in ("'sed'", "model.dtype", "architecture.x", "gone.yaml", "batch_size", "'oops'", "gone.json"):
        assert part in printed
    assert printed.count("error: ") == 7


def test_a_correct_experiment_passes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *TINY, "--dry-run"]) == 0
    assert "all checks passed" in capsys.readouterr().out
    assert not (folder / "runs").exists()


def test_the_process_exits_with_2_and_no_traceback(folder: Path) -> None:
    command = [sys.executable, "-m", "uniattn_pl", "fit", *TINY, "seed=x", "trainig.batch_size=1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("error: ") == 2
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
