"""Known answers for sealed blobs, made and checked with Google Tink's own Python library.

    python3 -m venv /tmp/tink && /tmp/tink/bin/pip install tink==1.16.1
    /tmp/tink/bin/python src/seal/vectors/make_vectors.py make          # writes tink.json
    cargo run -p waxwing-seal --example seal_fixed -- /tmp/ours         # seals with our crate
    /tmp/tink/bin/python src/seal/vectors/make_vectors.py check /tmp/ours   # opens that with Tink, writes ours.json

Tink draws salt and nonce prefix itself, so every `make` gives other vectors; the committed ones are one run. Plaintexts
are the bytes (7 i + i // 251) mod 256. Ciphertexts over 600 bytes stand as their SHA-256: key, header and plaintext
determine them, and the header is recorded.
"""

import hashlib
import importlib.metadata
import io
import json
import pathlib
import sys

import tink
from tink import secret_key_access, streaming_aead
from tink.proto import aes_gcm_hkdf_streaming_pb2, common_pb2, tink_pb2

TINK = "1.16.1"
ASSOCIATED_DATA = b"waxwing/blob/v1"
SEGMENT = 65536
FIRST = SEGMENT - 40 - 16
NEXT = SEGMENT - 16
SIZES = [0, 1, 541, FIRST - 1, FIRST, FIRST + 1, FIRST + NEXT - 1, FIRST + NEXT, FIRST + NEXT + 1, 300_000]
HERE = pathlib.Path(__file__).parent


def plaintext(size):
    return bytes((7 * i + i // 251) % 256 for i in range(size))


def primitive(key):
    """Tink's AES256-GCM-HKDF streaming AEAD with 64 KiB segments and this key."""
    params = aes_gcm_hkdf_streaming_pb2.AesGcmHkdfStreamingParams(
        ciphertext_segment_size=SEGMENT, derived_key_size=32, hkdf_hash_type=common_pb2.SHA256
    )
    value = aes_gcm_hkdf_streaming_pb2.AesGcmHkdfStreamingKey(version=0, params=params, key_value=key)
    data = tink_pb2.KeyData(
        type_url="type.googleapis.com/google.crypto.tink.AesGcmHkdfStreamingKey",
        value=value.SerializeToString(),
        key_material_type=tink_pb2.KeyData.SYMMETRIC,
    )
    keyset = tink_pb2.Keyset(primary_key_id=1)
    keyset.key.add(key_data=data, status=tink_pb2.ENABLED, key_id=1, output_prefix_type=tink_pb2.RAW)
    handle = tink.proto_keyset_format.parse(keyset.SerializeToString(), secret_key_access.TOKEN)
    return handle.primitive(streaming_aead.StreamingAead)


class Kept(io.BytesIO):
    """Tink closes what it writes to; the bytes are wanted afterwards."""

    def close(self):
        self.kept = self.getvalue()
        super().close()


def seal(key, plain):
    out = Kept()
    with primitive(key).new_encrypting_stream(out, ASSOCIATED_DATA) as stream:
        stream.write(plain)
    return out.kept


def open_sealed(key, sealed):
    with primitive(key).new_decrypting_stream(io.BytesIO(sealed), ASSOCIATED_DATA) as stream:
        return stream.read()


def describe(key, true_bytes, sealed):
    vector = {
        "key": key.hex(),
        "header": sealed[:40].hex(),
        "true_bytes": true_bytes,
        "sealed_bytes": len(sealed),
        "sealed_sha256": hashlib.sha256(sealed).hexdigest(),
    }
    if len(sealed) <= 600:
        vector["sealed"] = sealed.hex()
    return vector


def write(name, vectors):
    text = json.dumps({"tink": TINK, "vectors": vectors}, indent=1) + "\n"
    (HERE / name).write_text(text)
    print(f"{name}: {len(vectors)} vectors")


def make():
    vectors = []
    for number, size in enumerate(SIZES):
        key = hashlib.sha256(b"waxwing vector %d" % number).digest()
        sealed = seal(key, plaintext(size))
        assert open_sealed(key, sealed) == plaintext(size)
        vectors.append(describe(key, size, sealed))
    write("tink.json", vectors)


def check(directory):
    """Opens what examples/seal_fixed.rs sealed: padded, so the file is followed by zeros."""
    vectors = []
    for meta in sorted(pathlib.Path(directory).glob("*.json")):
        made = json.loads(meta.read_text())
        key, size = bytes.fromhex(made["key"]), made["true_bytes"]
        sealed = meta.with_suffix(".blob").read_bytes()
        opened = open_sealed(key, sealed)
        assert opened[:size] == plaintext(size), meta
        assert not any(opened[size:]), meta
        vectors.append(describe(key, size, sealed))
    assert vectors, f"nothing to check in {directory}"
    write("ours.json", vectors)


if __name__ == "__main__":
    assert importlib.metadata.version("tink") == TINK, f"vectors are pinned to tink {TINK}"
    streaming_aead.register()
    if sys.argv[1:] == ["make"]:
        make()
    elif len(sys.argv) == 3 and sys.argv[1] == "check":
        check(sys.argv[2])
    else:
        sys.exit(__doc__)
