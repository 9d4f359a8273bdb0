"""Uploads one file with google-resumable-media, as an application would that compares the MD5 at its end; prints the blob's
id and where it recovered.

python upload_google.py ENDPOINT GRANT FILE repeat|recover: what follows a lost connection. By itself the library sends
the same chunk again; an application may instead ask what was kept (`recover`) and go on from there.
"""
import json
import sys

import google.auth.transport.requests as transport
import requests
from google.oauth2.credentials import Credentials
from google.resumable_media import common
from google.resumable_media.requests import ResumableUpload

endpoint, grant, file, after_loss = sys.argv[1:]
CHUNK = 1 << 20
session = transport.AuthorizedSession(Credentials(token=grant))
upload = ResumableUpload(f"{endpoint}?uploadType=resumable", CHUNK, checksum="md5")
recovered = []
with open(file, "rb") as stream:
    upload.initiate(session, stream, {"name": "sample.bin"}, "application/octet-stream")
    if after_loss == "recover":
        upload._retry_strategy = common.RetryStrategy(max_retries=0)
    while not upload.finished:
        try:
            answer = upload.transmit_next_chunk(session)
        except requests.ConnectionError:
            if after_loss != "recover":
                raise
            upload._invalid = True  # the library marks itself so only after an answer it does not know
            upload.recover(session)
            recovered.append(upload.bytes_uploaded)
print(json.dumps({"done": True, "blob": answer.headers.get("waxwing-blob"), "recovered": recovered}))
