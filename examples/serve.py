"""
A small model server that keeps its weights encrypted and switches base model and LoRA adapter from request to request.

    python make_models.py models
    python serve.py models                      # or: loadspan run -- python serve.py models
    curl 'http://127.0.0.1:8000/generate?adapter=a'

The path of a base model is read and decrypt, deserialize, load_state_dict, to_device; that of an adapter is read, decrypt, deserialize,
merge into the attention layers, to_device. Most of it `loadspan run` records by itself. This file names what no library can know:
which model a load is for (`loadspan.load`), a decryption with its own framing, a merge written by hand and a cache (`loadspan.stage`).
Without a recorder these lines do nothing, and the server is the same.

    GET /                               what can be asked for
    GET /generate?base=base&adapter=a   four tokens and a checksum of the output; no `adapter`: the base model alone
    POST /stop                          finish the requests and end
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import signal
import sys
import threading
from collections import OrderedDict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import safetensors.torch
import torch
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from fakegpu import best_device
from sealed import FRAME_SIZE, HEADER_SIZE, derive_key, read_frame
from toy_model import ATTENTION, Config, Transformer

import loadspan

if TYPE_CHECKING:
    from collections.abc import Iterable

PROMPT = (1, 2, 3, 5)
TOKENS = 4


@loadspan.stage("decrypt")
def decrypt_chunked(path: Path, passphrase: bytes) -> bytes:
    """Read *path* frame by frame and return its plaintext. The reads inside are a stage of their own: the time is split between the two."""
    chunks = []
    with path.open("rb") as file:
        header = file.read(HEADER_SIZE)
        cipher = AESGCM(derive_key(passphrase, header))
        while head := file.read(FRAME_SIZE):
            nonce, length = read_frame(head)
            chunks.append(cipher.decrypt(nonce, file.read(length), header))
    return b"".join(chunks)


@loadspan.stage("decrypt")
def decrypt_whole(path: Path, passphrase: bytes) -> bytes:
    """Return the plaintext of *path*, which is one frame."""
    # Plain reads are recorded by themselves from 16 MiB on; an adapter is smaller, and on a slow mount still takes its time.
    with loadspan.stage("read", path=path, size=path.stat().st_size):
        data = path.read_bytes()
    header, head = data[:HEADER_SIZE], data[HEADER_SIZE : HEADER_SIZE + FRAME_SIZE]
    cipher = ChaCha20Poly1305(derive_key(passphrase, header))
    return cipher.decrypt(read_frame(head).nonce, data[HEADER_SIZE + FRAME_SIZE :], header)


class Adapter:
    """A LoRA adapter in host memory: for each layer the factors A (rank, in) and B (out, rank) of what it adds."""

    def __init__(self, name: str, path: Path, passphrase: bytes) -> None:
        content = torch.load(io.BytesIO(decrypt_whole(path, passphrase)), weights_only=True)
        self.name = name
        self._weights: dict[str, torch.Tensor] = content["weights"]
        self._alpha: float = content["alpha"]

    def merge(self, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return *weights* with the delta of this adapter added: alpha / rank x B x A."""
        size = sum(tensor.nbytes for tensor in self._weights.values())
        with loadspan.stage("merge_lora", adapter=self.name, size=size):
            return {name: self._merge_layer(name.removesuffix(".weight"), weight) for name, weight in weights.items()}

    def _merge_layer(self, layer: str, weight: torch.Tensor) -> torch.Tensor:
        a, b = self._weights[f"{layer}.lora_A"].float(), self._weights[f"{layer}.lora_B"].float()
        return torch.addmm(weight.float(), b, a, alpha=self._alpha / len(a)).to(weight.dtype)


