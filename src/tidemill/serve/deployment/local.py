"""The models of this process: loaded beside those that answer, put in their place in one step, closed when the last request has left."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterable, Mapping, Sequence

from tidemill.core.allocator import trim
from tidemill.core.events import Events
from tidemill.core.package import Package
from tidemill.serve.app import App
from tidemill.serve.config import ServeConfig
from tidemill.serve.deployment.slot import Slot
from tidemill.serve.model import Model

Key = tuple[str, str, str]


class Deployment:
    """What an application answers with. One change at a time: whoever calls sees to it."""

    def __init__(self, config: ServeConfig, *, accept_latency: bool = False, events: Events) -> None:
        self._config = config
        self._accept_latency = accept_latency
        self._events = events
        self._models: dict[Key, Model] = {}
        self._ready: dict[Key, Model] = {}
        self._order: list[Key] = []
        self._app: App | None = None

    def start(self, slots: Sequence[Slot], *, opened: Mapping[Slot, Package] | None = None) -> App:
        """The application of the first models.

        Raises:
            ContractViolation: If a package breaks its contract on this hardware.
        """
        self.prepare(slots, opened=opened)
        self._models, self._ready = self._ready, {}
        self._app = App([self._models[key] for key in self._order], config=self._config, events=self._events)
        return self._app

    def prepare(self, slots: Sequence[Slot], *, opened: Mapping[Slot, Package] | None = None) -> None:
        """Load, warm up and hold to its contract what does not answer yet; nothing changes for callers.

        Raises:
            TidemillError: If a package cannot be loaded or breaks its contract; then nothing of it is kept.
        """
        self.discard()
        self._order = list(dict.fromkeys(slot.key for slot in slots))
        try:
            for slot in slots:
                if slot.key in self._models or slot.key in self._ready:
                    continue
                package = (opened or {}).get(slot) or slot.open()
                model = self._ready[slot.key] = Model(
                    package,
                    threads=self._config.threads,
                    cores=self._config.cores,
                    runtime=self._config.runtime,
                    precision=self._config.precision,
                    ranks=self._config.parallel,
                    parallel=self._config.workers or self._config.cores,
                    events=self._events,
                )
                images = self._config.images
                model.predictor.limit_images(max_pixels=int(images.max_mpixels * 1e6), max_bytes=int(images.max_mb * 1e6))
                model.keep_contract(accept_latency=self._accept_latency, events=self._events)
                told = f"{model.name} {model.version}: {model.row_ms:.3g} ms a row"
                self._events.emit("serve.loaded", told, model=model.name, version=model.version)
        except BaseException:
            self.discard()
            raise

    def commit(self) -> None:
        """Answer with what was prepared from the next request on; what answers no more is closed when its last request has."""
        if self._app is None:
            raise RuntimeError("a deployment must be started before it is changed")
        models = self._models | self._ready
        self._app.replace([models[key] for key in self._order])
        gone = [model for key, model in models.items() if key not in self._order]
        self._models, self._ready = {key: models[key] for key in self._order}, {}
        threading.Thread(target=_retire, args=(self._app, gone), name="retire", daemon=True).start()

    def discard(self) -> None:
        """Let go of what was prepared."""
        dropped, self._ready = self._ready, {}
        for model in dropped.values():
            model.close()
        if dropped:
            dropped.clear()
            give_back_memory()


def _retire(app: App, models: Iterable[Model]) -> None:
    for model in models:
        model.holds.retire()
        model.holds.wait(None)
        app.forget(model)
        model.close()
    give_back_memory()


def give_back_memory() -> None:
    """Return what closed models leave behind to the system, which the C library's allocator would keep for later."""
    # Most of a closed model's memory went with its last reference. What reads its requests holds classes made for it, which are circles, and
    # serving looks for those too seldom to keep memory level through many versions. What there was at the start is frozen and not looked through.
    gc.collect()
    trim()
