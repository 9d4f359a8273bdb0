"""Uploads one file with tuspy, as an application would; prints the blob's id.

python upload_tus.py ENDPOINT GRANT FILE URL_STORAGE [checksum]: with a SHA-1 of every chunk, if asked for.
"""
import json
import sys

from tusclient.client import TusClient
from tusclient.storage.filestorage import FileStorage

endpoint, grant, file, storage = sys.argv[1:5]
client = TusClient(endpoint, headers={"Authorization": f"Bearer {grant}"})
uploader = client.uploader(
    file,
    chunk_size=1 << 20,
    retries=5,
    retry_delay=0.1,
    store_url=True,
    url_storage=FileStorage(storage),
    upload_checksum="checksum" in sys.argv[5:],
)
print(json.dumps({"url": uploader.url, "offset": uploader.offset}), flush=True)
uploader.upload()
blob = uploader.request.response_headers.get("waxwing-blob")
print(json.dumps({"done": True, "blob": blob}), flush=True)