class AdapterCache:
    """The adapters used last, decrypted, in host memory."""

    def __init__(self, folder: Path, passphrase: bytes, capacity: int) -> None:
        self.names = _names(folder.glob("*.enc"))
        self._folder, self._passphrase, self._capacity = folder, passphrase, capacity
        self._adapters: OrderedDict[str, Adapter] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, name: str) -> tuple[Adapter, bool]:
        """Return the adapter *name* and whether it was here already."""
        with loadspan.stage("cache") as stage, self._lock:
            adapter = self._adapters.get(name)
            stage.set(cache_hit=adapter is not None)
        hit = adapter is not None
        # Not under the lock: others may use the cache meanwhile. Two that miss at once both load it; the second replaces the first.
        adapter = adapter or Adapter(name, self._folder / f"{name}.enc", self._passphrase)
        with self._lock:
            self._adapters[name] = adapter
            self._adapters.move_to_end(name)
            while len(self._adapters) > self._capacity:
                self._adapters.popitem(last=False)
        return adapter, hit


class Model:
    """A base model on the device, with at most one adapter merged into it. Not for two threads at once."""

    def __init__(self, path: Path, passphrase: bytes, device: str) -> None:
        self._device = device
        self.adapter: str | None = None
        config = Config(**json.loads(path.with_suffix(".json").read_text()))
        plain = decrypt_chunked(path, passphrase)
        with loadspan.stage("deserialize"):
            state = safetensors.torch.load(plain)
            del plain  # hundreds of megabytes take their time to be given back
        with loadspan.stage("initialize"), torch.device("meta"):
            self._module = Transformer(config)
        self._module.load_state_dict(state, assign=True)
        # Stay in host memory: a merge begins from these, since to subtract the last delta again would leave rounding errors.
        self._attention = {name: tensor for name, tensor in state.items() if name.split(".")[-2] in ATTENTION}
        del state  # else the other weights would stay, too, until this function ends
        self._module.to(device)

    def switch(self, name: str | None, cache: AdapterCache) -> bool | None:
        """Merge the adapter *name*, or none, instead of the one that is in. Return whether the cache had it."""
        hit, weights = None, self._attention
        if name is not None:
            adapter, hit = cache.get(name)
            weights = adapter.merge(weights)
        self._module.load_state_dict(weights, strict=False, assign=True)
        self._module.to(self._device)
        self.adapter = name
        return hit

    @torch.no_grad()
    def generate(self) -> tuple[list[int], str]:
        """Return the tokens that follow the prompt, and a checksum of the last logits."""
        tokens = list(PROMPT)
        for _ in range(TOKENS):
            logits = self._module(torch.tensor(tokens).to(self._device))
            tokens.append(int(logits.argmax()))
        return tokens[len(PROMPT) :], hashlib.sha256(logits.float().cpu().numpy().tobytes()).hexdigest()[:12]


class UnknownNameError(LookupError):
    """A request names a base model or an adapter that is not on disk."""


class Models:
    """What the server answers from: one base model on the device at a time, any of the adapters in it."""

    def __init__(self, folder: Path, device: str, cached: int) -> None:
        self.device = device
        self._folder = folder
        self._passphrase = (folder / "passphrase").read_bytes()
        self._locks = {path.stem: threading.Lock() for path in sorted((folder / "base").glob("*.enc"))}
        self._adapters = AdapterCache(folder / "lora", self._passphrase, cached)
        self._resident: dict[str, Model] = {}

    def describe(self) -> dict[str, Any]:
        """Name what can be asked for."""
        return {"base": list(self._locks), "adapter": self._adapters.names, "device": self.device}

    def generate(self, base: str, adapter: str | None) -> dict[str, Any]:
        """
        Answer one request, on any thread; requests for the same base model wait for each other.

        Raises:
            UnknownNameError: there is no such base model or adapter.
        """
        if adapter is not None and adapter not in self._adapters.names:
            raise UnknownNameError(f"no adapter {adapter!r}")
        if base not in self._locks:
            raise UnknownNameError(f"no base model {base!r}")
        with self._locks[base]:
            model = self._resident.get(base)
            loaded, hit = None, None
            if model is None or model.adapter != adapter:
                loaded = f"{base}+{adapter}" if adapter else base
                with loadspan.load(loaded):
                    model, hit = self._bring(model, base, adapter)
            tokens, checksum = model.generate()
        return {
            "base": base,
            "adapter": adapter,
            "device": self.device,
            "loaded": loaded,
            "cache_hit": hit,
            "tokens": tokens,
            "checksum": checksum,
        }

    def _bring(self, model: Model | None, base: str, adapter: str | None) -> tuple[Model, bool | None]:
        """Load the base model if it is not *model*, and merge the adapter."""
        if model is None:
            # Replaces the dictionary: the device has room for one. A request still running on the old model keeps it until it ends.
            self._resident = {}
            model = Model(self._folder / "base" / f"{base}.enc", self._passphrase, self.device)
            self._resident = {base: model}
        hit = model.switch(adapter, self._adapters) if adapter != model.adapter else None
        return model, hit


