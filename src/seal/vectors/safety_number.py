#!/usr/bin/env python3
"""The safety number of two account keys, written a second time from its definition in identity.rs.

Prints the number for the keys 01..01 and 02..02, which identity.rs holds as a known answer. Python's standard library
is all it needs: `python3 safety_number.py [KEY_HEX KEY_HEX]`.
"""

import hashlib
import sys

DOMAIN = b"waxwing/safety-number/v1"
ROUNDS = 5200


def half(key: bytes) -> list[str]:
    digest = hashlib.sha512(DOMAIN + key).digest()
    for _ in range(ROUNDS - 1):
        digest = hashlib.sha512(digest + key).digest()
    groups = (digest[i : i + 5] for i in range(0, 30, 5))
    return [f"{int.from_bytes(group, 'big') % 100_000:05}" for group in groups]


def main() -> None:
    keys = [bytes.fromhex(arg) for arg in sys.argv[1:3]] or [b"\x01" * 32, b"\x02" * 32]
    first, second = sorted(half(key) for key in keys)
    print(" ".join(first + second))


if __name__ == "__main__":
    main()
