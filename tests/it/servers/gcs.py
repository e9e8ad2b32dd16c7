"""Google Cloud Storage for the tests, on a loopback port: gcp-storage-emulator keeps the objects.

The emulator speaks Google's JSON API, and ignores preconditions. Clients of the XML API (which Rust's object_store is) need
lists, deletions, uploads in parts and `x-goog-if-generation-match`; those are added here, as
https://cloud.google.com/storage/docs/xml-api/reference-methods has them. `PUT /bucket` makes a bucket.
"""

import hashlib
import sys
import threading
import uuid
from email.utils import format_datetime
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.storage import Storage

STORAGE = Storage(use_memory_fs=True)
LOCK = threading.RLock()
UPLOADS = {}
GENERATION = [int(datetime.now(timezone.utc).timestamp() * 1_000_000)]


def etag(content):
    return '"%s"' % hashlib.md5(content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, content=b"", headers=()):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def xml(self, inner, name):
        text = '<?xml version="1.0" encoding="UTF-8"?><%s>%s</%s>' % (name, inner, name)
        self.answer(200, text.encode(), [("Content-Type", "application/xml")])

    def handle_any(self):
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query, keep_blank_values=True).items()}
        bucket, _, name = unquote(url.path).lstrip("/").partition("/")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with LOCK:
            try:
                getattr(self, "object_" + self.command if name else "bucket_" + self.command)(bucket, name, query, body)
            except NotFound:
                self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any

    def bucket_PUT(self, bucket, *_):
        STORAGE.create_bucket(bucket, {"name": bucket})
        self.answer(200)

    def bucket_GET(self, bucket, _, query, __):
        prefix, delimiter = query.get("prefix") or "", query.get("delimiter")
        listed, _ = STORAGE.get_file_list(bucket, prefix or None)
        shown = {}
        for found in listed:
            head, cut, _ = found["name"][len(prefix):].partition(delimiter) if delimiter else ("", "", "")
            shown[prefix + head + cut if cut else found["name"]] = None if cut else found
        after = query.get("continuation-token") or query.get("start-after") or ""
        names = sorted(name for name in shown if name > after)
        most = min(int(query.get("max-keys", 1000)), 1000)
        inner = "<IsTruncated>%s</IsTruncated>" % str(len(names) > most).lower()
        if len(names) > most:
            inner += "<NextContinuationToken>%s</NextContinuationToken>" % escape(names[most - 1])
        for name in names[:most]:
            found = shown[name]
            inner += "<Contents><Key>%s</Key><Size>%s</Size><LastModified>%s</LastModified><ETag>%s</ETag></Contents>" % (
                escape(name), found["size"], found["updated"], escape(found["etag"])) if found else ""
            inner += "" if found else "<CommonPrefixes><Prefix>%s</Prefix></CommonPrefixes>" % escape(name)
        self.xml(inner, "ListBucketResult")

    def generation(self, bucket, name):
        try:
            return STORAGE.get_file_obj(bucket, name)["generation"]
        except NotFound:
            return "0"

    def keep(self, bucket, name, content):
        GENERATION[0] += 1
        found = {"name": name, "size": len(content), "generation": str(GENERATION[0]), "etag": etag(content),
                 "updated": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")}
        STORAGE.create_file(bucket, name, content, found)
        return [("ETag", found["etag"]), ("x-goog-generation", found["generation"])]

    def object_PUT(self, bucket, name, query, body):
        if "uploadId" in query:
            UPLOADS[query["uploadId"]][int(query["partNumber"])] = body
            return self.answer(200, b"", [("ETag", etag(body))])
        wanted = self.headers.get("x-goog-if-generation-match")
        if wanted is not None and wanted != self.generation(bucket, name):
            return self.answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
        self.answer(200, b"", self.keep(bucket, name, body))

    def object_POST(self, bucket, name, query, body):
        if "uploads" in query:
            upload = uuid.uuid4().hex
            UPLOADS[upload] = {}
            return self.xml("<UploadId>%s</UploadId>" % upload, "InitiateMultipartUploadResult")
        parts = UPLOADS[query["uploadId"]]
        numbers = [int(part.findtext("PartNumber")) for part in ElementTree.fromstring(body).iter("Part")]
        headers = self.keep(bucket, name, b"".join(parts[number] for number in numbers))
        del UPLOADS[query["uploadId"]]
        content = "<CompleteMultipartUploadResult><ETag>%s</ETag></CompleteMultipartUploadResult>" % escape(headers[0][1])
        self.answer(200, content.encode(), headers)

    def object_DELETE(self, bucket, name, query, _):
        if "uploadId" in query:
            UPLOADS.pop(query["uploadId"], None)
        else:
            STORAGE.delete_file(bucket, name)
        self.answer(204)

    def object_GET(self, bucket, name, *_):
        found, content = STORAGE.get_file_obj(bucket, name), STORAGE.get_file(bucket, name)
        modified = format_datetime(datetime.fromisoformat(found["updated"].replace("Z", "+00:00")), usegmt=True)
        headers = [("ETag", found["etag"]), ("x-goog-generation", found["generation"]), ("Last-Modified", modified)]
        wanted = self.headers.get("Range", "")
        if not wanted.startswith("bytes="):
            return self.answer(200, content, headers)
        first, last = wanted[len("bytes="):].split("-")
        if not first:
            first, last = max(len(content) - int(last), 0), len(content) - 1
        first, last = int(first), min(int(last or len(content) - 1), len(content) - 1)
        headers.append(("Content-Range", "bytes %d-%d/%d" % (first, last, len(content))))
        self.answer(206, content[first:last + 1], headers)

    object_HEAD = object_GET


ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
