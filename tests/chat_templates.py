"""Chat templates of the shapes that five families have, with and without tags, and tokenizers of their kinds.

Written for these tests. `<<` and `>>` stand where a tagged template begins and ends what the assistant says.
"""

from __future__ import annotations

from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from uniattn_pl.data.embedded import embedded_rows

LLAMA3 = """{{- bos_token }}
{%- set system = messages[0].content if messages[0].role == 'system' else '' %}
{%- if system or tools %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' + system | trim }}
{%- for tool in tools or [] %}{{- '\\n\\n' + tool | tojson(indent=4) }}{%- endfor %}
{{- '<|eot_id|>' }}
{%- endif %}
{%- for message in messages if message.role != 'system' %}
{%- set role = 'ipython' if message.role == 'tool' else message.role %}
{{- '<|start_header_id|>' + role + '<|end_header_id|>\\n\\n' }}
{%- if message.role == 'assistant' and message.tool_calls %}
{%- set call = message.tool_calls[0].function -%}
<<{{- '{"name": "' + call.name + '", "parameters": ' + call.arguments | tojson + '}<|eot_id|>' }}>>
{%- elif message.role == 'assistant' -%}
<<{{- message.content | trim + '<|eot_id|>' }}>>
{%- else %}{{- message.content | trim + '<|eot_id|>' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""

QWEN = """{%- if messages[0].role == 'system' %}{%- set system = messages[0].content %}
{%- else %}{%- set system = 'You are a helpful assistant.' %}{%- endif %}
{{- '<|im_start|>system\\n' + system }}
{%- if tools %}
{{- '\\n\\n# Tools\\n<tools>' }}{%- for tool in tools %}{{- '\\n' + tool | tojson }}{%- endfor %}{{- '\\n</tools>' }}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- for message in messages %}
{%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- elif message.role == 'assistant' %}
{{- '<|im_start|>assistant\\n' -}}
<<{{- message.content }}
{%- for call in message.tool_calls or [] %}
{{- '\\n' if message.content or not loop.first }}
{{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' + call.function.arguments | tojson }}
{{- '}\\n</tool_call>' }}
{%- endfor %}{{- '<|im_end|>' }}>>
{{- '\\n' }}
{%- elif message.role == 'tool' %}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
{{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""

MISTRAL = """{{- bos_token }}
{%- set system = messages[0].content + '\\n\\n' if messages[0].role == 'system' else '' %}
{%- set turns = messages[1:] if system else messages %}
{%- for message in turns %}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('roles must alternate user/assistant/user/assistant/...') }}
{%- endif %}
{%- if message.role == 'user' %}
{{- '[INST] ' + (system if loop.first else '') + message.content + ' [/INST]' }}
{%- else -%}
<<{{- ' ' + message.content + eos_token }}>>
{%- endif %}
{%- endfor %}
"""

GEMMA = """{{- bos_token }}
{%- if messages[0].role == 'system' %}{{- raise_exception('System role not supported') }}{%- endif %}
{%- for message in messages %}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('Conversation roles must alternate') }}
{%- endif %}
{%- if message.role == 'assistant' %}
{{- '<start_of_turn>model\\n' -}}
<<{{- message.content | trim + '<end_of_turn>' }}>>
{{- '\\n' }}
{%- else %}{{- '<start_of_turn>user\\n' + message.content | trim + '<end_of_turn>\\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{%- endif %}
"""

SMOLLM2 = """{%- for message in messages %}
{%- if loop.first and messages[0].role != 'system' %}
{{- '<|im_start|>system\\nYou are a helpful AI assistant named SmolLM.<|im_end|>\\n' }}
{%- endif %}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.role == 'assistant' -%}
<<{{- message.content + '<|im_end|>' }}>>
{%- else %}{{- message.content + '<|im_end|>' }}{%- endif %}
{{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""

TEMPLATES = {"llama3": LLAMA3, "qwen2.5": QWEN, "mistral": MISTRAL, "gemma": GEMMA, "smollm2": SMOLLM2}
SPECIAL = {
    "llama3": ("<|begin_of_text|>", "<|eot_id|>", ["<|start_header_id|>", "<|end_header_id|>"]),
    "qwen2.5": (None, "<|im_end|>", ["<|im_start|>", "<|endoftext|>"]),
    "mistral": ("<s>", "</s>", ["[INST]", "[/INST]"]),
    "gemma": ("<bos>", "<eos>", ["<start_of_turn>", "<end_of_turn>"]),
    "smollm2": ("<|im_start|>", "<|im_end|>", ["<|endoftext|>"]),
}
"""BOS, EOS and the other special tokens of each."""
BEGINS = ("<|begin_of_text|>", "<s>", "<bos>")
HAS_TOOLS, HAS_SYSTEM = ("llama3", "qwen2.5"), ("llama3", "qwen2.5", "mistral", "smollm2")


def template(family: str, *, tagged: bool) -> str:
    """The template of a family's shape."""
    begin, end = ("{% generation %}", "{% endgeneration %}") if tagged else ("", "")
    return TEMPLATES[family].replace("<<", begin).replace(">>", end)


@cache
def _trained(family: str) -> str:
    """Byte-level pieces as Llama-3 and Qwen have them, or sentencepiece's: spaces as '▁', other characters as bytes.

    Those of the families whose template begins with BOS put it before every text by themselves, too.
    """
    bos, eos, others = SPECIAL[family]
    special = [token for token in (bos, eos, "<pad>", *others) if token]
    text = [part for row in embedded_rows(100) for part in (row.instruction, row.input, row.output)]
    if family in ("mistral", "gemma"):
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
        trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=["<unk>", *bytes_], show_progress=False)
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(text, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    if bos in BEGINS:
        begins = [(bos, tokenizer.token_to_id(bos))]
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=begins)
    return tokenizer.to_str()


def tokenizer_of(family: str, *, tagged: bool = True) -> PreTrainedTokenizerFast:
    """A tokenizer of the family's kind, with its template."""
    bos, eos, _ = SPECIAL[family]
    named = {"eos_token": eos, "pad_token": "<pad>"} | ({"bos_token": bos} if bos else {})
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(_trained(family)), **named)
    tokenizer.chat_template = template(family, tagged=tagged)
    return tokenizer