class Handler(BaseHTTPRequestHandler):
    """One request. `server.models` is the server's."""

    server: Server

    def do_GET(self) -> None:
        """Answer `/` and `/generate`."""
        url = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        try:
            if url.path == "/generate":
                self._answer(200, self.server.models.generate(query.get("base", "base"), query.get("adapter")))
            elif url.path == "/":
                self._answer(200, self.server.models.describe())
            else:
                self._answer(404, {"error": f"no page {url.path!r}"})
        except UnknownNameError as error:
            self._answer(404, {"error": str(error)})
        except Exception as error:  # noqa: BLE001 - one request that fails (a damaged file, no memory) does not end the server
            self._answer(500, {"error": f"{type(error).__name__}: {error}"})

    def do_POST(self) -> None:
        """Answer `/stop`."""
        if self.path != "/stop":
            self._answer(404, {"error": f"no page {self.path!r}"})
            return
        self._answer(200, {"stopping": True})
        self.server.stop()

    def log_message(self, *_: Any) -> None:
        """Say nothing: a line per request would run through the waterfalls on the terminal."""

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Server(ThreadingHTTPServer):
    """Listens on the loopback interface only; a thread per request."""

    daemon_threads = False  # those that run when the server stops may finish

    def __init__(self, port: int, models: Models) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.models = models

    @property
    def address(self) -> str:
        """Where it listens, with the port that it was given."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def stop(self, *_: Any) -> None:
        """Have `serve_forever` return; also a signal handler."""
        # On a thread: shutdown() waits for the loop, and a signal handler runs inside it.
        threading.Thread(target=self.shutdown).start()


def _names(paths: Iterable[Path]) -> list[str]:
    return sorted(path.stem for path in paths)


def main() -> int:
    """Read the command line, serve until stopped."""
    parser = argparse.ArgumentParser(description="Serve an encrypted base model and its LoRA adapters on the loopback interface.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="what make_models.py wrote")
    parser.add_argument("--port", type=int, default=8000, help="0: any free one (default: %(default)s)")
    parser.add_argument("--ready", type=Path, metavar="FILE", help="write the address to FILE once requests are answered")
    parser.add_argument("--cached", type=int, default=4, metavar="N", help="adapters kept decrypted in host memory (default: %(default)s)")
    arguments = parser.parse_args()
    if not (arguments.folder / "passphrase").exists():
        parser.error(f"{arguments.folder}: no models there. Write them: python make_models.py {arguments.folder}")
    device, is_fake = best_device()
    server = Server(arguments.port, Models(arguments.folder, device, arguments.cached))
    signal.signal(signal.SIGTERM, server.stop)
    signal.signal(signal.SIGINT, server.stop)
    print(f"serve: {server.address} on {device}{', a stand-in: no accelerator here' if is_fake else ''}", file=sys.stderr, flush=True)
    if arguments.ready:
        arguments.ready.write_text(server.address)
    with server:
        server.serve_forever()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
