"""transformers' Auto classes know the converted model types after `import uniattn_pl`, in any order of imports."""

from __future__ import annotations

import subprocess
import sys

import pytest

IMPORTS = {
    "ours first": "import uniattn_pl; from transformers import AutoConfig, AutoModelForCausalLM",
    "transformers first": "from transformers import AutoConfig, AutoModelForCausalLM; import uniattn_pl",
    "Auto classes after both": "import transformers, uniattn_pl; from transformers import AutoConfig",
    # The Auto classes are then imported while other modules of transformers are half made.
    "through generation": "import uniattn_pl; from transformers import GenerationMixin, AutoConfig",
    "through a family": "import uniattn_pl.families.inspection; from transformers import AutoConfig",
    "through a kernel": "import uniattn_pl.kernels.interface; from transformers import AutoConfig",
    "through training": "import uniattn_pl.training.fit; from transformers import AutoConfig",
    "through our own module": "import uniattn_pl.modeling.conversion.auto_classes; from transformers import AutoConfig",
}


@pytest.mark.parametrize("imports", IMPORTS.values(), ids=IMPORTS.keys())
def test_converted_types_are_known(imports: str) -> None:
    code = f"{imports}\nprint(*(AutoConfig.for_model('uniattn_' + kind).model_type for kind in ('llama', 't5')))"
    command = [sys.executable, "-W", "error::UserWarning:uniattn_pl", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "uniattn_llama uniattn_t5"
    assert "could not register" not in done.stderr


def test_importing_the_package_imports_neither_torch_nor_transformers() -> None:
    code = "import sys, uniattn_pl; sys.exit([n for n in ('torch', 'transformers') if n in sys.modules] or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
