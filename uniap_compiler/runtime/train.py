"""Train with this bundle:  torchrun --nproc-per-node N train.py --data FILE.py:batches  (--help for more)."""

import importlib
import importlib.machinery
import importlib.util
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.dont_write_bytecode = True  # the folder stays as it was compiled
    root = Path(__file__).resolve().parent
    # The folder as a package of a fixed name, wherever it lies and whatever it is called.
    spec = importlib.machinery.ModuleSpec("bundle", None, is_package=True)
    spec.submodule_search_locations = [str(root)]
    sys.modules["bundle"] = importlib.util.module_from_spec(spec)
    importlib.import_module("bundle.runtime.launch").main(root, "bundle")
