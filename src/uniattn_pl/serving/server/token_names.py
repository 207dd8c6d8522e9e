"""What a token is called where log-probabilities are given: its text, or its bytes where they are no text."""

from __future__ import annotations

from typing import Any

WORD_START = "▁"  # SentencePiece's mark for a space in front of a word


class TokenNames:
    """The names of a tokenizer's tokens."""

    def __init__(self, tokenizer: Any) -> None:
        from transformers.convert_slow_tokenizer import bytes_to_unicode

        self.tokenizer = tokenizer
        self._byte_of = {character: byte for byte, character in bytes_to_unicode().items()}

    def name(self, token: int) -> str:
        """A token's text with the space in front of it, or `bytes:` and them where they are a part of a character."""
        text = str(self.tokenizer.decode([token]))
        raw = self.tokenizer.convert_ids_to_tokens(token) or ""
        if "\ufffd" in text:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in self._bytes(raw))
        return f" {text}" if raw.startswith(WORD_START) and not text.startswith(" ") else text

    def bytes(self, token: int) -> list[int]:
        """Its bytes."""
        name = self.name(token)
        if name.startswith("bytes:"):
            return self._bytes(self.tokenizer.convert_ids_to_tokens(token) or "")
        return list(name.encode())

    def _bytes(self, raw: str) -> list[int]:
        if raw.startswith("<0x") and raw.endswith(">"):  # SentencePiece's form of a byte
            return [int(raw[3:-1], 16)]
        if all(character in self._byte_of for character in raw):
            return [self._byte_of[character] for character in raw]
        return list(raw.encode())
