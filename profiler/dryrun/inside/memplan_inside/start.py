"""Waits for the libraries that matter to be imported, and then puts the observers in place."""

import atexit
import importlib.abc
import importlib.machinery
import os
import sys


def _torch(module):
    from memplan_inside import values, watch

    values.install()
    watch.install()


def _modeling(module):
    if os.environ.get("MEMPLAN_DRYRUN_RANDOM_WEIGHTS") == "1":
        from memplan_inside import weights

        weights.install(module)


def _saving(module):
    from memplan_inside import watch

    watch.wrap_saving(module, "save_file")


def _deepspeed(module):
    from memplan_inside import watch

    watch.wrap_engine(module.DeepSpeedEngine)


def _lomo(module):
    from memplan_inside import watch

    watch.wrap_fused_backward(module.Lomo)
    watch.wrap_fused_backward(module.AdaLomo)


AFTER_IMPORT = {
    "torch": _torch,
    "transformers.modeling_utils": _modeling,
    "safetensors.torch": _saving,
    "deepspeed.runtime.engine": _deepspeed,
    "lomo_optim": _lomo,
}


class _Finder(importlib.abc.MetaPathFinder):
    """Lets every other finder find the module, then runs what belongs after its import."""

    def find_spec(self, name, path=None, target=None):
        if name not in AFTER_IMPORT:
            return None
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = _Loader(spec.loader, AFTER_IMPORT[name])
                return spec
        return None


class _Loader(importlib.abc.Loader):
    def __init__(self, loader, after):
        self._loader, self._after = loader, after

    def __getattr__(self, name):
        return getattr(self._loader, name)

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._after(module)


def start():
    """Install the import hook, the exception hook and the exit hook."""
    sys.meta_path.insert(0, _Finder())
    before = sys.excepthook

    def failed(kind, error, trace):
        before(kind, error, trace)
        if "torch" in sys.modules:
            from memplan_inside import watch

            watch.failed(error)

    sys.excepthook = failed
    atexit.register(_ended)


def _ended():
    if "memplan_inside.watch" in sys.modules:
        sys.modules["memplan_inside.watch"].ended()
