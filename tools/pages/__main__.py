"""`python -m tools.pages`: write what is generated in docs/, and say which files have changed."""

from tools.pages.examples import ROOT
from tools.pages.generated import generated

for file, text in generated().items():
    if not file.is_file() or file.read_text(encoding="utf-8") != text:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        print(file.relative_to(ROOT))
