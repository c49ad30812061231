"""Weights that are decrypted by age (pyrage) and by Tink, whole and as a stream, before they are loaded."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from case import Case, Truth

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_LAYERS, _WIDTH = 12, 1536
_SECRET = "correct horse battery staple"  # noqa: S105 - of files that are made here


def _plain() -> bytes:
    import torch
    from safetensors.torch import save

    torch.manual_seed(0)
    return save({f"layer{place}": torch.randn(_WIDTH, _WIDTH) for place in range(_LAYERS)})


def _truth(folder: Path, plain: bytes, decrypted: int | None = None) -> Truth:
    sealed = (folder / "model.enc").stat().st_size
    return {"read": sealed, "decrypt": decrypted or sealed, "deserialize": len(plain) - 8 - int.from_bytes(plain[:8], "little")}


def _write_age(folder: Path) -> Truth:
    import pyrage

    identity, plain = pyrage.x25519.Identity.generate(), _plain()
    (folder / "key").write_text(str(identity))
    (folder / "model.enc").write_bytes(pyrage.encrypt(plain, [identity.to_public()]))
    return _truth(folder, plain)


def _write_passphrase(folder: Path) -> Truth:
    import pyrage

    plain = _plain()
    (folder / "model.enc").write_bytes(pyrage.passphrase.encrypt(plain, _SECRET))
    return _truth(folder, plain)


def _tink(folder: Path, kind: Any, template: Any) -> Any:
    import tink
    from tink import cleartext_keyset_handle

    kind.register()
    key = folder / "key.json"
    if not key.exists():
        with key.open("w") as file:
            cleartext_keyset_handle.write(tink.JsonKeysetWriter(file), tink.new_keyset_handle(template))
    return cleartext_keyset_handle.read(tink.JsonKeysetReader(key.read_text()))


def _aead(folder: Path) -> Any:
    from tink import aead

    return _tink(folder, aead, aead.aead_key_templates.AES256_GCM).primitive(aead.Aead)


def _streaming(folder: Path) -> Any:
    from tink import streaming_aead

    template = streaming_aead.streaming_aead_key_templates.AES256_GCM_HKDF_1MB
    return _tink(folder, streaming_aead, template).primitive(streaming_aead.StreamingAead)


def _write_tink(folder: Path) -> Truth:
    plain = _plain()
    (folder / "model.enc").write_bytes(_aead(folder).encrypt(plain, b"about"))
    return _truth(folder, plain)


def _write_stream(folder: Path) -> Truth:
    plain = _plain()
    with _streaming(folder).new_encrypting_stream((folder / "model.enc").open("wb"), b"about") as sealed:
        sealed.write(plain)
    return _truth(folder, plain, len(plain))


def _weights(read: Callable[[], Any], decrypted: Callable[[Any], bytes]) -> Any:
    from safetensors.torch import load  # before anything is decrypted: importing torch takes longer

    sealed = read()
    plain = decrypted(sealed)
    return dict(sorted(load(plain).items()))  # in an order that is another each time


def _identity(folder: Path) -> Any:
    import pyrage

    return pyrage.x25519.Identity.from_str((folder / "key").read_text())


def _age(folder: Path) -> Any:
    import pyrage

    identity = _identity(folder)
    return _weights((folder / "model.enc").read_bytes, lambda sealed: pyrage.decrypt(sealed, [identity]))


def _age_stream(folder: Path) -> Any:
    import pyrage

    def decrypted(sealed: Any) -> bytes:
        plain = io.BytesIO()
        with sealed:
            pyrage.decrypt_io(sealed, plain, [_identity(folder)])
        return plain.getvalue()

    return _weights(lambda: (folder / "model.enc").open("rb"), decrypted)


def _age_file(folder: Path) -> Any:
    import pyrage
    from safetensors.torch import load_file

    pyrage.decrypt_file(str(folder / "model.enc"), str(folder / "model.safetensors"), [_identity(folder)])
    return load_file(folder / "model.safetensors")


def _age_passphrase(folder: Path) -> Any:
    import pyrage

    return _weights((folder / "model.enc").read_bytes, lambda sealed: pyrage.passphrase.decrypt(sealed, _SECRET))


def _age_wrong(folder: Path) -> Any:
    import pyrage

    return pyrage.decrypt((folder / "model.enc").read_bytes(), [pyrage.x25519.Identity.generate()])


def _tink_whole(folder: Path) -> Any:
    key = _aead(folder)
    return _weights((folder / "model.enc").read_bytes, lambda sealed: key.decrypt(sealed, b"about"))


def _tink_stream(folder: Path) -> Any:
    key = _streaming(folder)

    def decrypted(sealed: Any) -> bytes:
        with key.new_decrypting_stream(sealed, b"about") as opened:
            plain: bytes = opened.read()
        return plain

    return _weights(lambda: (folder / "model.enc").open("rb"), decrypted)


_ALL = ("read", "decrypt", "deserialize")


def _case(library: str, name: str, write: Callable[[Path], Truth], load: Any, stages: tuple[str, ...] = _ALL, **more: Any) -> Case:
    known: dict[str, Any] = {"loader": "safetensors", "needs": (library, "torch", "safetensors")}
    return Case(library=library, name=name, write=write, load=load, stages=stages, **(known | more))


CASES = [
    _case("pyrage", "decrypt", _write_age, _age),
    _case("pyrage", "decrypt_io", _write_age, _age_stream, loader="pyrage"),
    _case(
        "pyrage",
        "decrypt_file",
        _write_age,
        _age_file,
        ("decrypt", "deserialize"),
        sizes=lambda truth: {**truth, "read": 0},
        loader="pyrage",
    ),
    _case(
        "pyrage",
        "decrypt, another key",
        _write_age,
        _age_wrong,
        ("read", "decrypt"),
        sizes=lambda _: {},
        raises="DecryptError",
        loader="none",  # the program read the file itself
    ),
    _case("pyrage", "passphrase.decrypt", _write_passphrase, _age_passphrase),
    _case("tink", "Aead.decrypt", _write_tink, _tink_whole),
    _case("tink", "StreamingAead, new_decrypting_stream", _write_stream, _tink_stream, loader="tink"),
]
