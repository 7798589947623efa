"""Language models, and fine-tunes of one base that stay packed.

```python
from deltaloom.lm import Model

model = Model.open("base/", tenants={"pirate": "pirate.loom"})
print(model.generate("Once upon a time", tenant="pirate"))
```
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypedDict, Unpack

from deltaloom import _lib
from deltaloom._inputs import Path, path_of
from deltaloom._progress import Progress, reporting
from deltaloom._reports import Report

__all__ = ["Model", "Options"]


class Options(TypedDict, total=False):
    """How a text is continued.

    Attributes:
        max_tokens: Most tokens, 256 by default.
        temperature: 0, the default, takes the most probable token; 1 samples what the model says.
        top_k: Keep this many of the most probable tokens; 0 keeps all.
        top_p: Keep the most probable tokens with this probability together; 1 keeps all.
        min_p: Keep tokens with this share of the largest probability.
        repetition_penalty: Makes tokens of the text less probable; 1 changes nothing.
        seed: The same seed gives the same text.
        stop: Texts that end the answer.
        chat: Use the chat template of the model.
        system: With `chat`, what the system says.
    """

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int
    stop: Sequence[str]
    chat: bool
    system: str | None


def _chosen(options: Options) -> dict[str, Any]:
    known: dict[str, Any] = {
        "max_tokens": 256,
        "temperature": 0.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "seed": 0,
        "stop": [],
        "chat": False,
        "system": None,
    }
    if odd := set(options) - set(known):
        raise TypeError(f"there is no option {', '.join(sorted(odd))}; there are {', '.join(known)}")
    known.update(options)
    return known


class Model:
    """A model with its fine-tunes. `Model.open` makes one. One call computes at a time.

    Results have the same bits on any number of threads and on any processor.
    """

    def __init__(self, handle: _lib.Model, tenants: Sequence[str], default: str | None, threads: int) -> None:
        self._handle = handle
        self._default = default
        self._threads = threads
        self.tenants: tuple[str, ...] = tuple(tenants)

    @classmethod
    def open(
        cls,
        path: Path,
        base: Path | None = None,
        tenants: Mapping[str, Path] | Sequence[Path] = (),
        *,
        threads: int = 0,
    ) -> Model:
        """Opens a model.

        Args:
            path: A folder of Hugging Face or a GGUF file. With `base`, a container of a fine-tune,
                which then answers unless a call names another.
            base: The folder that the container was packed against.
            tenants: Containers of fine-tunes by name, or in a list: their names are then those of
                the files.
            threads: How many; 0 means one per core.

        Raises:
            BaseMismatchError: A container belongs to another base.
            ValueError: deltaloom does not run models of this family.
        """
        named = dict(tenants) if isinstance(tenants, Mapping) else {_stem(one): one for one in tenants}
        default = None
        if base is not None:
            default = _stem(path)
            named[default] = path
        opened = path_of(path if base is None else base)
        handle = _lib.Model.open(opened, {name: path_of(one) for name, one in named.items()}, threads)
        return cls(handle, list(named), default, threads)

    def generate(self, prompt: str, *, tenant: str | None = None, **options: Unpack[Options]) -> str:
        """Continues a text, or answers it with `chat=True`.

        Args:
            prompt: The text; with `chat`, what the user says.
            tenant: The fine-tune to ask; None for the base, or the container that was opened.
            options: See `Options`.

        Raises:
            KeyError: There is no such tenant.
            ValueError: An option is out of range, or the prompt longer than the model's context.
            RuntimeError: Another call computes with the model.
        """
        chosen, who = _chosen(options), self._default if tenant is None else tenant
        return self._handle.generate(prompt, who, chosen, None, self._threads)

    def stream(
        self, prompt: str, *, tenant: str | None = None, **options: Unpack[Options]
    ) -> Iterator[str]:
        """As `generate`, piece by piece as the text comes. Closing the iterator stops the work."""
        chosen, who = _chosen(options), self._default if tenant is None else tenant
        pieces: queue.SimpleQueue[str | BaseException | None] = queue.SimpleQueue()
        ended = threading.Event()

        def each(piece: str) -> None:
            if ended.is_set():
                raise _EndedError
            pieces.put(piece)

        def work() -> None:
            try:
                self._handle.generate(prompt, who, chosen, each, self._threads)
            except _EndedError:
                pass
            except BaseException as error:
                pieces.put(error)
            finally:
                pieces.put(None)

        worker = threading.Thread(target=work, name="deltaloom-generate", daemon=True)
        worker.start()
        try:
            while (piece := pieces.get()) is not None:
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
        finally:
            ended.set()
            worker.join()

    def perplexity(
        self,
        text_or_ids: str | Sequence[int],
        *,
        tenant: str | None = None,
        window: int | None = None,
        progress: bool | Progress | None = None,
    ) -> Report:
        """The loss on a text or on token ids: `loss` in nats per token, `perplexity`, `tokens`.

        Args:
            text_or_ids: The text, or ids of tokens, at least two.
            tenant: The fine-tune to ask.
            window: Tokens of a window; windows do not overlap.
            progress: True for a bar, or a function of the tokens that are done and their total.
        """
        who = self._default if tenant is None else tenant
        text = text_or_ids if isinstance(text_or_ids, str) else None
        ids = [] if isinstance(text_or_ids, str) else list(text_or_ids)
        with reporting(progress, "scoring") as report:
            return Report.from_json(self._handle.perplexity(text, ids, who, window, self._threads, report))

    def encode(self, text: str, *, tenant: str | None = None) -> list[int]:
        """The ids of the tokens of a text."""
        return self._handle.encode(text, self._default if tenant is None else tenant)


class _EndedError(Exception):
    """Nobody wants more text."""


def _stem(path: Path) -> str:
    return os.path.splitext(os.path.basename(os.fsdecode(path)))[0]
