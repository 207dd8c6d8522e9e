"""A chat template is somebody else's code: it writes text of messages, or is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.chat_templates import tokenizer_of

from uniattn_pl.config.sections.data_section import DataConfig
from uniattn_pl.data.chat_template import ChatTemplate, RefusedChat

MESSAGES = [{"role": "user", "content": "Why?"}]


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages[0].__init__.__globals__ }}",
        "{{ messages.append({}) }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}{{ os.getcwd() }}",
        "{% for n in range(10 ** 12) %}x{% endfor %}",
        "{{ strftime_now('%Y') }}{{ strftime_now.__globals__ }}",
    ],
)
def test_what_is_no_writing_of_text_is_refused(template: str, tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text(template)
    chat = ChatTemplate.of(DataConfig(template=str(tmp_path / "own.jinja")), tokenizer_of("gemma"))
    assert chat is not None
    try:
        text, _ = chat.render(MESSAGES, None)
    except RefusedChat:
        return
    assert text.strip("0123456789") == "", "a name that is not there is nothing"
