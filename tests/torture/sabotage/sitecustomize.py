"""Makes the worker of one run misbehave: it is on the path of torture tests only."""

import os
import sys

if "SABOTAGE" in os.environ:
    from importlib.abc import MetaPathFinder

    class _Finder(MetaPathFinder):
        """Patches the trainer when it has been imported."""

        def find_spec(self, name, path=None, target=None):
            """Never finds; waits for the module after the trainer."""
            trainer = sys.modules.get("imgclass.trainer")
            if trainer is not None and hasattr(trainer, "ImageTrainer"):
                sys.meta_path.remove(self)
                import misbehave

                misbehave.patch(trainer.ImageTrainer, os.environ["SABOTAGE"])

    sys.meta_path.insert(0, _Finder())
