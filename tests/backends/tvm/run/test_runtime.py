from __future__ import annotations

import subprocess
import sys

from tests.backends.tvm.available import needs_tvm


@needs_tvm
def test_the_compiler_comes_without_torch_which_can_be_imported_later() -> None:
    code = (
        "import sys\n"
        "from edgevit.backends.tvm.run.runtime import compiler\n"
        "tvm = compiler()\n"
        "from edgevit.backends.tvm.compile import library\n"
        "print(sorted({'tvm', 'torch'} & set(sys.modules)), tvm is sys.modules['tvm'])\n"
        "import torch\n"
        "print(torch.ones(2).sum().item(), compiler() is tvm)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["['tvm'] True", "2.0 True"], done.stderr
